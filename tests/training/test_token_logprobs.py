"""Chunked log-probabilities and entropies: values and gradients are those of autograd over all logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ponder.training import logprobs as module
from ponder.training.logprobs import row_chunks, token_logprobs


def random_case(rows: int = 11, size: int = 5, vocabulary: int = 13) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, size, dtype=torch.float64, generator=generator).requires_grad_()
    head = torch.randn(vocabulary, size, dtype=torch.float64, generator=generator).requires_grad_()
    return hidden, head, torch.randint(vocabulary, (rows,), generator=generator)


def plain(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    log_p = (hidden @ head.T / temperature).log_softmax(-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1)


def test_by_hand() -> None:
    # logits (log 3, 0) at temperature 1: probabilities 3/4 and 1/4
    hidden, head = torch.tensor([[math.log(3)]]), torch.tensor([[1.0], [0.0]])
    logprobs, entropies = token_logprobs(hidden, head, torch.tensor([1]), with_entropy=True)
    assert float(logprobs) == pytest.approx(math.log(1 / 4))
    assert float(entropies) == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    # at temperature 1/2 they go as the squares: 9/10 and 1/10
    logprobs, _ = token_logprobs(hidden, head, torch.tensor([0]), temperature=0.5)
    assert float(logprobs) == pytest.approx(math.log(0.9))


@pytest.mark.parametrize("chunk_rows", [1, 4, 11, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("entropy_weight", [None, 0.0, 0.7])
def test_values_and_gradients_equal_autograd(
    monkeypatch: pytest.MonkeyPatch, chunk_rows: int, temperature: float, entropy_weight: float | None
) -> None:
    hidden, head, targets = random_case()
    monkeypatch.setattr(module, "_CHUNK_LOGITS", chunk_rows * head.shape[0])
    weights = torch.randn(2, len(targets), dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(logprobs: Tensor, entropies: Tensor) -> Tensor:
        return (weights[0] * logprobs).sum() + (entropy_weight or 0.0) * (weights[1] * entropies).sum()

    found = token_logprobs(hidden, head, targets, temperature, with_entropy=entropy_weight is not None)
    expected = plain(hidden, head, targets, temperature)
    torch.testing.assert_close(found[0], expected[0])
    if entropy_weight is None:
        assert not found[1].any()
    else:
        torch.testing.assert_close(found[1], expected[1])
    for a, b in zip(
        torch.autograd.grad(loss(*found), (hidden, head)),
        torch.autograd.grad(loss(*expected), (hidden, head)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    hidden, head, targets = random_case(rows=3, vocabulary=6)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets, 0.8, with_entropy=True), (hidden, head))


def test_half_precision_models_get_float32() -> None:
    hidden, head, targets = random_case()
    half = hidden.detach().bfloat16().requires_grad_(), head.detach().bfloat16().requires_grad_()
    logprobs, _ = token_logprobs(*half, targets)
    assert logprobs.dtype == torch.float32
    logprobs.sum().backward()
    assert half[0].grad is not None
    assert half[0].grad.dtype == torch.bfloat16


def test_no_rows_are_no_problem() -> None:
    hidden, head, targets = random_case()
    logprobs, entropies = token_logprobs(hidden[:0], head, targets[:0], with_entropy=True)
    assert logprobs.shape == entropies.shape == (0,)


def test_a_frozen_head_gets_no_gradient_and_changes_no_other() -> None:
    hidden, head, targets = random_case()
    expected = torch.autograd.grad(token_logprobs(hidden, head, targets)[0].sum(), hidden)[0]
    found = torch.autograd.grad(token_logprobs(hidden, head.detach(), targets)[0].sum(), hidden)[0]
    assert torch.equal(found, expected)


def test_an_accelerator_gets_long_chunks_and_a_cpu_those_that_its_cache_holds() -> None:
    qwen = 152_064
    assert row_chunks(1000, qwen, torch.device("cpu"))[:2] == [slice(0, 27), slice(27, 54)]
    assert row_chunks(1000, qwen, torch.device("cuda")) == [slice(0, 441), slice(441, 882), slice(882, 1000)]
    assert row_chunks(0, qwen, torch.device("cuda")) == []
    assert row_chunks(2, 1 << 30, torch.device("cuda")) == [slice(0, 1), slice(1, 2)]
