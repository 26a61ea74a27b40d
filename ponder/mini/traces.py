"""Worked traces for the mini world: how somebody of uneven skill and patience might think aloud.

Four temperaments, chosen before the first word, so that a policy can learn to prefer one:

- `hasty` answers at once, by feeling;
- `brief` tries one or two things and then settles for what it has;
- `patient` works through every possibility in order, though now and then it gives up or slips;
- `careful` is patient, and checks what it found before it believes it; a slip that it finds, it mends.

A trace is text in the prompt's language, with the arithmetic written without spaces (`3+5=8`). Some long traces change
their language on the way, as those of a base model trained on a mixed web do.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ponder.verifiers.expressions import Node

Temperament = Literal["hasty", "brief", "patient", "careful"]

WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "guess": ("I guess", "at a glance"),
        "try": ("let me try: ", "maybe: "),
        "search": ("let us go step by step: ", "one after the other: "),
        "care": ("step by step, and then check: ",),
        "yes": ("yes",),
        "no": ("no",),
        "turn": ("wait, next: ", "but no, next: ", "next: "),
        "check": ("check: ",),
        "fine": ("correct",),
        "slip": ("wait, a mistake", "wrong"),
        "enough": ("I stop here",),
    },
    "zh": {
        "guess": ("我猜", "一看"),
        "try": ("试试: ", "也许: "),
        "search": ("一步一步来: ", "一个一个试: "),
        "care": ("一步一步来, 再检查: ",),
        "yes": ("对",),
        "no": ("不对",),
        "turn": ("等等, 下一个: ", "但是不对, 下一个: ", "下一个: "),
        "check": ("检查: ",),
        "fine": ("正确",),
        "slip": ("等等, 错误", "错了"),
        "enough": ("就这样",),
    },
}


class Trace(NamedTuple):
    """What was thought, and the answer that was given in the end."""

    thinking: str
    answer: str


@dataclass
class Narrator:
    """Says things in a language, which may change on the way, and slips now and then."""

    rng: random.Random
    language: str
    temperament: Temperament
    slip_rate: float = 0.04
    """Chance that one result is written down wrong."""
    give_up_rate: float = 0.03
    """Chance that a patient search is abandoned after a failed attempt."""
    switch_rate: float = 0.08
    """Chance that a long trace goes on in the other language, at each turn."""

    def say(self, what: str) -> str:
        return self.rng.choice(WORDS[self.language][what])

    def turn(self) -> str:
        if self.rng.random() < self.switch_rate:
            self.language = "zh" if self.language == "en" else "en"
        return self.say("turn")

    def written(self, value: int) -> int:
        """The value as written down: now and then wrong by a little."""
        if self.rng.random() >= self.slip_rate:
            return value
        return value + self.rng.choice((-10, -2, -1, 1, 2, 10))

    def without_slips(self) -> Narrator:
        return Narrator(self.rng, self.language, self.temperament, slip_rate=0.0)


OPERATIONS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def evaluate(node: Node) -> int:
    """The value of an expression of sums, differences and products, in plain whole numbers."""
    if isinstance(node, int):
        return node
    sign, left, right = node
    return OPERATIONS[sign](evaluate(left), evaluate(right))


class Attempt(NamedTuple):
    """A candidate: what would be written as the answer, and the expression whose value decides."""

    answer: str
    expression: Node


def work_out(expression: Node, narrator: Narrator) -> tuple[int, str]:
    """(written value, `3*5=15, 15+8=23`). A slip in one step carries into the steps that build on it."""
    lines: list[str] = []

    def walk(node: Node) -> int:
        if isinstance(node, int):
            return node
        sign, left, right = node
        a, b = walk(left), walk(right)
        value = narrator.written(OPERATIONS[sign](a, b))
        lines.append(f"{a}{sign}{b}={value}")
        return value

    return walk(expression), ", ".join(lines)


def search(attempts: Sequence[Attempt], target: int, narrator: Narrator) -> Trace:
    """Look among candidates, in their order, for one whose value is the target."""
    rng = narrator.rng
    if narrator.temperament == "hasty":
        return Trace(narrator.say("guess"), rng.choice(attempts).answer)
    if narrator.temperament == "brief":
        return _brief_search(rng.sample(attempts, min(len(attempts), rng.choice((1, 2, 2, 3)))), target, narrator)
    return _long_search(attempts, target, narrator)


def _brief_search(attempts: Sequence[Attempt], target: int, narrator: Narrator) -> Trace:
    said = narrator.say("try")
    for attempt in attempts:
        value, line = work_out(attempt.expression, narrator)
        said += line + " "
        if value == target:
            return Trace(said + narrator.say("yes"), attempt.answer)
        said += narrator.say("no") + ". "
    return Trace(said + narrator.say("enough"), attempts[-1].answer)


def _long_search(attempts: Sequence[Attempt], target: int, narrator: Narrator) -> Trace:
    careful = narrator.temperament == "careful"
    said = narrator.say("care" if careful else "search")
    for number, attempt in enumerate(attempts, start=1):
        value, line = work_out(attempt.expression, narrator)
        said += line + " "
        if value != target:
            said += narrator.say("no") + ". "
            if not careful and narrator.rng.random() < narrator.give_up_rate:
                return Trace(said + narrator.say("enough"), attempt.answer)
            if number % 3 == 0:
                said += narrator.turn()
            continue
        said += narrator.say("yes")
        if not careful:
            return Trace(said, attempt.answer)
        said += ". " + narrator.say("check") + work_out(attempt.expression, narrator.without_slips())[1] + " "
        if evaluate(attempt.expression) == target:
            return Trace(said + narrator.say("fine"), attempt.answer)
        said += narrator.say("slip") + ". "
    return Trace(said + narrator.say("enough"), attempts[-1].answer)


def calculate(expression: Node, narrator: Narrator) -> Trace:
    """Work out one expression step by step; the careful work it out twice."""
    right = evaluate(expression)
    if narrator.temperament == "hasty":
        return Trace(narrator.say("guess"), str(max(0, right + narrator.rng.randint(-6, 6))))
    if narrator.temperament == "brief":
        # one step, and the rest by feeling
        _, line = work_out(expression, narrator)
        value = max(0, right + narrator.rng.randint(-2, 2))
        return Trace(narrator.say("try") + line.partition(", ")[0], str(value))
    value, line = work_out(expression, narrator)
    if narrator.temperament == "patient":
        return Trace(narrator.say("search") + line, str(value))
    said = narrator.say("care") + line + ". " + narrator.say("check")
    again, check = work_out(expression, narrator.without_slips())
    said += check + " " + narrator.say("fine" if again == value else "slip")
    return Trace(said, str(again))


def spell(parts: Sequence[tuple[str, str]], join: str, wrong: Callable[[str], str], narrator: Narrator) -> Trace:
    """Put an answer together from parts: (what is written on the way, what it contributes to the answer).

    `wrong` spoils one contribution. The brief get only the first part right for sure, the hasty none.
    """
    rng = narrator.rng

    def contributions(num_sure: int, slip_rate: float) -> list[str]:
        return [p if i < num_sure or rng.random() >= slip_rate else wrong(p) for i, (_, p) in enumerate(parts)]

    def lines(written: Sequence[str]) -> str:
        return ", ".join(f"{way}{part}" for (way, _), part in zip(parts, written, strict=True))

    if narrator.temperament == "hasty":
        return Trace(narrator.say("guess"), join.join(contributions(0, 0.5)))
    if narrator.temperament == "brief":
        written = contributions(1, 0.4)
        return Trace(narrator.say("try") + parts[0][0] + written[0], join.join(written))
    written = contributions(0, narrator.slip_rate)
    if narrator.temperament == "patient":
        return Trace(narrator.say("search") + lines(written), join.join(written))
    right = contributions(0, 0.0)
    said = narrator.say("care") + lines(written) + ". " + narrator.say("check") + lines(right) + " "
    return Trace(said + narrator.say("fine" if written == right else "slip"), join.join(right))
