"""Losses of reward models against values and gradients worked by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.algorithms.preference import pairwise_loss, pointwise_loss

SCORES = st.lists(st.tuples(st.floats(-30, 30), st.floats(-30, 30)), min_size=1, max_size=6)


def leaf(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def test_pairwise_loss_and_gradient() -> None:
    """Differences 0 and ln 3: sigmoids 1/2 and 3/4, losses ln 2 and ln 4/3; d loss / d difference = sigmoid - 1."""
    chosen, rejected = leaf(2.0, math.log(3)), leaf(2.0, 0.0)
    loss = pairwise_loss(chosen, rejected)
    assert float(loss.detach()) == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)
    loss.backward()
    assert chosen.grad is not None and rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.5 / 2, -0.25 / 2])
    assert rejected.grad.tolist() == pytest.approx([0.5 / 2, 0.25 / 2])


def test_a_margin_asks_for_that_much_more() -> None:
    chosen, rejected = leaf(2.0), leaf(1.0)
    loss = pairwise_loss(chosen, rejected, torch.tensor([1.0]))
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert float(loss.detach()) > float(pairwise_loss(chosen, rejected).detach())


def test_pointwise_loss_and_gradient() -> None:
    """Scores 0, ln 3, ln 3 with labels 1, 1, 0: losses ln 2, ln 4/3, ln 4; d loss / d score = sigmoid - label."""
    scores = leaf(0.0, math.log(3), math.log(3))
    loss = pointwise_loss(scores, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))
    assert float(loss.detach()) == pytest.approx((math.log(2) + math.log(4 / 3) + math.log(4)) / 3)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == pytest.approx([-0.5 / 3, -0.25 / 3, 0.75 / 3])


@given(SCORES)
def test_the_right_order_never_costs_more(pairs: list[tuple[float, float]]) -> None:
    high = torch.tensor([max(pair) for pair in pairs])
    low = torch.tensor([min(pair) for pair in pairs])
    assert float(pairwise_loss(high, low)) <= float(pairwise_loss(low, high))
    assert math.isfinite(float(pairwise_loss(low * 1000, high * 1000)))
