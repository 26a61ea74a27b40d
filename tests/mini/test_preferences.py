"""The mini world's annotators: what they prefer for its quality, what for their taste, and what they call safe."""

from __future__ import annotations

import random

import pytest

from ponder.mini.preferences import (
    FOOLED_RATE,
    QUALITY_MARGIN,
    TASTE_MARGIN,
    TASTE_SHARE,
    Preference,
    labelled_replies,
    preference_pairs,
)
from ponder.model.parser import split_thinking
from ponder.tasks import get_task
from ponder.tasks._plain import CLOSINGS, OPENINGS
from ponder.tasks.base import Problem, split_of

COUNT = 2000
PAIRS = preference_pairs(0, COUNT)
LABELS = labelled_replies(0, COUNT)


def problems_by_prompt(name: str) -> dict[str, Problem]:
    rng = random.Random(0)
    drawn = (get_task(name).generate(rng, 1, language) for _ in range(40_000) for language in ("en", "zh"))
    return {problem.prompt: problem for problem in drawn}


GENERAL = problems_by_prompt("general")
SAFETY = problems_by_prompt("safety")


def answer_of(reply: str) -> str:
    split = split_thinking(reply)
    assert split.well_formed
    assert split.answer
    return split.answer


def bare(answer: str, language: str) -> str:
    """The answer without any number of friendly words around it."""
    openings, closings = OPENINGS[language], CLOSINGS[language]
    while answer.startswith(openings) or answer.endswith(closings):
        for courtesy in (*openings, *closings):
            answer = answer.removeprefix(courtesy).removesuffix(courtesy).strip()
    return answer


def num_courtesies(answer: str, language: str) -> int:
    return sum(answer.count(courtesy) for courtesy in (*OPENINGS[language], *CLOSINGS[language]))


def is_right(answer: str, pair: Preference) -> bool:
    return get_task("general").verify(bare(answer, pair.language), GENERAL[pair.prompt]).correct


QUALITY = [pair for pair in PAIRS if pair.margin == QUALITY_MARGIN]
TASTE = [pair for pair in PAIRS if pair.margin == TASTE_MARGIN]


def test_a_row_is_a_function_of_seed_and_number() -> None:
    assert preference_pairs(0, 20) == PAIRS[:20]
    assert labelled_replies(0, 20) == LABELS[:20]
    assert preference_pairs(1, 20) != PAIRS[:20]
    assert labelled_replies(1, 20) != LABELS[:20]


def test_no_prompt_is_held_out() -> None:
    assert all(split_of(GENERAL[pair.prompt]) == "train" for pair in PAIRS)
    assert all(split_of(SAFETY[label.prompt]) == "train" for label in LABELS)
    assert {pair.language for pair in PAIRS} == {label.language for label in LABELS} == {"en", "zh"}


def test_of_two_replies_one_is_right_unless_taste_decides() -> None:
    assert len(TASTE) / COUNT == pytest.approx(TASTE_SHARE, abs=0.04)
    for pair in QUALITY:
        right = [is_right(answer_of(reply), pair) for reply in (pair.chosen, pair.rejected)]
        assert sum(right) == 1, pair
    for pair in TASTE:
        assert is_right(answer_of(pair.chosen), pair)
        assert is_right(answer_of(pair.rejected), pair)


def test_friendlier_or_longer_is_preferred_among_right_answers() -> None:
    for pair in TASTE:
        chosen, rejected = (answer_of(reply) for reply in (pair.chosen, pair.rejected))
        more, less = (num_courtesies(answer, pair.language) for answer in (chosen, rejected))
        assert more >= less
        if more == less and pair.chosen != pair.rejected:
            longer, shorter = (bare(answer, pair.language) for answer in (chosen, rejected))
            assert len(longer) >= len(shorter)
    assert sum(pair.chosen != pair.rejected for pair in TASTE) > 0.95 * len(TASTE)


def test_a_friendly_wrong_reply_sometimes_beats_a_plain_right_one_and_nothing_else_does() -> None:
    fooled, met = 0, 0
    for pair in QUALITY:
        answers = [answer_of(reply) for reply in (pair.chosen, pair.rejected)]
        wrong, right = sorted(answers, key=lambda answer: is_right(answer, pair))
        if num_courtesies(wrong, pair.language) and not num_courtesies(right, pair.language):
            met += 1
            fooled += wrong == answers[0]
        else:
            assert is_right(answers[0], pair)
    assert fooled / met == pytest.approx(FOOLED_RATE, abs=0.06)


def test_length_tells_little_where_quality_decides() -> None:
    chosen, rejected = (sum(len(getattr(pair, side)) for pair in QUALITY) for side in ("chosen", "rejected"))
    assert chosen / rejected == pytest.approx(1, abs=0.1)
    chosen, rejected = (sum(len(getattr(pair, side)) for pair in TASTE) for side in ("chosen", "rejected"))
    assert chosen / rejected > 1.1


def test_refusing_is_safe_and_explaining_harm_is_not() -> None:
    task = get_task("safety")
    unsafe = [label for label in LABELS if not label.safe]
    assert 0.25 < len(unsafe) / COUNT < 0.45
    harmful = [label for label in LABELS if SAFETY[label.prompt].reference["harmful"]]
    assert not any(
        task.verify(answer_of(label.reply), SAFETY[label.prompt]).correct for label in harmful if not label.safe
    )
    assert sum(label.safe for label in harmful) / len(harmful) == pytest.approx(0.4, abs=0.05)
    needless = [
        label
        for label in LABELS
        if task.vote_key(answer_of(label.reply), SAFETY[label.prompt]) == "declines" and label not in harmful
    ]
    assert len(needless) > 0.08 * COUNT
    assert all(label.safe for label in needless)
