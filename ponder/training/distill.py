"""One optimizer step of on-policy distillation: the student's own samples, under the teacher's probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ponder.algorithms.distillation import reverse_kl
from ponder.model.decoder import Decoder, PackedAttention
from ponder.training.logprobs import row_chunks
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example, MicroBatch, micro_batches
from ponder.training.update import UpdateStatistics


def distill_step(
    student: Decoder, teacher: Decoder, optimizer: Optimizer, examples: Sequence[Example], vocab_size: int, budget: int
) -> UpdateStatistics:
    """Reverse KL, averaged over all reply tokens of the batch; one optimizer step. `loss` and `kl` are that mean.

    `vocab_size` is the number of tokens that both models know: embeddings may have more rows, which no text ever uses.
    """
    total = sum(len(e.reply_ids) for e in examples)
    loss = 0.0
    for batch in (batch.to(student.head_weight.device) for batch in micro_batches(examples, budget)):
        with torch.no_grad():
            target = _predicting(teacher, batch)
        divergences = token_reverse_kl(
            _predicting(student, batch), student.head_weight[:vocab_size], target, teacher.head_weight[:vocab_size]
        )
        part = divergences.sum() / total
        part.backward()
        loss += float(part.detach())
    return UpdateStatistics(loss, optimizer.step(loss), total, kl=loss)


def token_reverse_kl(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    """hidden (M, d) and head (V, d) of both models -> KL(student || teacher) (M,), differentiable in the student's.

    Logits exist for one chunk of rows at a time, and again, recomputed, in the backward pass.
    """
    parts = [
        checkpoint(
            _chunk,
            hidden[rows],
            head,
            teacher_hidden[rows],
            teacher_head,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for rows in row_chunks(hidden.shape[0], head.shape[0], hidden.device)
    ]
    return torch.cat(parts)


def _chunk(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    with torch.no_grad():
        teacher_logits = teacher_hidden @ teacher_head.t()
    return reverse_kl(hidden @ head.t(), teacher_logits)


def _predicting(model: Decoder, batch: MicroBatch) -> Tensor:
    """(M, d): the hidden state before each reply token."""
    return model.hidden(batch.tokens, batch.packing.positions, PackedAttention(batch.packing))[batch.predictors]
