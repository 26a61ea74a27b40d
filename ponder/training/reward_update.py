"""One optimizer step of a reward model, on pairs or on labelled replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.algorithms.preference import pairwise_loss, pointwise_loss
from ponder.model.reward_model import RewardModel, Scored, micro_batches
from ponder.training.optimizer import Optimizer


@dataclass(frozen=True)
class RewardExample:
    """A pair (chosen, rejected), or one reply with its label."""

    replies: tuple[Scored, ...]
    label: bool = True
    """Of a single reply; a pair is always in the order of preference."""

    @property
    def num_tokens(self) -> int:
        """Of the sequences, each with its prompt."""
        return sum(reply.num_tokens for reply in self.replies)


@dataclass(frozen=True)
class RewardStatistics:
    """What a step did. `grad_norm` is None when it or the loss was not finite and the step was skipped."""

    loss: float
    accuracy: float
    """Share of the pairs in the right order, or of the replies on the right side of 0, before the step."""
    grad_norm: float | None


def reward_step(
    model: RewardModel, optimizer: Optimizer, examples: Sequence[RewardExample], budget: int
) -> RewardStatistics:
    """One optimizer step on the mean loss of `examples`, in micro-batches of at most `budget` rows."""
    # longer examples first, so that micro-batches hold similar lengths
    ordered = sorted(examples, key=lambda e: -e.num_tokens)
    labels = torch.tensor([e.label for e in ordered], device=model.decoder.head_weight.device)
    loss, right, start = 0.0, 0, 0
    for batch in micro_batches([e.replies for e in ordered], budget):
        scores = model.scores([reply for replies in batch for reply in replies]).view(len(batch), -1)
        part, hits = _loss(scores, labels[start : start + len(batch)])
        part = part * (len(batch) / len(ordered))
        part.backward()
        loss += float(part.detach())
        right += int(hits.sum())
        start += len(batch)
    return RewardStatistics(loss, right / len(ordered), optimizer.step(loss))


def _loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """scores (B, 2) of pairs or (B, 1) of replies, labels (B,) -> mean loss, and (B,) whether each is right."""
    if scores.shape[1] == 2:
        chosen, rejected = scores.unbind(1)
        return pairwise_loss(chosen, rejected), chosen.detach() > rejected.detach()
    single = scores.squeeze(1)
    return pointwise_loss(single, labels.float()), (single.detach() > 0) == labels
