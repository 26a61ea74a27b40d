"""Token weights: worked by hand, with and without overlong filtering."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ponder.algorithms.weights import token_weights

LENGTHS = torch.tensor([2, 4])


def weights(aggregate: Any, keep: list[bool] | None = None, lengths: Tensor = LENGTHS) -> list[float]:
    mask = None if keep is None else torch.tensor(keep)
    result = token_weights(lengths, aggregate, max_tokens=10, keep=mask, dtype=torch.float64)
    assert result.dtype == torch.float64
    return result.tolist()


def test_sequence_mean() -> None:
    assert weights("sequence_mean") == [1 / (2 * 2), 1 / (2 * 4)]


def test_token_mean() -> None:
    assert weights("token_mean") == [1 / 6, 1 / 6]


def test_constant() -> None:
    assert weights("constant") == [1 / (2 * 10), 1 / (2 * 10)]


def test_filtered_sequences_weigh_nothing_and_leave_the_token_mean_only() -> None:
    keep = [True, False]
    assert weights("sequence_mean", keep) == [1 / (2 * 2), 0.0]
    assert weights("token_mean", keep) == [1 / 2, 0.0]
    assert weights("constant", keep) == [1 / (2 * 10), 0.0]


@pytest.mark.parametrize("aggregate", ["sequence_mean", "token_mean", "constant"])
def test_nothing_left_weighs_nothing(aggregate: Any) -> None:
    assert weights(aggregate, [False, False]) == [0.0, 0.0]


def test_a_mean_of_ones_is_one() -> None:
    lengths = torch.tensor([1, 7, 3, 30])
    for aggregate in ("sequence_mean", "token_mean"):
        total = torch.tensor(weights(aggregate, lengths=lengths)).double() @ lengths.double()
        assert_close(total.item(), 1.0)


def test_float32_by_default() -> None:
    assert token_weights(LENGTHS, "token_mean", 10).dtype == torch.float32
