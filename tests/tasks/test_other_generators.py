"""Arithmetic, decipher, transpose, candles: hand-worked answers."""

import random

import pytest

from ponder.tasks.arithmetic import TASK as ARITHMETIC
from ponder.tasks.base import Problem
from ponder.tasks.candles import TASK as CANDLES
from ponder.tasks.decipher import TASK as DECIPHER
from ponder.tasks.transpose import TASK as TRANSPOSE


def problem(task, **reference):
    return Problem(task.name, "", reference, "content")


SUM = problem(ARITHMETIC, expression="7+8*3-5", answer=26)


@pytest.mark.parametrize(
    ("answer", "correct"),
    [("26", True), ("26.", True), ("$26$", True), ("-26", False), ("7+8*3-5", False), ("26.0", False), ("25", False)],
)
def test_arithmetic(answer, correct):
    assert ARITHMETIC.verify(answer, SUM).correct is correct


def test_arithmetic_reads_signs_and_thousands():
    assert ARITHMETIC.vote_key("-1,234", SUM) == ARITHMETIC.vote_key("−1234", SUM) == "-1234"
    assert ARITHMETIC.vote_key("12,34", SUM) is None


def test_arithmetic_has_as_many_operations_as_its_difficulty():
    for difficulty in range(1, 9):
        expression = ARITHMETIC.generate(random.Random(difficulty), difficulty, "en").reference["expression"]
        assert sum(expression.count(sign) for sign in "+-*") == difficulty
        assert eval(expression) == ARITHMETIC.generate(random.Random(difficulty), difficulty, "en").reference["answer"]


def test_decipher_shifts_back_from_the_cipher_to_the_plain_text():
    drawn = DECIPHER.generate(random.Random(5), 1, "en").reference
    shift = (ord(drawn["enciphered"][0]) - ord(drawn["example"][0])) % 26
    assert 1 <= shift <= 3
    plain = "".join(chr((ord(letter) - ord("a") - shift) % 26 + ord("a")) for letter in drawn["message"])
    assert drawn["answer"] == plain


def test_decipher_substitutes_only_letters_that_the_example_shows():
    for seed in range(50):
        drawn = DECIPHER.generate(random.Random(seed), 3, "en").reference
        key = dict(zip(drawn["enciphered"], drawn["example"], strict=True))
        assert drawn["answer"] == "".join(key[letter] for letter in drawn["message"])


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("efg", True),
        ("e f g", True),
        ('"EFG".', True),
        ("e-f-g", True),
        ("fgh", False),
        ("efgh", False),
        ("e f 9", False),
    ],
)
def test_decipher(answer, correct):
    assert DECIPHER.verify(answer, problem(DECIPHER, answer="efg")).correct is correct


def test_transpose_turns_rows_into_columns():
    drawn = TRANSPOSE.generate(random.Random(1), 2, "en").reference
    rows, columns = (eval(drawn[key]) for key in ("matrix", "answer"))
    assert columns == [[row[i] for row in rows] for i in range(len(rows[0]))]
    assert {len(rows), len(columns)} == {2, 3}


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("[[1,3],[2,4]]", True),
        ("[ [1, 3],\n  [2, 4] ]", True),
        ("\\boxed{[[1,3],[2,4]]}", True),
        ("[[1,2],[3,4]]", False),
        ("[[1 3],[2,4]]", False),
        ("[[1,3],[2,4]", False),
        ("[1,3],[2,4]", False),
    ],
)
def test_transpose(answer, correct):
    assert TRANSPOSE.verify(answer, problem(TRANSPOSE, answer="[[1,3],[2,4]]")).correct is correct


def test_transpose_is_never_answered_by_the_question():
    for seed in range(500):
        drawn = TRANSPOSE.generate(random.Random(seed), 1, "en").reference
        assert drawn["matrix"] != drawn["answer"]


def test_the_longest_candle_was_blown_out_first():
    for seed in range(50):
        first = CANDLES.generate(random.Random(seed), 1, "en").reference
        order = CANDLES.generate(random.Random(seed), 2, "en").reference
        by_length = sorted("ABCD", key=lambda name: -first["left"]["ABCD".index(name)])
        assert first["left"] == order["left"]
        assert (first["answer"], order["answer"]) == (by_length[0], "".join(by_length))


def test_unlike_candles_are_ordered_by_the_time_they_burnt():
    for seed in range(50):
        drawn = CANDLES.generate(random.Random(seed), 5, "en").reference
        hours = [
            (start - left) / rate
            for start, left, rate in zip(*(drawn[k] for k in ("starts", "left", "rates")), strict=True)
        ]
        assert [hours["ABCD".index(name)] for name in drawn["answer"]] == sorted(hours)
        assert len(set(hours)) == 4


@pytest.mark.parametrize(
    ("answer", "correct"),
    [
        ("BAC", True),
        ("B, A, C", True),
        ("b > a > c", True),
        ("BCA", False),
        ("B", False),
        ("B A C D", False),
        ("I", False),
    ],
)
def test_candles(answer, correct):
    assert CANDLES.verify(answer, problem(CANDLES, answer="BAC")).correct is correct
    assert CANDLES.verify("Candle B.", problem(CANDLES, answer="B")).correct
