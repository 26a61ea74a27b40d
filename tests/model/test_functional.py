"""The hand-written backward passes against torch's own functions and against finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.model.functional import rms_norm, swiglu


def normal(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values.requires_grad_()


def torch_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def test_swiglu_by_hand() -> None:
    # silu(0) = 0; silu(1) = 1 / (1 + e^-1) = 0.731059
    found = swiglu(torch.tensor([[0.0, 1.0, 5.0, 2.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.462117]]))


def test_rms_norm_by_hand() -> None:
    # mean of squares (9 + 16) / 2 = 12.5, and 12.5 + 3.5 = 4^2
    found = rms_norm(torch.tensor([[3.0, -4.0]]), torch.tensor([1.0, 10.0]), 3.5)
    torch.testing.assert_close(found, torch.tensor([[0.75, -10.0]]))


@pytest.mark.parametrize("shape", [(1, 6), (7, 6), (5, 3, 6)])
def test_values_and_gradients_equal_torchs(shape: tuple[int, ...]) -> None:
    x, weight = normal(*shape), normal(6, seed=1)
    pairs: list[tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (swiglu, torch_swiglu, (x,)),
        (lambda x, w: rms_norm(x, w, 1e-2), lambda x, w: F.rms_norm(x, (6,), w, 1e-2), (x, weight)),
    ]
    for ours, theirs, inputs in pairs:
        found, expected = ours(*inputs), theirs(*inputs)
        torch.testing.assert_close(found, expected)
        grad = normal(*found.shape, seed=2).detach()
        for a, b in zip(
            torch.autograd.grad(found, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
        ):
            torch.testing.assert_close(a, b)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(swiglu, (normal(3, 8),))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (normal(3, 5), normal(5, seed=1)))
