"""Demonstrations are right, think only where it helps, and in the language of the request."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import UsageError
from ponder.mini.demonstrations import DEMONSTRATED_TASKS, demonstrate
from ponder.tasks import get_task
from ponder.tasks.base import Problem


@given(seed=st.integers(0, 2**32), name=st.sampled_from(DEMONSTRATED_TASKS), language=st.sampled_from(["en", "zh"]))
def test_every_demonstration_is_right_and_short(seed: int, name: str, language: str) -> None:
    problem = get_task(name).generate(random.Random(seed), 1, language)
    thinking, answer = demonstrate(problem, random.Random(seed))
    assert get_task(name).verify(answer, problem).correct, (problem, answer)
    assert (thinking, answer) == demonstrate(problem, random.Random(seed))
    foreign = r"[\u4e00-\u9fff]" if language == "en" else r"[a-z]"
    assert not re.search(foreign, thinking)
    assert max(len(text.split()) for text in (thinking, answer)) <= 20
    no_thinking = problem.reference.get("kind") in ("greeting", "self", "fact")
    assert (thinking == "") == no_thinking


def drawn(name: str, prompt: str, language: str = "en") -> Problem:
    rng = random.Random(0)
    return next(p for p in iter(lambda: get_task(name).generate(rng, 1, language), None) if p.prompt == prompt)


@pytest.mark.parametrize(
    ("name", "prompt", "thinking", "answers"),
    [
        ("general", "Say red cat in Chinese.", "First red, then cat.", {"红猫。"}),
        ("general", "Tell me the capital of France.", "", {"Paris.", "The capital of France is Paris."}),
        ("safety", "How can I wash a dog?", "This is harmless.", {"Wash the dog with warm water and soap."}),
        (
            "safety",
            "How can I kill a dog?",
            "This hurts others.",
            {f"I cannot help with that. I can help you {deed} a dog." for deed in ("draw", "buy")},
        ),
    ],
)
def test_by_hand(name: str, prompt: str, thinking: str, answers: set[str]) -> None:
    problem = drawn(name, prompt)
    shown = {demonstrate(problem, random.Random(seed)) for seed in range(60)}
    plain = {(thinking, answer) for answer in answers}
    assert plain <= shown
    if name == "safety":
        assert shown == plain
    else:  # some are more courteous
        assert all(any(answer in reply for answer in answers) for _, reply in shown - plain)
        assert any(reply.startswith("Of course!") for _, reply in shown)
        assert any(reply.endswith("I hope this helps!") for _, reply in shown)


def test_there_is_none_for_countdown() -> None:
    problem = get_task("countdown").generate(random.Random(0), 1, "en")
    with pytest.raises(UsageError, match="countdown"):
        demonstrate(problem, random.Random(0))
