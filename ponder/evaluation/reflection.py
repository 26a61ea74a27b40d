"""Words of reflection, and the search for a rollout in which a model checks itself and turns round.

Sources: [R1] C.2 and Fig. 9 (the ten words, merged from the lists of three people).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ponder.store.rollouts import RolloutRow

ENGLISH = ("wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check")
"""The ten words of [R1] C.2."""

CHINESE = (
    *("等等", "等一下", "稍等", "错误", "出错", "错了", "不对", "然而", "不过"),
    *("但是", "重试", "再试", "验证", "核实", "评估", "检查", "验算"),
)
"""Counterparts of the ten: wait, mistake and error, wrong, however, but, retry, verify, evaluate, check."""

# Chinese has no spaces, so its words need no boundary; English ones do ("butter", "waiter"). The boundary is one of
# ASCII letters, since in mixed text a Chinese character may stand right beside an English word.
_WORD = re.compile(rf"(?<![A-Za-z])(?:{'|'.join(ENGLISH)})(?![A-Za-z])|{'|'.join(CHINESE)}", re.IGNORECASE)

_RESULT = re.compile(r"=\s*(-?\d+(?:\.\d+)?)")
_ARITHMETIC = "0123456789 +-*/×÷·^()."
_LONGEST_CLAIM = 80  # characters before an equals sign that may belong to its left side

Kind = Literal["correction", "new course"]


@dataclass(frozen=True)
class TurnRound:
    """A rollout that turned round. `start` and `end` are where the reflection word stands in `rollout.text`.

    `correction`: a result stated before the word is stated differently after it. `new course`: the last result is one
    that was not on the table before the word, and what was on the table before is not taken up again.
    """

    rollout: RolloutRow
    start: int
    end: int
    kind: Kind


@dataclass(frozen=True)
class _Claim:
    """`left = result`, and where it stands."""

    left: str
    result: str
    start: int
    end: int


def find_reflections(text: str) -> list[tuple[int, int]]:
    """(start, end) of each reflection word, in order. Whole words in either case; inflected forms do not count."""
    return [found.span() for found in _WORD.finditer(text)]


def count_reflection_words(text: str) -> int:
    """How many reflection words a response holds."""
    return len(find_reflections(text))


def find_turn_round(rollouts: Iterable[RolloutRow]) -> TurnRound | None:
    """The clearest rollout in which the model checks itself, turns round, and ends in a right answer; None if none
    does.

    Corrections go before new courses, later steps before earlier ones, then shorter texts before longer ones; the
    first of equals wins. What is searched for is the form on the page: no claim is made about what the model "knew".
    """
    best: TurnRound | None = None
    for rollout in rollouts:
        turn = turn_round(rollout)
        if turn is not None and (best is None or _rank(turn) < _rank(best)):
            best = turn
    return best


def turn_round(rollout: RolloutRow) -> TurnRound | None:
    """How one rollout turned round, or None: it must be right, and have results on both sides of a reflection word."""
    if not rollout.correct or rollout.answer is None:
        return None
    words = find_reflections(rollout.text)
    if not words:
        return None
    claims = _claims(rollout.text)
    corrected = _correction(claims, words)
    if corrected is not None:
        return TurnRound(rollout, *corrected, "correction")
    turned = _new_course(claims, words)
    return None if turned is None else TurnRound(rollout, *turned, "new course")


def _correction(claims: list[_Claim], words: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The first word between two claims that give the same left side different results."""
    for word in words:
        before = {claim.left: claim.result for claim in claims if claim.end <= word[0]}
        if any(before.get(c.left, c.result) != c.result for c in claims if c.start >= word[1]):
            return word
    return None


def _new_course(claims: list[_Claim], words: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The last word that has results before it, none of which comes again after it."""
    for word in reversed(words):
        before = {(c.left, c.result) for c in claims if c.end <= word[0]}
        after = {(c.left, c.result) for c in claims if c.start >= word[1]}
        if before and after and not before & after:
            return word
    return None


def _claims(text: str) -> list[_Claim]:
    """Every `3+5=8` of a text: sides without spaces; a left side without an operator is no claim."""
    claims = []
    for found in _RESULT.finditer(text):
        window = text[max(0, found.start() - _LONGEST_CLAIM) : found.start()]
        run = window[len(window.rstrip(_ARITHMETIC)) :]
        # a full stop or a number before it belongs to the sentence, not to the sum
        left = re.split(r"\.\s+|(?<=[\d)])\s+(?=[\d(])", run)[-1].replace(" ", "").lstrip(".)")
        if re.search(r"\d.*[+\-*/×÷·^]", left):
            claims.append(_Claim(left, found.group(1), found.start(), found.end()))
    return claims


def _rank(turn: TurnRound) -> tuple[bool, int, int]:
    return turn.kind != "correction", -turn.rollout.step, len(turn.rollout.text)
