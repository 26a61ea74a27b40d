"""One optimizer step of a reward model, on pairs or on labelled replies; and its scores without one.

What learns is a decoder with a scalar head (`ponder.model.reward_model.put_scalar_head`). Ranks share examples out and
add gradients up as they do for any other loss (`ponder/training/update.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.algorithms.preference import pairwise_loss, pointwise_loss
from ponder.model.decoder import Decoder
from ponder.model.reward_model import Scored, pack_scored, score_rows
from ponder.training.execution import Execution
from ponder.training.optimizer import Optimizer
from ponder.training.packing import MicroBatch
from ponder.training.update import Measured, accumulate, collect, hidden_states


@dataclass(frozen=True)
class RewardExample:
    """A pair (chosen, rejected) of replies to one prompt, or one reply with its label."""

    replies: tuple[Scored, ...]
    label: bool = True
    """Of a single reply; a pair is always in the order of preference."""

    def __post_init__(self) -> None:
        if len({reply.prompt_ids for reply in self.replies}) != 1:
            raise ValueError("the replies of an example answer one prompt")

    @property
    def num_tokens(self) -> int:
        """Of the sequences, each with its prompt."""
        return sum(reply.num_tokens for reply in self.replies)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """See `Packable`."""
        return self.replies[0].prompt_ids

    @property
    def reply_ids(self) -> tuple[int, ...]:
        """See `Packable`: a pair stays in one micro-batch."""
        return sum((reply.reply_ids for reply in self.replies), ())

    @property
    def labels(self) -> tuple[bool, ...]:
        """Of each reply."""
        return (self.label,) if len(self.replies) == 1 else (True, False)


@dataclass(frozen=True)
class RewardStatistics:
    """What a step did. `grad_norm` is None when it or the loss was not finite and the step was skipped."""

    loss: float
    accuracy: float
    """Share of the pairs in the right order, or of the replies on the right side of 0, before the step."""
    grad_norm: float | None
    overflow: bool = False
    """See `UpdateStatistics.overflow`."""

    @property
    def finite(self) -> bool:
        """See `UpdateStatistics.finite`."""
        return self.grad_norm is not None or self.overflow


def reward_step(
    model: Decoder, optimizer: Optimizer, examples: Sequence[RewardExample], budget: int
) -> RewardStatistics:
    """One optimizer step on the mean loss of `examples`, in micro-batches of at most `budget` rows.

    All are pairs, or none is. Raises `UsageError` when memory does not hold a single example.
    """
    # longer examples first, so that micro-batches hold similar lengths
    ordered = sorted(examples, key=lambda e: -e.num_tokens)

    def share(batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Measured, Tensor]:
        scores = score_rows(model, hidden[batch.predictors])
        loss = _loss(scores, batch) * (len(batch.members) / len(ordered))
        return loss, Measured.nothing(loss.device)._replace(loss=loss.detach()), scores.detach()

    sums, own = accumulate(model, optimizer, ordered, budget, share, _pack)
    scores = optimizer.execution.ranks.collect(own, [len(e.replies) for e in ordered])
    right = sum(_is_right(*parts) for parts in zip(ordered, scores, strict=True))
    norm = optimizer.step(sums.loss)
    return RewardStatistics(sums.loss, right / len(ordered), norm, optimizer.execution.scale.lowered)


@torch.no_grad()
def reward_scores(model: Decoder, execution: Execution, replies: Sequence[Scored], budget: int) -> list[float]:
    """Raw scores in the arithmetic of training, at most `budget` rows at a time: of all replies, on every rank."""

    def compute(batch: MicroBatch) -> Tensor:
        batch = batch.to(model.head_weight.device)
        return score_rows(model, hidden_states(model, batch)[batch.predictors])

    examples = [RewardExample((reply,)) for reply in replies]
    found = collect(execution, examples, [1] * len(examples), budget, compute, _pack)
    return [float(score) for score in found]


def _pack(examples: Sequence[RewardExample], members: Sequence[int]) -> MicroBatch:
    """The head reads the last row of each reply, and is to find its label there."""
    chosen = [examples[m] for m in members]
    tokens, packing, ends = pack_scored([reply for example in chosen for reply in example.replies])
    return MicroBatch(
        packing=packing,
        tokens=tokens,
        predictors=ends,
        targets=torch.tensor([label for example in chosen for label in example.labels], dtype=torch.float32),
        sequence_ids=torch.tensor([number for number, example in enumerate(chosen) for _ in example.replies]),
        members=tuple(members),
    )


def _loss(scores: Tensor, batch: MicroBatch) -> Tensor:
    """Mean loss of the micro-batch's examples, from the scores (M,) of their replies."""
    if len(scores) == len(batch.members):
        return pointwise_loss(scores, batch.targets)
    return pairwise_loss(*scores.view(-1, 2).unbind(1))


def _is_right(example: RewardExample, scores: Tensor) -> bool:
    if len(scores) == 1:
        return bool(scores[0] > 0) == example.label
    return bool(scores[0] > scores[1])
