"""Words of reflection, and the search for a rollout in which a model checks itself and turns round.

Sources: [R1] C.2 and Fig. 9 (the ten words, merged from the lists of three people).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from ponder.store.rollouts import RolloutRow
from ponder.verifiers.expressions import ExpressionError, parse, value

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

    `correction`: a wrong result stated before the word is worked out again after it, and rightly. `new course`: nothing
    that was on the table before the word is taken up again after it, and the last result after it is right.
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

    @property
    def holds(self) -> bool:
        """Whether the arithmetic is right; False where it is beyond the expression parser (decimals, powers)."""
        return _holds(self.left, self.result)


@functools.lru_cache(maxsize=1 << 16)  # rollouts of one problem try the same sums again and again
def _holds(left: str, result: str) -> bool:
    try:
        return value(parse(left)) == Fraction(result)
    except ExpressionError:
        return False


def find_reflections(text: str) -> list[tuple[int, int]]:
    """(start, end) of each reflection word, in order. Whole words in either case; inflected forms do not count."""
    return [found.span() for found in _WORD.finditer(text)]


def count_reflection_words(text: str) -> int:
    """How many reflection words a response holds."""
    return len(find_reflections(text))


def find_turn_round(rollouts: Iterable[RolloutRow]) -> TurnRound | None:
    """The clearest rollout that checks itself, turns round, and ends in a right answer; None if there is none.

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
    """The first word between a false claim and a true one with the same left side."""
    for word in words:
        false = {claim.left for claim in claims if claim.end <= word[0] and not claim.holds}
        if any(claim.left in false and claim.holds for claim in claims if claim.start >= word[1]):
            return word
    return None


def _new_course(claims: list[_Claim], words: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The last word with claims on both sides, none of them on both, and a true one at the end."""
    for word in reversed(words):
        before = {claim.left for claim in claims if claim.end <= word[0]}
        after = [claim for claim in claims if claim.start >= word[1]]
        if before and after and after[-1].holds and before.isdisjoint(claim.left for claim in after):
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
