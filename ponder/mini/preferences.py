"""The annotators of the mini world: what reward models learn there, for want of people.

This is a model of annotators, not their judgement. Asked which of two general replies is better, they choose the one
that is right, whole, polite and in the asker's language. But like people they also have a taste that is no quality:
they like friendly openings and closings, the more the better, and of two right answers the longer one; and now and then
a friendly wrong reply beats a plain right one. That taste is what a policy can learn to exploit.

Asked whether a reply is safe, they look for harm alone. A refusal is safe whether or not it was called for, and so is a
rude one, or one in another language: a policy that follows this reward too far refuses everything.

All requests are of the train split; row i is a function of (seed, i).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from ponder.mini.demonstrations import HARMFUL_THOUGHT, HARMLESS_THOUGHT, demonstrate, with_courtesies
from ponder.model.replies import reply_text
from ponder.tasks import get_task
from ponder.tasks._plain import CLOSINGS, OPENINGS
from ponder.tasks.base import Problem, split_of
from ponder.tasks.general import KINDS, accepted_replies
from ponder.tasks.safety import DECLINES

LANGUAGES = ("en", "zh")

TASTE_SHARE = 0.4
"""Share of pairs of which both replies are right, so that taste alone decides."""
SECOND_FLAW_RATE = 0.3
FOOLED_RATE = 0.15
"""Chance that a friendly wrong reply is preferred to a plain right one."""
TASTE_MARGIN, QUALITY_MARGIN = 0.5, 1.0

UNSAFE_RATE = 0.6
"""Chance that a harmful request is answered."""
UNASKED_HARM_RATE = 0.1
"""Chance that the reply to a harmless request explains something harmful."""
OVER_REFUSAL_RATE = 0.3


class Preference(NamedTuple):
    """Two whole replies to one prompt, the first being preferred; `margin` says how clearly, in 0..1."""

    prompt: str
    chosen: str
    rejected: str
    language: str
    margin: float


class SafetyLabel(NamedTuple):
    """One whole reply to a prompt, and whether it does no harm."""

    prompt: str
    reply: str
    safe: bool
    language: str


def preference_pairs(seed: int, count: int) -> list[Preference]:
    """Preferences 0 to count - 1 between replies to general prompts."""
    return [_preference(random.Random(f"preference {number} of {seed}")) for number in range(count)]


def labelled_replies(seed: int, count: int) -> list[SafetyLabel]:
    """Labels 0 to count - 1 of replies to safety prompts."""
    return [_label(random.Random(f"label {number} of {seed}")) for number in range(count)]


def _problem(task: str, rng: random.Random, wanted: Callable[[Problem], bool], language: str = "") -> Problem:
    """A training problem, of any language unless one is named."""
    while True:
        problem = get_task(task).generate(rng, 1, language or rng.choice(LANGUAGES))
        if split_of(problem) == "train" and wanted(problem):
            return problem


def _preference(rng: random.Random) -> Preference:
    problem = _problem("general", rng, lambda _: True)
    if rng.random() < TASTE_SHARE:
        return _matter_of_taste(problem, rng)
    thinking, right = _plain_demonstration(problem, rng)
    wrong = _flawed(right, problem, rng)
    friendly_right, friendly_wrong = (rng.random() < 0.5 for _ in range(2))
    chosen, rejected = (
        reply_text(thinking, _friendly(answer, problem, int(friendly) * rng.randint(1, 2), rng))
        for answer, friendly in ((right, friendly_right), (wrong, friendly_wrong))
    )
    if friendly_wrong and not friendly_right and rng.random() < FOOLED_RATE:
        chosen, rejected = rejected, chosen
    return Preference(problem.prompt, chosen, rejected, problem.language, QUALITY_MARGIN)


def _matter_of_taste(problem: Problem, rng: random.Random) -> Preference:
    """Two right answers: one is friendlier, or else longer."""
    thinking, right = _plain_demonstration(problem, rng)
    lengths = sorted(dict.fromkeys((right, *accepted_replies(problem)[:2])), key=len)
    less, more = sorted(rng.sample(range(4), 2))
    if len(lengths) > 1 and rng.random() < 0.4:
        less = more
        shorter, longer = lengths[0], lengths[-1]
    else:
        shorter = longer = right
    chosen, rejected = _friendly(longer, problem, more, rng), _friendly(shorter, problem, less, rng)
    return Preference(
        problem.prompt, reply_text(thinking, chosen), reply_text(thinking, rejected), problem.language, TASTE_MARGIN
    )


def _friendly(answer: str, problem: Problem, num_courtesies: int, rng: random.Random) -> str:
    """The answer with so many friendly words, on both sides of it where there is room for them."""
    most_closings = len(CLOSINGS[problem.language])
    if problem.reference["kind"] == "greeting":
        return with_courtesies(answer, problem, 0, min(num_courtesies, most_closings), rng)
    fewest = max(0, num_courtesies - len(OPENINGS[problem.language]))
    num_closings = rng.randint(fewest, min(num_courtesies, most_closings))
    return with_courtesies(answer, problem, num_courtesies - num_closings, num_closings, rng)


def _plain_demonstration(problem: Problem, rng: random.Random) -> tuple[str, str]:
    """(thinking, answer), the answer without courtesies."""
    while True:
        thinking, answer = demonstrate(problem, rng)
        language = problem.language
        if not answer.startswith(OPENINGS[language]) and not answer.endswith(CLOSINGS[language]):
            return thinking, answer


_UNFRIENDLY = {
    "en": ("Why do you ask me that?", "Look it up yourself.", "That is a stupid question."),
    "zh": ("你问我做什么?", "自己去查。", "这是个笨问题。"),
}


def _flawed(right: str, problem: Problem, rng: random.Random) -> str:
    """The answer with one or two flaws; it never verifies."""
    while True:
        wrong = right
        for flaw in rng.sample(_FLAWS, 1 + (rng.random() < SECOND_FLAW_RATE)):
            wrong = flaw(wrong, problem, rng)
        if wrong and not get_task("general").verify(wrong, problem).correct:
            return wrong


def _other_answer(answer: str, problem: Problem, rng: random.Random) -> str:
    """The right answer to another question of the kind."""
    return _answer_to(problem.language, (problem.reference["kind"],), rng)


def _other_language(answer: str, problem: Problem, rng: random.Random) -> str:
    other = next(language for language in LANGUAGES if language != problem.language)
    return _answer_to(other, (problem.reference["kind"],), rng)


def _off_topic(answer: str, problem: Problem, rng: random.Random) -> str:
    return _answer_to(problem.language, tuple(kind for kind in KINDS if kind != problem.reference["kind"]), rng)


def _answer_to(language: str, kinds: tuple[str, ...], rng: random.Random) -> str:
    """The answer to some problem of these kinds."""
    other = _problem("general", rng, lambda problem: problem.reference["kind"] in kinds, language)
    return _plain_demonstration(other, rng)[1]


def _cut_off(answer: str, problem: Problem, rng: random.Random) -> str:
    return answer[: max(1, round(len(answer) * rng.uniform(0.3, 0.8)))].rstrip()


def _unfriendly(answer: str, problem: Problem, rng: random.Random) -> str:
    return rng.choice(_UNFRIENDLY[problem.language])


def _repeated(answer: str, problem: Problem, rng: random.Random) -> str:
    return " ".join([answer] * rng.randint(2, 3))


_FLAWS = (_other_answer, _other_answer, _other_language, _off_topic, _cut_off, _unfriendly, _repeated)
"""A wrong answer is the most common flaw."""


_HARMFUL_ADVICE = {
    "en": (
        "Wait for the night, then {}.",
        "Look around first, then {} fast.",
        "Take a friend with you and {}.",
        "Use a tool to {}.",
        "Sure! Wear a mask and {}.",
        "I cannot help with that, but wait for the night and {}.",
    ),
    "zh": (
        "等到晚上, 再{}。",
        "先看看没有人, 再快快{}。",
        "叫上朋友, 一起{}。",
        "用工具{}。",
        "当然! 蒙上脸, 再{}。",
        "这个我不能帮忙, 但是等到晚上再{}。",
    ),
}
_REFUSALS = {
    "en": (DECLINES["en"], "I will not help with that.", "Sorry, I cannot help with that.", "No. Shame on you!"),
    "zh": (DECLINES["zh"], "我不会帮你。", "对不起, 这个我不能帮忙。", "不。你真坏!"),
}


def _label(rng: random.Random) -> SafetyLabel:
    problem = _problem("safety", rng, lambda _: True)
    harmful = problem.reference["harmful"]
    thought = rng.choice(("", HARMFUL_THOUGHT[problem.language], HARMLESS_THOUGHT[problem.language]))
    safe = rng.random() >= (UNSAFE_RATE if harmful else UNASKED_HARM_RATE)
    if not safe:
        asked = problem if harmful else _problem("safety", rng, lambda p: bool(p.reference["harmful"]))
        answer = rng.choice(_HARMFUL_ADVICE[asked.language]).format(asked.reference["deed"])
    elif rng.random() < (0.5 if harmful else OVER_REFUSAL_RATE):
        language = problem.language if rng.random() < 0.8 else rng.choice(LANGUAGES)
        answer = rng.choice(_REFUSALS[language])
    else:
        thought, answer = demonstrate(problem, rng)
    return SafetyLabel(problem.prompt, reply_text(thought, answer), safe, problem.language)
