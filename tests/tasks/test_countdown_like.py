"""Countdown and parentheses: hand-worked answers, and each way of being wrong."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.tasks.base import Problem
from ponder.tasks.countdown import TASK as COUNTDOWN
from ponder.tasks.parentheses import TASK as PARENTHESES
from ponder.verifiers.expressions import numbers, operators, parse, value

PROBLEM = Problem(
    task="countdown",
    prompt="Use 3, 5, 8 once each with + - * to make 16.",
    reference={"numbers": [3, 5, 8], "target": 16, "operators": "+-*"},
    content="3,5,8=16",
)
INSERT = Problem(
    task="parentheses",
    prompt="Insert parentheses into 3+5*2 so that it equals 16.",
    reference={"expression": "3+5*2", "target": 16},
    content="3+5*2=16",
)


@pytest.mark.parametrize("answer", ["3+5+8", "8 + (5+3)", "3+5+8=16", "3 + 8 + 5 = 16", "$3+5+8$", "（3+5）+8"])
def test_countdown_takes_any_spelling_of_a_right_answer(answer):
    assert COUNTDOWN.verify(answer, PROBLEM).correct


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("3+5+8=17", "after ="),
        ("3+5*8", "it makes 43"),
        ("8+8", "given ones"),
        ("3+5+8+3-3", "given ones"),
        ("3+5", "given ones"),
        ("16", "given ones"),
        ("35+8", "given ones"),
        ("5+3+8/1", "given ones"),
        ("3+5+08", "operator is missing"),
        ("3+5++8", "number is missing"),
        ("-(-3)+5+8", "number is missing"),
        ("3+5+8;", "no part"),
        ("3**5+8", "number is missing"),
        ("3^5+8", "no part"),
        ("３+5+8", "no part"),
        ("3+5+8=16=16", "no part"),
        ("(3+5+8", "never closed"),
        ("3+5+8)", "never opened"),
    ],
)
def test_countdown_says_what_is_wrong(answer, why):
    verdict = COUNTDOWN.verify(answer, PROBLEM)
    assert not verdict.correct
    assert why in verdict.why


def test_countdown_allows_division_only_where_the_problem_does():
    problem = Problem("countdown", "", {"numbers": [8, 2, 3], "target": 12, "operators": "+-*"}, "2,3,8=12")
    free = Problem("countdown", "", {"numbers": [8, 2, 3], "target": 12, "operators": "+-*/"}, "2,3,8=12")
    for answer in ("8/2*3", "8/(2/3)", "3*8÷2"):
        assert not COUNTDOWN.verify(answer, problem).correct
        assert COUNTDOWN.verify(answer, free).correct
    assert "divides by zero" in COUNTDOWN.verify("8/(2-2)", free).why


def test_countdown_votes_by_structure():
    keys = {COUNTDOWN.vote_key(answer, PROBLEM) for answer in ("3+5+8", "8+(3+5)", "(8+3)+5=16", "5+8+3")}
    assert len(keys) == 1
    assert COUNTDOWN.vote_key("8*(5-3)", PROBLEM) not in keys
    assert COUNTDOWN.vote_key("(5-3)*8", PROBLEM) == COUNTDOWN.vote_key("8*(5-3)", PROBLEM)
    assert COUNTDOWN.vote_key("three", PROBLEM) is None


@given(seed=st.integers(0, 2**32), difficulty=st.integers(1, 6))
@settings(max_examples=100, deadline=None)
def test_countdown_solutions_use_each_number_once_and_keep_small(seed, difficulty):
    reference = COUNTDOWN.generate(random.Random(seed), difficulty, "en").reference
    solution = parse(reference["solution"])
    assert sorted(numbers(solution)) == sorted(reference["numbers"])
    assert set(operators(solution)) <= set(reference["operators"])
    assert 1 <= reference["target"] == value(solution) <= (99 if difficulty <= 3 else 999)


def test_countdown_problems_differ_only_by_numbers_and_target():
    contents = [COUNTDOWN.generate(random.Random(seed), d, "en") for seed in range(300) for d in (3, 4)]
    for problem in contents:
        given_numbers = ",".join(map(str, sorted(problem.reference["numbers"])))
        assert problem.content == f"{given_numbers}={problem.reference['target']}"


@pytest.mark.parametrize("answer", ["(3+5)*2", "((3+5))*2", "( 3 + 5 ) * 2 = 16", "\\boxed{(3+5) \\times 2}"])
def test_parentheses_right(answer):
    assert PARENTHESES.verify(answer, INSERT).correct


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("3+5*2", "it equals 13"),
        ("2*(3+5)", "more than parentheses"),
        ("(3+5)*2+0", "more than parentheses"),
        ("(5+3)*2", "more than parentheses"),
        ("16", "more than parentheses"),
        ("3+(5)(2)", "operator is missing"),
        ("(3+5)*2=13", "after ="),
    ],
)
def test_parentheses_wrong(answer, why):
    verdict = PARENTHESES.verify(answer, INSERT)
    assert not verdict.correct
    assert why in verdict.why


def test_parentheses_are_always_needed():
    for seed, difficulty in itertools.product(range(100), range(1, 6)):
        reference = PARENTHESES.generate(random.Random(seed), difficulty, "en").reference
        assert value(parse(reference["expression"])) != reference["target"]
        assert len(numbers(parse(reference["expression"]))) == difficulty + 2
        assert 0 <= reference["target"] <= 99
