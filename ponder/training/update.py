"""One optimizer step: supervised on examples, or by policy gradient on rollouts with advantages.

Both are a function from a micro-batch's hidden states to its share of the loss; `accumulate` brings it to all
micro-batches, on all ranks, and `collect` what needs no gradient. Shapes: N rows of a micro-batch, M targets (reply
tokens, but for reward models), d hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ponder.algorithms.importance import Correction, importance_weights
from ponder.algorithms.kl import kl_estimate
from ponder.algorithms.losses import policy_loss
from ponder.algorithms.weights import token_weights
from ponder.model.decoder import Decoder, PackedAttention
from ponder.recipe import AlgorithmSettings
from ponder.training.execution import Execution, Pack
from ponder.training.logprobs import token_logprobs
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example, MicroBatch, Packable, pack


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
    """What an update did. `grad_norm` is None when it or the loss was not finite and the step was skipped.

    From `logprob_gap` on: of policy updates only, over the tokens computed.
    """

    loss: float
    grad_norm: float | None
    trained_tokens: int
    """Reply tokens that went through forward and backward; the others had a gradient of exactly zero."""
    overflow: bool = False
    """fp16: the step was skipped to find the loss scale, which is smaller now. Nothing is wrong with the weights."""
    logprob_gap: float = 0.0
    """Largest |trainer - sampler| log-probability, in nats; 0 on this engine on policy."""
    logprob_gap_mean: float = 0.0
    """Mean of the same."""
    sampler_kl: float = 0.0
    """KL(sampler || trainer), the k3 estimate, in nats a token."""
    bounded_share: float = 0.0
    """Share of the tokens whose importance weight was capped or masked; 0 without a correction."""
    clip_share: float = 0.0
    kl: float = 0.0
    logprobs: Mapping[int, Tensor] = field(default_factory=dict, compare=False, repr=False)
    """Of the reply tokens (T,) under the policy before this update, for each trajectory that was computed, by its
    number; policy updates only."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient were finite, or only the loss scale too large; if not, something is wrong."""
        return self.grad_norm is not None or self.overflow


def supervised_step(model: Decoder, optimizer: Optimizer, examples: Sequence[Example], budget: int) -> UpdateStatistics:
    """Next-token cross-entropy, averaged over all reply tokens of the batch; one optimizer step.

    Longer examples come first, so that micro-batches hold similar lengths.
    """
    ordered = sorted(examples, key=lambda e: -len(e.prompt_ids) - len(e.reply_ids))
    total = sum(len(e.reply_ids) for e in ordered)

    def share(batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Measured, Tensor]:
        logprobs, _ = head_logprobs(model, hidden, batch)
        loss = -logprobs.sum() / total
        return loss, Measured.nothing(loss.device)._replace(loss=loss.detach()), logprobs.detach()

    sums, _ = accumulate(model, optimizer, ordered, budget, share)
    norm = optimizer.step(sums.loss)
    return UpdateStatistics(sums.loss, norm, total, optimizer.execution.scale.lowered)


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
    denominators and cost no forward or backward pass. All ranks are given all trajectories, and compute their share.
    """
    device = model.head_weight.device
    lengths = torch.tensor([len(t.example.reply_ids) for t in trajectories])
    truncated = torch.tensor([t.truncated for t in trajectories])
    weights = token_weights(
        lengths, settings.aggregate, max_tokens, keep=~truncated if settings.mask_truncated else None
    )
    kl_in_loss = settings.kl.beta if settings.kl.place == "loss" else 0.0
    everything_counts = kl_in_loss > 0 or settings.entropy_bonus != 0
    live = [i for i, t in enumerate(trajectories) if weights[i] > 0 and (everything_counts or t.advantage != 0)]
    if not live:
        optimizer.pass_over()
        return UpdateStatistics(loss=0.0, grad_norm=0.0, trained_tokens=0)

    examples = [trajectories[i].example for i in live]
    reply_lengths = [len(e.reply_ids) for e in examples]

    def share(batch: MicroBatch, hidden: Tensor) -> tuple[Tensor, Measured, Tensor]:
        members = [trajectories[live[m]] for m in batch.members]
        sampler = torch.tensor([x for t in members for x in t.sampler_logprobs], device=device)
        ref_logprobs = frozen_logprobs(reference, batch, temperature) if reference is not None else None
        logprobs, entropies = head_logprobs(model, hidden, batch, temperature, settings.entropy_bonus != 0)
        now = logprobs.detach()
        old, correction = _old_policy(members, sampler, now, batch, settings)
        gaps = (now - sampler).abs()
        result = policy_loss(
            logprobs,
            old,
            torch.tensor([t.advantage for t in members], device=device)[batch.sequence_ids],
            weights[[live[m] for m in batch.members]].to(device)[batch.sequence_ids],
            batch.sequence_ids,
            len(members),
            loss=settings.loss,
            ratio=settings.ratio,
            eps_low=settings.eps_low,
            eps_high=settings.eps_high,
            importance_weights=None if correction is None else correction.weights,
            ref_logprobs=ref_logprobs,
            kl_beta=kl_in_loss,
            kl_estimator=settings.kl.estimator,
            entropies=entropies if settings.entropy_bonus != 0 else None,
            entropy_bonus=settings.entropy_bonus,
        )
        measured = Measured(
            loss=result.loss.detach(),
            counted=result.statistics.num_tokens,
            clipped=result.statistics.bounded_tokens,
            kl=result.statistics.kl_sum,
            bounded=now.new_zeros(()) if correction is None else correction.bounded.sum(),
            gaps=gaps.sum(),
            # in double precision: small gaps cancel to less than the rounding of r - log r - 1
            sampler_kl=kl_estimate(sampler.double(), now.double()).sum(),
            gap=gaps.max(),
        )
        return result.loss, measured, now

    sums, own = accumulate(model, optimizer, examples, budget, share)
    tokens = sum(reply_lengths)
    logprobs = optimizer.execution.ranks.collect(own, reply_lengths)
    counted = max(1.0, sums.counted)
    norm = optimizer.step(sums.loss)
    return UpdateStatistics(
        loss=sums.loss,
        grad_norm=norm,
        trained_tokens=tokens,
        overflow=optimizer.execution.scale.lowered,
        logprob_gap=sums.gap,
        logprob_gap_mean=sums.gaps / counted,
        sampler_kl=sums.sampler_kl / counted,
        bounded_share=sums.bounded / counted,
        clip_share=sums.clipped / counted,
        kl=sums.kl / counted,
        logprobs=dict(zip(live, logprobs, strict=True)),
    )


def _old_policy(
    members: Sequence[Trajectory], sampler: Tensor, current: Tensor, batch: MicroBatch, settings: AlgorithmSettings
) -> tuple[Tensor, Correction | None]:
    """The old policy's log-probabilities (M,), and what corrects for a sampler that differs from it.

    `auto` is for whoever knows of another sampler to resolve; unresolved, this process is the sampler.
    """
    s = settings.importance
    if s.mode == "none" or s.mode == "auto":
        return sampler, None
    told = [t.old_logprobs for t in members if t.old_logprobs is not None]
    old = torch.tensor([x for logprobs in told for x in logprobs], device=sampler.device) if told else current
    return old, importance_weights(old, sampler, batch.sequence_ids, len(members), s.mode, s.cap, s.floor)


# --- gradients of a whole batch ---------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """What a micro-batch adds to a step's statistics: 0-d tensors, detached. All are sums, but for `gap`."""

    loss: Tensor
    counted: Tensor
    """Tokens of non-zero weight."""
    clipped: Tensor
    """Tokens whose ratio was."""
    kl: Tensor
    bounded: Tensor
    """Tokens whose importance weight was."""
    gaps: Tensor
    """|trainer - sampler| log-probability, in nats."""
    sampler_kl: Tensor
    gap: Tensor
    """Largest of the gaps."""

    @classmethod
    def nothing(cls, device: torch.device) -> Measured:
        """Zeros."""
        return cls(*torch.zeros(len(cls._fields), device=device).unbind())


class Sums(NamedTuple):
    """`Measured` over the whole batch: the same on all ranks."""

    loss: float
    counted: float
    clipped: float
    kl: float
    bounded: float
    gaps: float
    sampler_kl: float
    gap: float


Share = Callable[[MicroBatch, Tensor], tuple[Tensor, Measured, Tensor]]
"""From a micro-batch and its hidden states (N, d) to its part of the loss and of the statistics, and to what the head
said (M,) of its targets, detached: the log-probabilities of the reply tokens, or scores."""


def accumulate(
    model: Decoder, optimizer: Optimizer, examples: Sequence[Packable], budget: int, share: Share, pack: Pack = pack
) -> tuple[Sums, dict[int, Tensor]]:
    """Forward and backward over all examples, in micro-batches of `budget` tokens or of what has proved to fit.

    Each rank computes its micro-batches, and returns what the head said (T,) of its examples by their places. The
    gradients of the parts' sum are left for `optimizer.step`, which adds up the ranks'. Raises `UsageError` when memory
    does not hold a single example.
    """
    execution, device = optimizer.execution, model.head_weight.device
    sums, gap, own = torch.empty(0), torch.empty(0), dict[int, Tensor]()

    def attempt(tokens: int) -> int:
        nonlocal sums, gap
        optimizer.clear()
        sums = torch.zeros(len(Measured._fields) - 1, dtype=torch.float64, device=device)
        gap = torch.zeros((), device=device)
        own.clear()
        failed = 0
        for batch, counts in execution.ranks.share(examples, tokens, pack):
            found = _backward(model, execution, batch.to(device), share, counts)
            if found is not None and counts:
                measured, said = found
                sums += torch.stack([x.double() for x in measured[:-1]])
                gap = torch.maximum(gap, measured.gap)
                own.update(batch.by_member(said))
            if execution.out_of_memory:
                failed = failed or len(batch.members)
                if not execution.ranks.lockstep:
                    break
        return failed

    execution.within_memory(budget, attempt)
    totals: list[float] = execution.ranks.total(sums).tolist()
    return Sums._make([*totals, float(execution.ranks.largest(gap))]), own


def _backward(
    model: Decoder, execution: Execution, batch: MicroBatch, share: Share, counts: bool
) -> tuple[Measured, Tensor] | None:
    """One micro-batch's gradients, and what `share` measured; None when memory ran out."""
    factor = execution.scale.value * counts
    found = None
    if not execution.ranks.lockstep:
        with execution.watching():
            loss, measured, said = share(batch, hidden_states(model, batch))
            found = measured, said
            (loss * factor).backward()
        return found
    # What the ranks exchange hangs on the passes through the layers, and a rank that left them would be waited for
    # for ever. So the layers see to it themselves (`guard_layer`), and the rest is cut off, to fail apart from them.
    hidden = hidden_states(model, batch)
    end = hidden.detach().requires_grad_()
    with execution.watching():
        loss, measured, said = share(batch, end)
        found = measured, said
        (loss * factor).backward()
    head = model.head_weight
    if head.requires_grad and head.grad is None:
        head.grad = torch.zeros_like(head)
    hidden.backward(torch.zeros_like(hidden) if end.grad is None else end.grad)
    return found


def collect(
    execution: Execution,
    examples: Sequence[Packable],
    lengths: Sequence[int],
    budget: int,
    compute: Callable[[MicroBatch], Tensor],
    pack: Pack = pack,
) -> list[Tensor]:
    """What `compute` finds (M,), without a gradient, for the targets of each example, of which there are `lengths`.

    All of it, on every rank, on the CPU. Raises as `accumulate`.
    """
    own: dict[int, Tensor] = {}

    def attempt(tokens: int) -> int:
        own.clear()
        failed = 0
        for batch, counts in execution.ranks.share(examples, tokens, pack):
            with execution.watching():
                found = compute(batch)
                own.update(batch.by_member(found) if counts else {})
            if execution.out_of_memory:
                failed = failed or len(batch.members)
        return failed

    execution.within_memory(budget, attempt)
    return execution.ranks.collect(own, lengths)


# --- log-probabilities of a micro-batch -------------------------------------------------------------------------------


def hidden_states(model: Decoder, batch: MicroBatch) -> Tensor:
    """Final hidden states (N, d) of a micro-batch, in the arithmetic of training, differentiable."""
    half = model.compute_dtype
    with nullcontext() if half is None else torch.autocast(batch.tokens.device.type, half):
        return model.hidden(batch.tokens, batch.packing.positions, PackedAttention(batch.packing))


def head_logprobs(
    model: Decoder, hidden: Tensor, batch: MicroBatch, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Hidden states (N, d) -> log-probabilities and entropies (M,) of the reply tokens, in float32 or better."""
    half = model.compute_dtype
    rows, head = hidden[batch.predictors], model.head_weight
    if half is not None:
        rows, head = rows.to(half), head.to(half)
    return token_logprobs(rows, head, batch.targets, temperature, with_entropy)


def batch_logprobs(
    model: Decoder, batch: MicroBatch, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (M,) of a micro-batch's reply tokens, differentiable, on the model's device."""
    batch = batch.to(model.head_weight.device)
    return head_logprobs(model, hidden_states(model, batch), batch, temperature, with_entropy)


@torch.no_grad()
def frozen_logprobs(model: Decoder, batch: MicroBatch, temperature: float = 1.0) -> Tensor:
    """As `batch_logprobs`, without a gradient: for a reference model."""
    return batch_logprobs(model, batch, temperature)[0]
