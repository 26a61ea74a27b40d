"""Importance weights: worked by hand for every mode."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from ponder.algorithms.importance import importance_weights

# token weights 4, 0.5 and 0.25; whole outputs 4 * 0.5 = 2 and 0.25
TRAIN = torch.tensor([log(0.8), log(0.1), log(0.2)], dtype=torch.float64, requires_grad=True)
SAMPLER = torch.tensor([log(0.2), log(0.2), log(0.8)], dtype=torch.float64)
IDS = torch.tensor([0, 0, 1])


@pytest.mark.parametrize(
    ("mode", "expected", "cut"),
    [
        ("none", [1.0, 1.0, 1.0], [False, False, False]),
        ("token_truncate", [3.0, 0.5, 0.25], [True, False, False]),
        ("sequence_truncate", [2.0, 2.0, 0.25], [False, False, False]),
        ("token_mask", [0.0, 0.5, 0.0], [True, False, True]),
        ("sequence_mask", [2.0, 2.0, 0.0], [False, False, True]),
    ],
)
def test_by_hand(mode: Any, expected: list[float], cut: list[bool]) -> None:
    weights, bounded = importance_weights(TRAIN, SAMPLER, IDS, 2, mode, cap=3.0, floor=0.4)
    assert bounded.tolist() == cut
    assert_close(weights, torch.tensor(expected, dtype=torch.float64))
    assert not weights.requires_grad


def test_sequence_truncation_caps_the_product_and_not_its_factors() -> None:
    weights, bounded = importance_weights(TRAIN, SAMPLER, IDS, 2, "sequence_truncate", cap=1.5)
    assert bounded.tolist() == [True, True, False]
    assert_close(weights, torch.tensor([1.5, 1.5, 0.25], dtype=torch.float64))


def test_the_bounds_themselves_are_kept() -> None:
    train = torch.tensor([log(2.0), log(0.5)], dtype=torch.float64)
    weights, bounded = importance_weights(
        train, torch.zeros(2).double(), torch.tensor([0, 1]), 2, "token_mask", cap=2.0, floor=0.5
    )
    assert_close(weights, torch.tensor([2.0, 0.5], dtype=torch.float64))
    assert not bounded.any()


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate", "token_mask", "sequence_mask"])
def test_agreeing_probabilities_need_no_correction(mode: Any) -> None:
    assert (importance_weights(SAMPLER, SAMPLER, IDS, 2, mode).weights == 1).all()


def test_a_weight_beyond_floating_point_stays_bounded() -> None:
    train = torch.tensor([0.0, 0.0, 0.0])
    sampler = torch.tensor([-500.0, -500.0, 0.0])
    assert importance_weights(train, sampler, IDS, 2, "sequence_truncate").weights.tolist() == [2.0, 2.0, 1.0]
    assert importance_weights(train, sampler, IDS, 2, "sequence_mask").weights.tolist() == [0.0, 0.0, 1.0]
