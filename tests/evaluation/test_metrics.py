"""Accuracy and its intervals: values worked by hand, and properties that any honest interval has."""

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.evaluation.metrics import (
    cons_at_k,
    mean_over_problems,
    paired_difference,
    pass_at_1,
    pass_at_k,
    proportion_interval,
    student_quantile,
)


@st.composite
def tables(draw: st.DrawFn) -> list[list[bool]]:
    n, k = draw(st.integers(1, 12)), draw(st.integers(1, 8))
    return draw(st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=n, max_size=n))


# --- pass@1 --------------------------------------------------------------------------------------------------------


def test_pass_at_1_by_hand() -> None:
    # p = (1 + 0.5 + 0 + 0.5) / 4 = 0.5; the mean's variance is 1/24 against 1/32 of 8 independent draws, so rho is
    # measured as 4/3 - 1 = 1/3; the rarer outcome was seen 4 times: rho = (4/3 + 1) / 5 = 7/15, size = 8 / (22/15)
    size = 60 / 11
    estimate = pass_at_1([[True, True], [True, False], [False, False], [False, True]])
    z = 3.182446  # Student, 3 degrees of freedom
    half = z / (1 + z * z / size) * math.sqrt(0.25 / size + z * z / (4 * size**2))
    assert estimate.value == 0.5
    assert estimate.low == pytest.approx(0.5 - half, abs=1e-3)
    assert estimate.high == pytest.approx(0.5 + half, abs=1e-3)


def test_samples_of_alike_problems_do_not_count_as_independent() -> None:
    """64 copies of the same verdict teach no more than one."""
    once = [[i % 3 == 0] for i in range(30)]
    copied = [row * 64 for row in once]
    copies, alone = pass_at_1(copied), pass_at_1(once)
    assert (copies.value, copies.low, copies.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_samples_of_equally_hard_problems_do_count() -> None:
    few, many = pass_at_1([[True, False]] * 30), pass_at_1([[True, False] * 8] * 30)
    assert many.high - many.low < 0.5 * (few.high - few.low)


@pytest.mark.parametrize("outcome", [False, True])
def test_interval_does_not_collapse_at_the_ends(outcome: bool) -> None:
    estimate = pass_at_1([[outcome] * 16] * 20)
    assert estimate.value == float(outcome)
    # Wilson at 0 of n is z^2 / (n + z^2); Student's quantile with 19 degrees of freedom is 2.0930
    width = 2.0930**2 / (20 + 2.0930**2)
    assert estimate.high - estimate.low == pytest.approx(width, abs=1e-4)
    assert width == pytest.approx(0.18, abs=0.01)  # as the docstring says


@given(tables())
def test_pass_at_1_is_the_mean_and_lies_in_its_interval(table: list[list[bool]]) -> None:
    estimate = pass_at_1(table)
    assert estimate.value == pytest.approx(fmean(c for row in table for c in row))
    assert 0.0 <= estimate.low <= estimate.value <= estimate.high <= 1.0
    assert estimate.high - estimate.low > 0.01


@given(tables())
def test_pass_at_1_mirrors(table: list[list[bool]]) -> None:
    estimate, mirrored = pass_at_1(table), pass_at_1([[not c for c in row] for row in table])
    assert mirrored.value == pytest.approx(1 - estimate.value)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - estimate.high, 1 - estimate.low))


@pytest.mark.parametrize(("rate", "concentration"), [(0.3, 1.0), (0.05, 3.0), (0.02, 2.0), (0.9, 1.0)])
def test_interval_covers_as_often_as_it_says(rate: float, concentration: float) -> None:
    """24 problems of different hardness, 8 samples each: 95 % of the intervals hold the truth, also near 0 and 1."""
    rng = random.Random(0)
    covered = 0
    for _ in range(600):
        rates = [rng.betavariate(rate * concentration, (1 - rate) * concentration) for _ in range(24)]
        estimate = proportion_interval([sum(rng.random() < r for _ in range(8)) / 8 for r in rates], 8)
        covered += estimate.low <= rate <= estimate.high
    assert 0.935 <= covered / 600 <= 0.995


def test_one_mixed_problem_is_no_proof_that_all_are() -> None:
    """One right sample among 192 of 12 problems: its interval keeps more than half the width of none right at all."""
    none, one = [[False] * 16] * 12, [[True] + [False] * 15, *[[False] * 16] * 11]
    assert pass_at_1(none).high > pass_at_1(one).high > pass_at_1(none).high / 2


def test_empty_and_ragged_tables_are_refused() -> None:
    for table in ([], [[]], [[True], [True, False]]):
        with pytest.raises(ValueError, match="same number of samples"):
            pass_at_1(table)


# --- pass@k --------------------------------------------------------------------------------------------------------


def test_pass_at_k_by_hand() -> None:
    # of 4 samples 1 and 2 are right: 1 - C(3,2)/C(4,2) = 1/2 and 1 - C(2,2)/C(4,2) = 5/6
    table = [[True, False, False, False], [True, True, False, False]]
    assert pass_at_k(table, 2).value == pytest.approx((1 / 2 + 5 / 6) / 2)


def test_pass_at_k_is_unbiased() -> None:
    """Over all tables of a coin with rate 0.3, the estimate's mean is 1 - 0.7^3."""
    total = 0.0
    for bits in range(2**5):
        row = [bool(bits >> i & 1) for i in range(5)]
        total += 0.3 ** sum(row) * 0.7 ** (5 - sum(row)) * pass_at_k([row], 3).value
    assert total == pytest.approx(1 - 0.7**3)


@given(tables())
def test_pass_at_k_rises_from_pass_at_1_to_any(table: list[list[bool]]) -> None:
    values = [pass_at_k(table, k).value for k in range(1, len(table[0]) + 1)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(pass_at_1(table).value)
    assert values[-1] == pytest.approx(fmean(any(row) for row in table))


def test_pass_at_k_needs_k_samples() -> None:
    with pytest.raises(ValueError, match="at least 3 samples"):
        pass_at_k([[True, True]], 3)


# --- cons@k --------------------------------------------------------------------------------------------------------


def test_the_vote_beats_the_single_sample() -> None:
    votes = [["7", "7", "3", None]]
    assert cons_at_k(votes, [[True, True, False, False]]).value == 1.0


def test_ties_earn_their_expected_value() -> None:
    votes = [["a", "b", "a", "b"], ["a", "b", "c", None]]
    correct = [[True, False, True, False], [False, False, True, False]]
    assert cons_at_k(votes, correct).value == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_abstentions_never_win() -> None:
    assert cons_at_k([[None, None, "a"]], [[False, False, True]]).value == 1.0
    assert cons_at_k([[None, None]], [[False, False]]).value == 0.0


@given(st.lists(st.sampled_from(["right", "wrong", "other", None]), min_size=1, max_size=9), st.randoms())
def test_cons_does_not_depend_on_order(votes: list[str | None], rng: random.Random) -> None:
    def credit(row: list[str | None]) -> float:
        return cons_at_k([row], [[vote == "right" for vote in row]]).value

    shuffled = rng.sample(votes, len(votes))
    assert credit(shuffled) == credit(votes)


def test_one_vote_is_pass_at_1() -> None:
    votes, correct = [["a"], ["b"], [None]], [[True], [False], [False]]
    assert cons_at_k(votes, correct).value == pytest.approx(pass_at_1(correct).value)


def test_cons_refuses_tables_of_different_shape() -> None:
    with pytest.raises(ValueError, match="same shape"):
        cons_at_k([["a"]], [[True, False]])


# --- differences and means -----------------------------------------------------------------------------------------


def test_paired_difference_by_hand() -> None:
    # differences 1, 0, 0, -1 and the two added ones 1, -1: variance 4/5, over 6; Student with 5 degrees 2.5706
    a, b = [[True], [True], [False], [False]], [[False], [True], [False], [True]]
    estimate = paired_difference(a, b)
    assert estimate.value == 0.0
    assert estimate.high == pytest.approx(2.5706 * math.sqrt(4 / 5 / 6), abs=1e-3)
    assert estimate.low == pytest.approx(-estimate.high)


def test_paired_difference_has_the_sign_of_first_minus_second() -> None:
    better, worse = [[True, True]] * 10, [[True, False]] * 10
    assert paired_difference(better, worse).value == 0.5
    assert paired_difference(worse, better).value == -0.5


def test_pairing_takes_the_problems_hardness_out() -> None:
    """Half the problems are easy for both; on the others one model is better by a quarter."""
    a = [[True] * 4] * 20 + [[True, False, False, False]] * 20
    b = [[True] * 4] * 20 + [[False] * 4] * 20
    paired, alone = paired_difference(a, b), pass_at_1(a)
    assert paired.low > 0
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_agreement_everywhere_is_not_certainty() -> None:
    same = [[True] * 16] * 20
    estimate = paired_difference(same, same)
    assert estimate.value == 0.0
    assert estimate.low < -0.01 < 0.01 < estimate.high


@given(tables())
def test_paired_difference_is_antisymmetric(table: list[list[bool]]) -> None:
    other = [list(reversed(row)) for row in reversed(table)]
    forth, back = paired_difference(table, other), paired_difference(other, table)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert -1 <= forth.low <= forth.value <= forth.high <= 1


def test_paired_difference_needs_the_same_problems() -> None:
    with pytest.raises(ValueError, match="same problems"):
        paired_difference([[True]], [[True], [False]])


def test_mean_over_problems_by_hand() -> None:
    # problem means 10, 20, 30: variance 100, over 3; Student with 2 degrees 4.3027
    estimate = mean_over_problems([[5, 15], [20, 20], [25, 35]])
    assert estimate.value == 20
    assert estimate.high - 20 == pytest.approx(4.302653 * math.sqrt(100 / 3))
    assert estimate.low - 20 == pytest.approx(-4.302653 * math.sqrt(100 / 3))
    assert mean_over_problems([[3.0, 5.0]]).high == math.inf


def test_one_problem_says_little() -> None:
    estimate = proportion_interval([0.5], 16)
    assert (estimate.low, estimate.high) == pytest.approx((0.0, 1.0), abs=0.2)


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (63, 1.99834), (10**6, 1.95997)],
)
def test_student_quantile(degrees: int, quantile: float) -> None:
    assert student_quantile(degrees) == pytest.approx(quantile, rel=2e-3)
