"""The reverse divergence: worked by hand, its gradient written out, its properties, and TRL's own."""

from __future__ import annotations

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ponder.algorithms.distillation import reverse_kl

ROWS = st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=8)


def logits(seed: int, rows: int = 5, size: int = 7) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    # token 1: student (3/4, 1/4), teacher (1/2, 1/2): 3/4 log 3/2 + 1/4 log 1/2
    # token 2: student (1/2, 1/2), teacher (3/4, 1/4): 1/2 log 2/3 + 1/2 log 2, which is another number
    student = torch.tensor([[log(3), 0.0], [5.0, 5.0]], dtype=torch.float64)
    teacher = torch.tensor([[1.0, 1.0], [log(0.75), log(0.25)]], dtype=torch.float64)
    expected = torch.tensor([0.13081204, 0.14384104], dtype=torch.float64)
    assert_close(reverse_kl(student, teacher), expected, rtol=0, atol=1e-8)


def test_the_gradient_written_out() -> None:
    """d KL / d z_j = p_j (log p_j - log q_j - KL), and nothing reaches a teacher that is not asked."""
    student, teacher = logits(0).requires_grad_(), logits(1)
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * reverse_kl(student, teacher)).sum(), student)
    p, q = student.detach().softmax(-1), teacher.softmax(-1)
    kl = (p * (p / q).log()).sum(-1, keepdim=True)
    assert_close(gradient, weights[:, None] * p * ((p / q).log() - kl))


def test_a_step_down_the_gradient_comes_closer() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    before = reverse_kl(student, teacher).sum()
    (gradient,) = torch.autograd.grad(before, student)
    assert reverse_kl(student.detach() - 0.1 * gradient, teacher).sum() < before


@given(ROWS, st.floats(-5, 5), st.floats(-5, 5))
def test_never_negative_and_zero_at_equality(row: list[tuple[float, float]], a: float, b: float) -> None:
    student, teacher = torch.tensor(row, dtype=torch.float64).T.unsqueeze(1)
    divergence = reverse_kl(student, teacher)
    assert divergence.item() >= -1e-12
    # a constant in the logits changes no probability
    assert_close(reverse_kl(student + a, teacher + b), divergence, rtol=1e-6, atol=1e-9)
    assert reverse_kl(student, student.clone()).item() == 0
    p, q = student.softmax(-1), teacher.softmax(-1)
    distance = 0.5 * (p - q).abs().sum()
    assert divergence.item() >= 2 * distance.item() ** 2 - 1e-9  # Pinsker: positive wherever the two differ


def test_half_precision_logits_get_float32() -> None:
    assert reverse_kl(logits(0).bfloat16(), logits(1).bfloat16()).dtype == torch.float32


def test_equals_trl() -> None:
    gkd = pytest.importorskip("trl.experimental.gkd", reason="TRL is the peer of this comparison")
    student, teacher = logits(2).requires_grad_(), logits(3)
    labels = torch.tensor([[4, -100, 2, 1, -100]])
    kept = labels[0] != -100
    theirs = gkd.GKDTrainer.generalized_jsd_loss(student[None], teacher[None], labels, beta=1, reduction="sum")
    ours = reverse_kl(student[kept], teacher[kept]).sum()
    assert_close(ours, theirs)
    assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)))
