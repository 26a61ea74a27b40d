"""A distillation step against the same step written out plainly, one sequence at a time, over all logits at once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.recipe import OptimizerSettings
from ponder.training import logprobs
from ponder.training.distill import distill_step, token_reverse_kl
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example

EXAMPLES = [
    Example((3, 1, 4), (1, 5, 9)),
    Example((3, 1, 4), (2, 6)),
    Example((5, 3), (5, 8, 9, 7, 9)),
]
TOKENS = 10


def decoder(seed: int, layers: int, size: int, vocab_size: int = 12) -> Decoder:
    config = DecoderConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=size,
        intermediate_size=16,
        num_layers=layers,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_positions=32,
        initializer_range=0.5,
    )
    model = Decoder(config)
    model.initialise(seed)
    model.double()
    model.rotations = model.rotations.to(torch.complex128)
    return model


def plain_loss(student: Decoder, teacher: Decoder, vocab_size: int = 12) -> Tensor:
    parts = []
    for example in EXAMPLES:
        ids = torch.tensor([[*example.prompt_ids, *example.reply_ids]])
        rows = slice(len(example.prompt_ids) - 1, -1)
        p, q = (m.logits(ids)[0, rows, :vocab_size].softmax(-1) for m in (student, teacher))
        parts.append((p * (p.log() - q.detach().log())).sum(-1))
    return torch.cat(parts).mean()


class NoStep(Optimizer):
    """Leaves gradients and weights as they are."""

    def step(self, loss: float = 0.0) -> float | None:
        return loss


def gradients(model: Decoder) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("budget", [1, 9, 1000])
def test_loss_and_gradient_are_the_plain_ones(budget: int) -> None:
    """A teacher of another size, embeddings with rows to spare; prompts shared and not."""
    student, teacher = decoder(0, 1, 8, vocab_size=14), decoder(1, 2, 12, vocab_size=16)
    plainly = copy.deepcopy(student)
    expected = plain_loss(plainly, teacher)
    expected.backward()
    statistics = distill_step(student, teacher, NoStep(student, OptimizerSettings(), 1), EXAMPLES, 12, budget)
    assert statistics.loss == statistics.kl == pytest.approx(expected.item(), rel=1e-12)
    assert statistics.trained_tokens == TOKENS
    assert len(gradients(student)) == len(list(student.parameters()))
    for found, wanted in zip(gradients(student), gradients(plainly), strict=True):
        assert_close(found, wanted)
    assert gradients(teacher) == []


def test_the_student_comes_closer_and_the_teacher_stays() -> None:
    student, teacher = decoder(0, 1, 8), decoder(1, 2, 12)
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    optimizer = Optimizer(student, OptimizerSettings(lr=1e-2), 30)
    losses = [distill_step(student, teacher, optimizer, EXAMPLES, 12, 100).loss for _ in range(30)]
    assert losses[-1] < losses[0] / 3
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    student = decoder(0, 1, 8)
    statistics = distill_step(
        student, copy.deepcopy(student), NoStep(student, OptimizerSettings(), 1), EXAMPLES, 12, 100
    )
    assert statistics.loss == pytest.approx(0, abs=1e-15)
    assert all(gradient.abs().max() < 1e-14 for gradient in gradients(student))


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_chunks_change_nothing(chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 4), (12, 4), (7, 6), (12, 6))
    hidden, head, teacher_hidden, teacher_head = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes
    )
    monkeypatch.setattr(logprobs, "_CHUNK_LOGITS", chunk_rows * 12)
    found = token_reverse_kl(hidden, head, teacher_hidden, teacher_head)
    p, q = (hidden @ head.T).softmax(-1), (teacher_hidden @ teacher_head.T).softmax(-1)
    expected = (p * (p.log() - q.detach().log())).sum(-1)
    assert_close(found, expected)
    unused = torch.autograd.grad(found.sum(), (teacher_hidden, teacher_head), allow_unused=True, retain_graph=True)
    assert not any(isinstance(gradient, Tensor) for gradient in unused)
    weights = torch.arange(7.0, dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((weights * found).sum(), (hidden, head)),
        torch.autograd.grad((weights * expected).sum(), (hidden, head)),
        strict=True,
    ):
        assert_close(a, b)
