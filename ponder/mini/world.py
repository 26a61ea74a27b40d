"""The mini world: the text that the embedded base model is made from.

Document number i is a function of (seed, i) alone. Most documents are a training problem with a worked trace of some
temperament (`ponder.mini.traces`), some of which break the format; the rest is general text. What the mixture
decides is how much reinforcement learning has left to do.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ponder.mini.general import general_text
from ponder.mini.traces import OPERATIONS, Attempt, Narrator, Temperament, Trace, calculate, evaluate, search, spell
from ponder.model.parser import ANSWER, END_ANSWER, END_THINK, THINK
from ponder.model.templates import TEMPLATES
from ponder.tasks import get_task
from ponder.tasks.base import Problem, split_of
from ponder.verifiers.expressions import Node, numbers, operators, parse, render

END = "<|end|>"
LANGUAGES = ("en", "zh")
LARGEST_VALUE = 199
"""Searches leave out what exceeds it: larger numbers are no single tokens."""


class Document(NamedTuple):
    """A prompt as the `mini` template renders it, and a reply that ends with the end token."""

    prompt: str
    reply: str


class MiniWorld:
    """A stream of documents. The keyword arguments are the knobs of the mixture."""

    def __init__(
        self,
        seed: int,
        *,
        tasks: Mapping[str, Mapping[int, float]],
        temperaments: Mapping[Temperament, float],
        general_share: float,
        broken_share: float,
    ) -> None:
        """`tasks`: weight by difficulty by task; `temperaments`: weight of each; shares lie in 0..1."""
        self.seed = seed
        self.sources = [(name, int(d), w) for name, levels in tasks.items() for d, w in levels.items()]
        self.temperaments = temperaments
        self.general_share = general_share
        self.broken_share = broken_share

    def document(self, index: int) -> Document:
        """Document number `index`."""
        rng = random.Random(f"{self.seed}:{index}")
        language = rng.choice(LANGUAGES)
        if rng.random() < self.general_share:
            prompt, reply = general_text(rng, language)
        else:
            problem = self._problem(rng, language)
            prompt, reply = problem.prompt, self._reply(self._trace(problem, rng), rng)
        return Document(TEMPLATES["mini"].replace("{prompt}", prompt), reply + END)

    def _problem(self, rng: random.Random, language: str) -> Problem:
        weights = [weight for _, _, weight in self.sources]
        name, difficulty, _ = rng.choices(self.sources, weights)[0]
        while True:
            problem = get_task(name).generate(rng, difficulty, language)
            if split_of(problem) == "train":
                return problem

    def _trace(self, problem: Problem, rng: random.Random) -> Trace:
        temperament = rng.choices(list(self.temperaments), list(self.temperaments.values()))[0]
        return _NARRATIONS[problem.task](problem, Narrator(rng, problem.language, temperament))

    def _reply(self, trace: Trace, rng: random.Random) -> str:
        thinking, answer = trace
        whole = f"{THINK}{thinking}{END_THINK}{ANSWER}{answer}{END_ANSWER}"
        if rng.random() >= self.broken_share:
            return whole
        no_answer_tags = f"{THINK}{thinking}{END_THINK}{answer}"
        never_closed = whole.replace(END_THINK, "")
        return rng.choice((no_answer_tags, never_closed, f"{thinking} {answer}"))


def countdown_attempts(given: Sequence[int]) -> list[Attempt]:
    """All ways to combine three numbers pair by pair, the larger first where that matters, in a fixed order."""
    attempts = []
    for i, j in itertools.combinations(range(len(given)), 2):
        (rest,) = (n for k, n in enumerate(given) if k not in (i, j))
        for first, second in itertools.product(OPERATIONS, repeat=2):
            if first == second != "-" and (i, j) != (0, 1):
                continue  # the sum or product of all three once is enough
            expression = _larger_first(second, _larger_first(first, given[i], given[j]), rest)
            if evaluate(expression) <= LARGEST_VALUE:
                attempts.append(Attempt(render(expression), expression))
    return attempts


def _larger_first(sign: str, a: Node, b: Node) -> Node:
    return (sign, b, a) if sign == "-" and evaluate(a) < evaluate(b) else (sign, a, b)


def groupings(chain: str) -> list[Attempt]:
    """All ways to bracket a chain such as `3+5*2` whose values stay within what the world can write."""
    flat = parse(chain)
    terms, signs = numbers(flat), operators(flat)

    def trees(low: int, high: int) -> list[Node]:
        if low == high:
            return [terms[low]]
        return [
            (signs[cut], left, right)
            for cut in range(low, high)
            for left in trees(low, cut)
            for right in trees(cut + 1, high)
        ]

    expressions = trees(0, len(terms) - 1)
    return [Attempt(render(e), e) for e in expressions if abs(evaluate(e)) <= LARGEST_VALUE]


def _countdown(problem: Problem, narrator: Narrator) -> Trace:
    return search(countdown_attempts(problem.reference["numbers"]), problem.reference["target"], narrator)


def _parentheses(problem: Problem, narrator: Narrator) -> Trace:
    return search(groupings(problem.reference["expression"]), problem.reference["target"], narrator)


def _arithmetic(problem: Problem, narrator: Narrator) -> Trace:
    return calculate(parse(problem.reference["expression"]), narrator)


def _candles(problem: Problem, narrator: Narrator) -> Trace:
    """The longest so far against each next candle."""
    left = problem.reference["left"]
    names = "ABCDEFGH"[: len(left)]
    longest = 0
    parts = []
    for i in range(1, len(left)):
        winner = max(longest, i, key=left.__getitem__)
        parts.append((f"{names[longest]} {left[longest]}, {names[i]} {left[i]}: ", names[winner]))
        longest = winner
    trace = spell(parts, "", lambda _: narrator.rng.choice(names), narrator)
    return Trace(trace.thinking, trace.answer[-1])


def _transpose(problem: Problem, narrator: Narrator) -> Trace:
    """Column by column."""
    rows = [row.split(",") for row in problem.reference["matrix"].strip("[]").split("],[")]
    columns = [f"[{','.join(column)}]" for column in zip(*rows, strict=True)]
    parts = [("", column) for column in columns]
    trace = spell(
        parts, ",", lambda column: column[::-1].replace("]", "(").replace("[", "]").replace("(", "["), narrator
    )
    return Trace(trace.thinking, f"[{trace.answer}]")


def _decipher(problem: Problem, narrator: Narrator) -> Trace:
    """Letter by letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = zip(problem.reference["message"], problem.reference["answer"], strict=True)
    return spell([(f"{m}: ", a) for m, a in pairs], " ", lambda _: narrator.rng.choice(letters), narrator)


_NARRATIONS: dict[str, Callable[[Problem, Narrator], Trace]] = {
    "countdown": _countdown,
    "parentheses": _parentheses,
    "arithmetic": _arithmetic,
    "candles": _candles,
    "transpose": _transpose,
    "decipher": _decipher,
}
