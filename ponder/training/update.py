"""One optimizer step: supervised on examples, or by policy gradient on rollouts with advantages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder.algorithms.importance import importance_weights
from ponder.algorithms.losses import LossStatistics, policy_loss
from ponder.algorithms.weights import token_weights
from ponder.model.decoder import Decoder, PackedAttention
from ponder.recipe import AlgorithmSettings
from ponder.training.logprobs import token_logprobs
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example, MicroBatch, micro_batches


@dataclass(frozen=True)
class Trajectory:
    """A rollout as the update sees it: log-probabilities are one number a reply token, in nats.

    `old_logprobs` are the trainer's own, before the first update on this batch. They matter only under an importance
    correction, for a sampler that differs from the trainer: None then says that the policy has not moved since, and its
    present ones stand for them. Without a correction the sampler's are the old policy's.
    """

    example: Example
    sampler_logprobs: Sequence[float]
    advantage: float
    truncated: bool = False
    old_logprobs: Sequence[float] | None = None


@dataclass(frozen=True)
class UpdateStatistics:
    """What an update did. `grad_norm` is None when it or the loss was not finite and the step was skipped."""

    loss: float
    grad_norm: float | None
    logprob_gap: float
    """Largest |trainer - sampler| log-probability, in nats, over the tokens computed; 0 on this engine on policy."""
    clip_share: float
    kl: float
    entropy: float
    trained_tokens: int
    """Reply tokens that went through forward and backward; the others had a gradient of exactly zero."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were finite; if not, the weights have not moved."""
        return self.grad_norm is not None


def supervised_step(model: Decoder, optimizer: Optimizer, examples: Sequence[Example], budget: int) -> UpdateStatistics:
    """Next-token cross-entropy, averaged over all reply tokens of the batch; one optimizer step.

    Longer examples come first, so that micro-batches hold similar lengths.
    """
    ordered = sorted(examples, key=lambda e: -len(e.prompt_ids) - len(e.reply_ids))
    total = sum(len(e.reply_ids) for e in ordered)
    loss = 0.0
    for batch in micro_batches(ordered, budget):
        logprobs, _ = batch_logprobs(model, batch)
        part = -logprobs.sum() / total
        part.backward()
        loss += float(part.detach())
    return UpdateStatistics(loss, optimizer.step(loss), 0.0, 0.0, 0.0, 0.0, total)


def policy_step(
    model: Decoder,
    optimizer: Optimizer,
    trajectories: Sequence[Trajectory],
    settings: AlgorithmSettings,
    *,
    temperature: float,
    max_tokens: int,
    budget: int,
    reference: Decoder | None = None,
) -> UpdateStatistics:
    """One policy-gradient step over whole groups; `reference` is needed when the KL term is in the loss.

    Trajectories whose gradient is exactly zero (advantage 0 without a KL or entropy term, or masked) are counted in the
    denominators and cost no forward or backward pass.
    """
    lengths = torch.tensor([len(t.example.reply_ids) for t in trajectories])
    truncated = torch.tensor([t.truncated for t in trajectories])
    weights = token_weights(
        lengths, settings.aggregate, max_tokens, keep=~truncated if settings.mask_truncated else None
    )
    kl_in_loss = settings.kl.beta if settings.kl.place == "loss" else 0.0
    everything_counts = kl_in_loss > 0 or settings.entropy_bonus != 0
    live = [i for i, t in enumerate(trajectories) if weights[i] > 0 and (everything_counts or t.advantage != 0)]
    loss, gap, entropy, tokens = 0.0, 0.0, 0.0, 0
    statistics: LossStatistics | None = None
    for batch in micro_batches([trajectories[i].example for i in live], budget):
        members = [trajectories[live[m]] for m in batch.members]
        sampler = torch.tensor([x for t in members for x in t.sampler_logprobs])
        logprobs, entropies = batch_logprobs(model, batch, temperature, with_entropy=settings.entropy_bonus != 0)
        old, correction = _old_policy(members, sampler, logprobs.detach(), batch, settings)
        result = policy_loss(
            logprobs,
            old,
            torch.tensor([t.advantage for t in members])[batch.sequence_ids],
            weights[[live[m] for m in batch.members]][batch.sequence_ids],
            batch.sequence_ids,
            len(members),
            loss=settings.loss,
            ratio=settings.ratio,
            eps_low=settings.eps_low,
            eps_high=settings.eps_high,
            importance_weights=correction,
            ref_logprobs=frozen_logprobs(reference, batch, temperature) if reference is not None else None,
            kl_beta=kl_in_loss,
            kl_estimator=settings.kl.estimator,
            entropies=entropies if settings.entropy_bonus != 0 else None,
            entropy_bonus=settings.entropy_bonus,
        )
        result.loss.backward()
        loss += float(result.loss.detach())
        gap = max(gap, float((logprobs.detach() - sampler).abs().max()))
        entropy += float(entropies.detach().sum())
        tokens += sampler.numel()
        statistics = result.statistics if statistics is None else statistics + result.statistics
    norm = optimizer.step(loss) if live else 0.0
    return UpdateStatistics(
        loss=loss,
        grad_norm=norm,
        logprob_gap=gap,
        clip_share=statistics.clip_share if statistics else 0.0,
        kl=statistics.kl_mean if statistics else 0.0,
        entropy=entropy / max(1, tokens),
        trained_tokens=tokens,
    )


def _old_policy(
    members: Sequence[Trajectory], sampler: Tensor, current: Tensor, batch: MicroBatch, settings: AlgorithmSettings
) -> tuple[Tensor, Tensor | None]:
    """The old policy's log-probabilities (M,), and the weights (M,) that correct for a sampler that differs from it."""
    s = settings.importance
    if s.mode == "none":
        return sampler, None
    assert s.mode != "auto", "whoever knows who samples decides"
    told = [t.old_logprobs for t in members if t.old_logprobs is not None]
    old = torch.tensor([x for logprobs in told for x in logprobs]) if told else current
    return old, importance_weights(old, sampler, batch.sequence_ids, len(members), s.mode, s.cap, s.floor)


def batch_logprobs(
    model: Decoder, batch: MicroBatch, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (M,) of a micro-batch's reply tokens, differentiable."""
    hidden = model.hidden(batch.tokens, batch.packing.positions, PackedAttention(batch.packing))
    return token_logprobs(hidden[batch.predictors], model.head_weight, batch.targets, temperature, with_entropy)


@torch.no_grad()
def frozen_logprobs(model: Decoder, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
    """As `batch_logprobs`, without a gradient: for a reference model."""
    return batch_logprobs(model, batch, temperature)[0]
