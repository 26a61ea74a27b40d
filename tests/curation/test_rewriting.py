"""Rewriting for a person: what is asked of a model, what is read of its reply, and what is checked again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.curation.endpoint import Messages, Progress
from ponder.curation.rewrite import (
    _INSTRUCTIONS,
    FAULTS,
    by_endpoint,
    fault_of,
    open_rewriter,
    read_rewritten,
    rewriting_prompt,
)
from ponder.errors import UsageError
from ponder.recipe import RewriteSettings
from ponder.store.datasets import Example
from ponder.tasks.base import Problem

PROBLEM = Problem("arithmetic", "3+4?", {"expression": "3+4", "answer": 7}, "3+4")


def example(thinking: str = "3+4=7", answer: str = "7", prompt: str = "3+4?") -> Example:
    return Example("i", "s", "math", "en", prompt, thinking, answer)


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("<reasoning>\nI add.\n</reasoning>\n<summary>\nIt is 7.\n</summary>", ("I add.", "It is 7.")),
        ("<think>hm</think><reasoning>a</reasoning><summary>b</summary>", ("a", "b")),
        ("Sure! <reasoning>a</reasoning><summary>b</summary>", None),
        ("<reasoning>a</reasoning><summary>b", None),
        ("<reasoning></reasoning><summary>b</summary>", None),
        ("<reasoning>a</reasoning><summary> </summary>", None),
        ("<reasoning>a</think></reasoning><summary>b</summary>", None),
        ("<reasoning>a</reasoning><summary>x</summary><summary>b</summary>", None),
        ("", None),
    ],
)
def test_only_the_form_asked_for_is_read(reply: str, read: tuple[str, str] | None) -> None:
    assert read_rewritten(reply) == read


@given(st.text("<>/reasoningsummarythink \n"))
def test_no_reply_breaks_the_reading(reply: str) -> None:
    found = read_rewritten(reply)
    assert found is None or all(part and "<reasoning>" not in part for part in found)


def test_what_is_filled_in_is_not_filled_in_again() -> None:
    text = rewriting_prompt("{prompt}|{thinking}|{answer}|{language}", example("{answer}", "{prompt}", "{thinking}"))
    assert text[0]["content"].startswith("{thinking}|{answer}|{prompt}|English\n")


def test_the_built_in_instructions_hold_the_example_and_a_box() -> None:
    class Echo:
        def ask_all(self, conversations: Sequence[Messages], on_progress: Progress | None = None) -> list[str]:
            texts = [conversation[0]["content"].replace("<", "") for conversation in conversations]
            return [f"<reasoning>{text}</reasoning><summary>s</summary>" for text in texts]

    (found,) = by_endpoint(Echo(), _INSTRUCTIONS, [(PROBLEM, example("first THIS"))])
    assert found is not None
    for part in ("3+4?", "first THIS", "\\boxed{}", "in English"):
        assert part in found[0]


def test_a_rewritten_answer_is_judged_again_and_its_language_counted() -> None:
    problem, summary = PROBLEM, "The sum is \\boxed{7}"
    assert fault_of(("I add them.", summary), problem, example()) is None
    assert fault_of(None, problem, example()) == FAULTS[0]
    assert fault_of(("I add them.", "\\boxed{100000}"), problem, example()) == FAULTS[1]
    assert fault_of(("我把它们加起来。", summary), problem, example()) == FAULTS[2]
    assert fault_of(("I add them.", f"答案是 {summary}"), problem, example()) == FAULTS[2]
    no_rule = Problem("file", "p", None, "p")
    assert fault_of(("I add them.", "whatever"), no_rule, example()) is None


def test_instructions_that_leave_out_the_example_are_refused() -> None:
    endpoint = {"base_url": "http://127.0.0.1:9/v1", "model": "m"}
    settings = RewriteSettings.model_validate(
        {"by": "endpoint", "endpoint": endpoint, "instructions": "{prompt} {answer}"}
    )
    with pytest.raises(UsageError, match=r"must hold \{thinking\}"):
        open_rewriter(settings, seed=0)


def test_the_built_in_rewriter_needs_no_endpoint() -> None:
    rewriter = open_rewriter(RewriteSettings(), seed=0)
    assert rewriter([(PROBLEM, example("nothing that a trace says"))], lambda count: None) == [None]
