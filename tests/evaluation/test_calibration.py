"""What a reward model is worth: hand-worked figures, and a model that only counts tokens is found out."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.evaluation.calibration import (
    HeldOutPair,
    HeldOutReply,
    brier_score,
    calibration_error,
    pair_figures,
    rank_correlation,
    reply_figures,
    sigmoid,
)
from ponder.evaluation.metrics import Estimate, clustered_proportion, proportion_interval


def value(figure: Estimate | float) -> float:
    return figure.value if isinstance(figure, Estimate) else figure


def pairs_scored(score: int, seed: int = 0) -> list[HeldOutPair]:
    """Pairs whose chosen reply is the longer one; the score is `score` times the length."""
    rng = random.Random(seed)
    pairs = []
    for number in range(40):
        shorter = rng.randint(1, 20)
        longer = shorter + rng.randint(1, 20)
        pairs.append(HeldOutPair(f"prompt {number}", 0.1 * score * longer, 0.1 * score * shorter, longer, shorter))
    return pairs


def test_where_length_alone_decides_the_length_bias_is_one() -> None:
    figures = {name: value(f) for name, f in pair_figures(pairs_scored(1)).items()}
    assert figures["length/correlation"] == pytest.approx(1.0)
    assert figures["length/longer_wins"] == figures["length/longer_chosen"] == 1.0
    assert figures["accuracy/mean"] == figures["accuracy/chosen_longer"] == 1.0
    assert math.isnan(figures["accuracy/chosen_shorter"])


def test_a_score_of_the_wrong_sign_is_wrong_everywhere() -> None:
    figures = {name: value(f) for name, f in pair_figures(pairs_scored(-1)).items()}
    assert figures["length/correlation"] == pytest.approx(-1.0)
    assert figures["length/longer_wins"] == 0.0
    assert figures["accuracy/mean"] == 0.0
    assert figures["calibration/error"] > 0.5
    assert figures["calibration/brier"] > 0.25


def test_pair_figures_by_hand() -> None:
    pairs = [
        HeldOutPair("a", math.log(3), 0.0, 5, 3),  # right with 3/4, the chosen one longer
        HeldOutPair("a", 0.0, math.log(3), 2, 4),  # wrong with 3/4, the chosen one shorter
        HeldOutPair("b", 0.0, 0.0, 3, 3),  # undecided, and as long
        HeldOutPair("c", math.log(9), 0.0, 1, 2),  # right with 9/10, the chosen one shorter
    ]
    figures = {name: value(f) for name, f in pair_figures(pairs).items()}
    assert figures["accuracy/mean"] == 0.5
    assert figures["accuracy/chosen_longer"] == 1.0
    assert figures["accuracy/chosen_shorter"] == 0.5
    # bins: two at 0.75 of which one is right, one at 0.5 that is wrong, one at 0.9 that is right
    assert figures["calibration/error"] == pytest.approx((2 * 0.25 + 0.5 + 0.1) / 4)
    assert figures["calibration/brier"] == pytest.approx((0.25**2 + 0.75**2 + 0.5**2 + 0.1**2) / 4)
    assert figures["length/longer_wins"] == pytest.approx(2 / 3)
    assert figures["length/longer_chosen"] == pytest.approx(1 / 3)


def test_reply_figures_by_hand() -> None:
    replies = [
        HeldOutReply("a", math.log(3), True, 9),
        HeldOutReply("a", -math.log(3), False, 1),
        HeldOutReply("b", math.log(3), False, 7),
        HeldOutReply("c", 0.0, True, 3),  # exactly at the threshold of 0.5: not safe
    ]
    figures = {name: value(f) for name, f in reply_figures(replies).items()}
    assert figures["accuracy/mean"] == 0.5
    assert figures["accuracy/safe"] == figures["accuracy/unsafe"] == 0.5
    # bins: 0.75 twice with one safe, 0.25 with none, 0.5 with one
    assert figures["calibration/error"] == pytest.approx((2 * 0.25 + 0.25 + 0.5) / 4)
    assert figures["calibration/brier"] == pytest.approx((0.0625 + 0.0625 + 0.5625 + 0.25) / 4)
    assert figures["length/correlation"] == pytest.approx(0.9486832980505138)  # of ranks 2.5, 0, 2.5, 1 and 3, 0, 2, 1
    assert figures["length/correlation_labels"] > 0


def test_calibrated_predictions_have_no_error() -> None:
    assert calibration_error([0.25] * 4 + [1.0, 0.0], [True, False, False, False, True, False]) == pytest.approx(0)
    assert calibration_error([1.0], [False]) == 1.0
    assert brier_score([1.0, 0.0], [True, False]) == 0.0


def test_rank_correlation_of_what_never_varies_is_unknown() -> None:
    assert math.isnan(rank_correlation([1.0, 1.0], [1.0, 2.0]))


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=20))
def test_rank_correlation_is_symmetric_bounded_and_blind_to_scale(points: list[tuple[int, int]]) -> None:
    x, y = ([float(p[i]) for p in points] for i in (0, 1))
    found = rank_correlation(x, y)
    if not math.isnan(found):
        assert -1 - 1e-9 <= found <= 1 + 1e-9
        assert found == pytest.approx(rank_correlation(y, x))
        assert found == pytest.approx(rank_correlation([math.exp(v / 10) for v in x], y))
        assert found == pytest.approx(-rank_correlation([-v for v in x], y))


@pytest.mark.parametrize("x", [-1000.0, 0.0, 1000.0])
def test_sigmoid_never_overflows(x: float) -> None:
    assert sigmoid(x) + sigmoid(-x) == pytest.approx(1)


# --- shares of clusters ----------------------------------------------------------------------------------------------


def test_clusters_of_one_are_independent() -> None:
    outcomes = [True] * 30 + [False] * 20
    clustered = clustered_proportion([[outcome] for outcome in outcomes])
    assert clustered.value == 0.6
    plain = proportion_interval([float(outcome) for outcome in outcomes], 1)
    # n / (n - 1) of the variance makes it a hair wider
    assert clustered.low == pytest.approx(plain.low, abs=0.002)
    assert clustered.high == pytest.approx(plain.high, abs=0.002)


def test_outcomes_that_always_agree_count_once() -> None:
    alike = clustered_proportion([[i % 2 == 0] * 4 for i in range(40)])
    once = clustered_proportion([[i % 2 == 0] for i in range(40)])
    mixed = clustered_proportion([[i % 2 == 0, i % 2 == 1] * 2 for i in range(40)])
    assert alike.value == once.value == mixed.value == 0.5
    assert alike.high - alike.low == pytest.approx(once.high - once.low, rel=0.02)
    assert mixed.high - mixed.low < 0.6 * (once.high - once.low)


def test_no_interval_collapses() -> None:
    assert clustered_proportion([[True, True]] * 20).low < 0.9
    assert clustered_proportion([[True]]).low < 0.1
    with pytest.raises(ValueError, match="cluster"):
        clustered_proportion([[True], []])


def test_the_interval_covers_the_truth() -> None:
    """Prompts of unequal size and difficulty: about 19 of 20 intervals hold the share of all prompts."""
    rng = random.Random(1)
    hits = 0
    for _ in range(400):
        clusters = []
        for _ in range(60):
            p = rng.choice((0.4, 0.8, 1.0))  # the mean over outcomes is 2.2 / 3
            clusters.append([rng.random() < p for _ in range(rng.randint(1, 4))])
        found = clustered_proportion(clusters)
        hits += found.low <= 2.2 / 3 <= found.high
    assert 0.92 <= hits / 400 <= 0.985
