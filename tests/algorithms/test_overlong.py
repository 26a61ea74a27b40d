"""The soft overlong penalty: worked by hand."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from ponder.algorithms.overlong import soft_overlong_penalty


def test_by_hand() -> None:
    # limit 100, ramp of 20: free up to 80, then -(n - 80) / 20
    lengths = torch.tensor([[1, 80, 81, 90], [99, 100, 101, 500]])
    expected = torch.tensor([[0.0, 0.0, -0.05, -0.5], [-0.95, -1.0, -1.0, -1.0]])
    assert_close(soft_overlong_penalty(lengths, max_tokens=100, soft_tokens=20), expected)


def test_off() -> None:
    penalty = soft_overlong_penalty(torch.tensor([1, 100, 101]), max_tokens=100, soft_tokens=0)
    assert penalty.tolist() == [0.0, 0.0, 0.0]
    assert penalty.dtype == torch.float32
