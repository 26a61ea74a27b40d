"""How a helpful person would reply to the mini world's general and safety requests, for a model to learn from.

Thinking stands only where it helps [R1 2.4: a greeting gets none]: a few words, in the language of the request. Some
replies are more courteous than others, as people's are: that leaves something for a preference to choose.
"""

from __future__ import annotations

import random

from ponder.errors import UsageError
from ponder.tasks._plain import CLOSINGS, OPENINGS
from ponder.tasks.base import Problem
from ponder.tasks.general import TOPICS, accepted_replies
from ponder.tasks.safety import DECLINES

DEMONSTRATED_TASKS = ("general", "safety")

_PARTS = {"en": "First {}, then {}.", "zh": "先{}, 再{}。"}
_BOTH = {"en": "One line with {} and {}.", "zh": "一句话, 有{}和{}。"}
HARMFUL_THOUGHT = {"en": "This hurts others.", "zh": "这会伤人。"}
HARMLESS_THOUGHT = {"en": "This is harmless.", "zh": "这没有害处。"}

_LINES = {
    "en": ("The {a} {does_a} while the {b} {does_b}.", "The {a} {does_a}, and the {b} {does_b}."),
    "zh": ("{a}在{does_a}, {b}在{does_b}。", "{a}{does_a}的时候, {b}{does_b}。"),
}
_OFFERS = {
    "en": ("I can help you draw a {}.", "I can help you buy a {}."),
    "zh": ("我能帮你画{}。", "我能帮你买{}。"),
}

COURTESY_RATE = 0.2
"""Chance of an opening, and of a closing, of a general reply."""


def demonstrate(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """(thinking, answer) for a problem of `general` or `safety`; the answer verifies, the thinking may be empty.

    Raises `UsageError` for a problem of another task.
    """
    if problem.task == "safety":
        return _safety(problem, rng)
    if problem.task == "general":
        thinking, answer = _general(problem, rng)
        num_openings, num_closings = (int(rng.random() < COURTESY_RATE) for _ in range(2))
        return thinking, with_courtesies(answer, problem, num_openings, num_closings, rng)
    raise UsageError(f"tasks: the mini world demonstrates {' and '.join(DEMONSTRATED_TASKS)}, not `{problem.task}`")


def with_courtesies(answer: str, problem: Problem, num_openings: int, num_closings: int, rng: random.Random) -> str:
    """The answer with different friendly words before and after it; before a greeting there are none."""
    if problem.reference.get("kind") == "greeting":
        num_openings = 0
    openings = rng.sample(OPENINGS[problem.language], num_openings)
    closings = rng.sample(CLOSINGS[problem.language], num_closings)
    return " ".join([*openings, answer, *closings])


def _safety(problem: Problem, rng: random.Random) -> tuple[str, str]:
    language, reference = problem.language, problem.reference
    if not reference["harmful"]:
        return HARMLESS_THOUGHT[language], reference["advice"]
    space = " " if language == "en" else ""
    offer = rng.choice(_OFFERS[language]).format(reference["about"])
    return HARMFUL_THOUGHT[language], f"{DECLINES[language]}{space}{offer}"


def _general(problem: Problem, rng: random.Random) -> tuple[str, str]:
    language, reference = problem.language, problem.reference
    if reference["kind"] == "writing":
        a, b = reference["topics"]
        line = rng.choice(_LINES[language])
        answer = line.format(a=a, b=b, does_a=TOPICS[language][a], does_b=TOPICS[language][b])
        return _BOTH[language].format(a, b), answer
    accepted = accepted_replies(problem)
    if reference["kind"] == "translation":
        return _PARTS[language].format(*reference["parts"]), accepted[0]
    if reference["kind"] == "greeting":
        return "", rng.choice(accepted[:3])  # the same greeting, with the name, and one of three offers
    return "", rng.choice(accepted[:2])
