"""Worked traces: right where nobody slips, better the more patient the narrator, and in one language until it turns."""

from __future__ import annotations

import itertools
import operator
import random
import re
from fractions import Fraction
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.mini.traces import (
    WORDS,
    Attempt,
    Narrator,
    Temperament,
    Trace,
    calculate,
    evaluate,
    search,
    spell,
    work_out,
)
from ponder.mini.world import _NARRATIONS, LARGEST_VALUE, countdown_attempts, groupings
from ponder.tasks import get_task
from ponder.tasks.base import Problem
from ponder.verifiers.expressions import numbers, parse, value

TEMPERAMENTS: tuple[Temperament, ...] = get_args(Temperament)
LEVELS = {"countdown": (1,), "parentheses": (1, 2), "arithmetic": (1, 2, 3), "candles": (1,), "transpose": (1, 2, 3)}
LEVELS["decipher"] = (1, 2)
EQUATION = re.compile(r"(?<![\d)])(-?\d+)([-+*])(-?\d+)=(-?\d+)")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def make_problem(task: str, difficulty: int, seed: int, language: str = "en") -> Problem:
    return get_task(task).generate(random.Random(seed), difficulty, language)


def narrate(problem: Problem, temperament: Temperament, seed: int = 0, **rates: float) -> Trace:
    narrator = Narrator(random.Random(seed), problem.language, temperament, **rates)
    return _NARRATIONS[problem.task](problem, narrator)


def is_right(problem: Problem, trace: Trace) -> bool:
    return get_task(problem.task).verify(trace.answer, problem).correct


SURE = {"slip_rate": 0.0, "give_up_rate": 0.0, "switch_rate": 0.0}
ALL_LEVELS = [(task, level) for task, levels in LEVELS.items() for level in levels]


@pytest.mark.parametrize("temperament", ["patient", "careful"])
@pytest.mark.parametrize(("task", "difficulty"), ALL_LEVELS)
def test_without_slips_patience_is_right_and_so_is_every_line(
    task: str, difficulty: int, temperament: Temperament
) -> None:
    equations = 0
    for seed in range(40):
        problem = make_problem(task, difficulty, seed, ("en", "zh")[seed % 2])
        trace = narrate(problem, temperament, seed, **SURE)
        assert is_right(problem, trace), (problem.prompt, trace)
        for a, sign, b, result in EQUATION.findall(trace.thinking):
            assert OPERATIONS[sign](int(a), int(b)) == int(result), trace.thinking
            equations += 1
        # nothing that looks like an equation escaped the pattern
        assert len(EQUATION.findall(trace.thinking)) == trace.thinking.count("=")
    assert (equations >= 40) == (task in ("countdown", "parentheses", "arithmetic"))


@pytest.mark.parametrize("task", ["candles", "transpose", "decipher"])
def test_every_step_of_a_spelled_answer_is_right(task: str) -> None:
    for seed in range(30):
        problem = make_problem(task, 1, seed)
        thinking = narrate(problem, "patient", seed, **SURE).thinking
        if task == "candles":
            duels = re.findall(r"([A-H]) (\d+), ([A-H]) (\d+): ([A-H])", thinking)
            assert len(duels) == len(problem.reference["left"]) - 1
            for one, left, other, other_left, winner in duels:
                assert winner == (one if int(left) >= int(other_left) else other)
        elif task == "transpose":
            assert "[" + ",".join(re.findall(r"\[[0-9,]+\]", thinking)) + "]" == problem.reference["answer"]
        else:
            steps = re.findall(r"([a-z]): ([a-z])", thinking.partition(": ")[2])
            assert ["".join(s) for s in zip(*steps, strict=True)] == [
                problem.reference["message"],
                problem.reference["answer"],
            ]


def test_the_more_patient_the_more_often_right() -> None:
    """In the mean over the tasks; each is what RL may learn to prefer."""
    right = dict.fromkeys(TEMPERAMENTS, 0)
    length = dict.fromkeys(TEMPERAMENTS, 0)
    for temperament in TEMPERAMENTS:
        for (task, level), seed in itertools.product(ALL_LEVELS, range(25)):
            problem = make_problem(task, level, seed)
            trace = narrate(problem, temperament, seed)
            right[temperament] += is_right(problem, trace)
            length[temperament] += len(trace.thinking)
    count = 25 * len(ALL_LEVELS)
    assert right["hasty"] < 0.3 * count
    assert right["hasty"] < right["brief"] < right["patient"] < right["careful"] < count
    assert length["hasty"] < length["brief"] < length["patient"] < length["careful"]


# --- by hand -------------------------------------------------------------------------------------------------------


class Slipping(Narrator):
    """Writes every result down too large by one, where it may slip at all."""

    def written(self, value: int) -> int:
        return value + 1 if self.slip_rate else value


def narrator(temperament: Temperament, cls: type[Narrator] = Narrator, **rates: float) -> Narrator:
    return cls(random.Random(0), "en", temperament, **{"slip_rate": 0.0, **rates})


def test_working_out_by_hand() -> None:
    expression = parse("3*5+8-(9-2)")
    assert work_out(expression, narrator("patient")) == (16, "3*5=15, 15+8=23, 9-2=7, 23-7=16")
    # a slip carries on: 16, 16 + 8 + 1 = 25, 8, 25 - 8 + 1 = 18
    slipping = narrator("patient", Slipping, slip_rate=1.0)
    assert work_out(expression, slipping) == (18, "3*5=16, 16+8=25, 9-2=8, 25-8=18")
    assert work_out(7, narrator("patient")) == (7, "")


def test_the_careful_find_their_slips_and_mend_them() -> None:
    expression = parse("2+3")
    slipped = calculate(expression, narrator("patient", Slipping, slip_rate=1.0))
    assert slipped.answer == "6"
    mended = calculate(expression, narrator("careful", Slipping, slip_rate=1.0))
    assert mended.answer == "5"
    assert "2+3=6" in mended.thinking
    assert "check: 2+3=5 " in mended.thinking
    assert any(mended.thinking.endswith(word) for word in WORDS["en"]["slip"])
    sure = calculate(expression, narrator("careful"))
    assert any(sure.thinking.endswith(word) for word in WORDS["en"]["fine"])


def test_a_search_takes_the_first_that_fits() -> None:
    attempts = [Attempt(text, parse(text)) for text in ("1+2", "1*2", "2-1", "2*1")]
    trace = search(attempts, 2, narrator("patient", give_up_rate=0.0, switch_rate=0.0))
    assert trace.answer == "1*2"
    assert re.fullmatch(r".*: 1\+2=3 no\. 1\*2=2 yes", trace.thinking)
    # nobody slips into believing a wrong attempt who checks it
    wrong = search([Attempt("1+2", parse("1+2"))], 4, narrator("careful", Slipping, slip_rate=1.0))
    assert "1+2=4 yes. check: 1+2=3 " in wrong.thinking
    assert any(word in wrong.thinking for word in WORDS["en"]["slip"])
    believed = search([Attempt("1+2", parse("1+2"))], 4, narrator("patient", Slipping, slip_rate=1.0))
    assert believed.thinking.endswith("1+2=4 yes")


def test_the_hasty_and_the_brief_stop_early() -> None:
    attempts = [Attempt(f"{n}+0", parse(f"{n}+0")) for n in range(30)]
    for seed in range(20):
        hasty = search(attempts, 29, Narrator(random.Random(seed), "en", "hasty"))
        assert "=" not in hasty.thinking
        brief = search(attempts, -1, Narrator(random.Random(seed), "en", "brief"))
        assert 1 <= brief.thinking.count("=") <= 3
        assert brief.thinking.endswith(WORDS["en"]["enough"])


def test_slips_are_as_rare_as_they_are_said_to_be() -> None:
    speaker = Narrator(random.Random(1), "en", "patient", slip_rate=0.2)
    written = [speaker.written(50) for _ in range(5000)]
    assert {w - 50 for w in written} == {0, -10, -2, -1, 1, 2, 10}
    assert sum(w != 50 for w in written) / 5000 == pytest.approx(0.2, abs=0.02)


def test_parts_by_hand() -> None:
    parts = [("a: ", "x"), ("b: ", "y")]
    patient = spell(parts, "-", lambda _: "?", narrator("patient"))
    assert (patient.thinking.endswith("a: x, b: y"), patient.answer) == (True, "x-y")
    slipped = spell(parts, "-", lambda _: "?", narrator("patient", slip_rate=1.0))
    assert (slipped.thinking.endswith("a: ?, b: ?"), slipped.answer) == (True, "?-?")
    careful = spell(parts, "-", lambda _: "?", narrator("careful", slip_rate=1.0))
    assert careful.answer == "x-y"
    assert "a: ?, b: ?. check: a: x, b: y " in careful.thinking


# --- languages -----------------------------------------------------------------------------------------------------

HAN = re.compile("[一-鿿]")
LATIN_WORD = re.compile("[A-Za-z]{2,}")


@pytest.mark.parametrize("temperament", TEMPERAMENTS)
@pytest.mark.parametrize(("language", "foreign"), [("en", HAN), ("zh", LATIN_WORD)])
def test_a_trace_keeps_the_prompts_language_until_it_turns(
    language: str, foreign: re.Pattern[str], temperament: Temperament
) -> None:
    own = LATIN_WORD if language == "en" else HAN
    mixed = 0
    for seed in range(60):
        problem = make_problem("countdown", 1, seed, language)
        assert not foreign.search(narrate(problem, temperament, seed, switch_rate=0.0).thinking)
        assert own.search(narrate(problem, temperament, seed, switch_rate=0.0).thinking)
        mixed += bool(foreign.search(narrate(problem, temperament, seed, switch_rate=1.0).thinking))
    # only what is long turns
    assert (mixed > 10) == (temperament in ("patient", "careful"))


def test_both_languages_have_the_same_words() -> None:
    assert WORDS["en"].keys() == WORDS["zh"].keys()
    assert all(HAN.search(word) for words in WORDS["zh"].values() for word in words)
    assert not any(HAN.search(word) for words in WORDS["en"].values() for word in words)


# --- candidates ----------------------------------------------------------------------------------------------------


def reachable(given: tuple[int, int, int]) -> set[int]:
    """Values of all expressions of all three numbers with sums, differences and products, by brute force."""
    found = set()
    for a, b, c in itertools.permutations(given):
        for first, second in itertools.product(OPERATIONS.values(), repeat=2):
            found |= {second(first(a, b), c), second(c, first(a, b))}
    return found


@given(st.tuples(*[st.integers(1, 30)] * 3))
def test_the_attempts_reach_all_that_can_be_reached(given_: tuple[int, int, int]) -> None:
    attempts = countdown_attempts(given_)
    values = {evaluate(a.expression) for a in attempts}
    assert {v for v in reachable(given_) if 0 < v <= LARGEST_VALUE} <= values
    assert max(values, default=0) <= LARGEST_VALUE
    for attempt in attempts:
        assert sorted(numbers(attempt.expression)) == sorted(given_)
        assert value(parse(attempt.answer)) == Fraction(evaluate(attempt.expression))
    # the larger first: nothing negative is ever written
    assert min(values, default=0) >= 0


def test_groupings_by_hand() -> None:
    found = {a.answer: evaluate(a.expression) for a in groupings("2+3*4")}
    assert found == {"2+3*4": 14, "(2+3)*4": 20}
    # four terms: the Catalan number 5
    assert len(groupings("9-4-2-1")) == 5
    assert sorted(evaluate(a.expression) for a in groupings("9-4-2-1")) == [2, 4, 6, 6, 8]
    # what cannot be written is left out: 90+180 and 180*2
    assert groupings("90+90*2") == []
