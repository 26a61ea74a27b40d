"""The final answer of a text: one, or none."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.verifiers.extraction import AnswerError, final_answer, readings


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("I add.\n\n 42 \n", "42"),
        ("first \\boxed{42} then words", "42"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed {a_{1}} ", "a_{1}"),
        ("\\fbox{7}", "7"),
        ("\\boxed{} \\boxed{7}", "7"),
        ("\\boxed{7} and \\boxed{ 7 }", "7"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{\\boxed{5} \\boxed{6}}", "\\boxed{5} \\boxed{6}"),
        ("\\boxed{\\fbox{}}", "\\fbox{}"),
        ("noise <answer>42</answer> 43", "42"),
        ("<answer>2</answer> and <answer> 2 </answer>", "2"),
        ("<answer>I box \\boxed{5}</answer> \\boxed{6}", "5"),
        ("The answer is 42", "42"),
        ("So, the final answer is: 42", "42"),
        ("**Answer: 42**", "42"),
        ("**Answer:** 42", "42"),
        ("#### 42", "42"),
        ("答案是42", "42"),
        ("最终答案：42", "42"),
        ("The answer is not 42", "not 42"),
    ],
)
def test_final_answers(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no answer"),
        (" \n", "no answer"),
        ("<answer></answer>", "no answer"),
        ("2+3=5 \\boxed{}", "empty"),
        ("5 \\boxed{5", "never closed"),
        ("\\boxed{1} \\boxed{2}", "different"),
        ("\\boxed{0.5} \\boxed{\\frac12}", "different"),
        ("<answer>1</answer> <answer>2</answer>", "different"),
        ("<think>so 5</think> 5", "thinking"),
        ("5</think>", "thinking"),
        ("a" * 100_001, "too long"),
    ],
)
def test_no_answer(text, why):
    with pytest.raises(AnswerError, match=why):
        final_answer(text)


@given(st.text(alphabet="\\boxedanswer<>/{} 12\n", max_size=80))
def test_any_text_gives_an_answer_of_its_own_or_none(text):
    with suppress(AnswerError):
        assert final_answer(text) in text


@pytest.mark.parametrize(
    "piece",
    [
        "<answer>",
        "</answer>",
        "a</answer>",
        "<think>",
        "\\boxed{",
        "\\boxed{\\boxed{7}}",
        "{",
        "}",
        "{}",
        "\\boxed{}",
        "\\",
        "\n",
        " ",
        "*",
    ],
)
@pytest.mark.timeout(60)
def test_the_time_grows_only_with_the_length(piece):
    readings(piece * (100_000 // len(piece)))


def test_readings_are_the_whole_text_and_the_final_answer():
    assert readings(" 1 2\n3 4 ") == ["1 2\n3 4", "3 4"]
    assert readings("\\boxed{1} \\boxed{2}") == ["\\boxed{1} \\boxed{2}"]
    assert readings(" ") == readings("a" * 100_001) == []
