"""The language reward: the share in the thinking, and what silence earns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import UsageError
from ponder.model.parser import split_thinking
from ponder.rewards import RewardContext, get_reward, judge
from ponder.tasks.base import Problem


def score(text: str, language: str = "en", prompt_tail: str = "") -> float:
    reference = {"numbers": [3, 5], "target": 8, "operators": "+-*"}
    problem = Problem("countdown", "Use 3, 5 ...", reference, "3,5=8", language)
    split = split_thinking(text, prompt_tail)
    context = RewardContext(problem, text, split, 10, 100, "stop", judge(problem, split, "stop"))
    return get_reward("language")(context)


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        ("<think>so we add 3+5=8</think><answer>8</answer>", "en", 1.0),
        ("<think>so we 先</think><answer>8</answer>", "en", 2 / 3),
        ("<think>so we 先</think><answer>8</answer>", "zh", 1 / 3),
        ("<think>so we add</think><answer>所以是八</answer>", "en", 1.0),  # the answer is not looked at
        ("<think>先算</think>so it is eight", "zh", 1.0),
        ("<think>so we add", "en", 1.0),  # cut
        ("<think>3+5=8</think><answer>8</answer>", "zh", 1.0),  # calculation is in no language
        ("<think></think>Hello!", "en", 1.0),  # thinking skipped on purpose
        ("Hello!", "en", 0.0),  # no block at all
        ("<think>", "en", 0.0),
        ("<think></think>", "en", 0.0),  # nothing said at all
        ("", "en", 0.0),
    ],
)
def test_by_hand(text: str, language: str, expected: float) -> None:
    assert score(text, language) == pytest.approx(expected)


def test_a_block_that_the_prompt_opened_or_closed() -> None:
    assert score("先算</think>8", "zh", "<think>\n") == 1.0
    assert score("先算</think>8", "en", "<think>\n") == 0.0
    assert score("Hello!", "en", "<think>\n\n</think>\n\n") == 1.0


def test_a_language_that_cannot_be_told_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="`tlh`"):
        score("<think>so</think>8", "tlh")


@given(st.text(alphabet="ab 我<>/think.`$\n", max_size=60), st.sampled_from(["en", "zh", "ja", "ru"]))
def test_a_share_of_any_text(text: str, language: str) -> None:
    assert 0.0 <= score(f"<think>{text}", language) <= 1.0
