"""Seconds: of drawing rollouts, of an update, of handing over weights."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.capacity.assumptions import Assumptions
from ponder.capacity.hardware import Device
from ponder.capacity.jobs import Layout, RolloutJob, TrainingJob, trained_parameters
from ponder.capacity.memory import CACHE_BYTES, RolloutMemory
from ponder.capacity.shapes import DecoderShape

_FP32_BYTES = 4
_ADAM_BYTES = 28  # reads weight, gradient and two moments, writes weight and moments, in fp32


@dataclass(frozen=True)
class RolloutTime:
    """Seconds of one batch of rollouts."""

    prefill_s: float
    decode_s: float
    decode_steps: float
    """Tokens that the last copy of the sampler steps through one after another."""

    @property
    def total_s(self) -> float:
        """Both parts."""
        return self.prefill_s + self.decode_s


def rollout_time(
    shape: DecoderShape,
    job: RolloutJob,
    device: Device,
    replicas: int,
    tensor_parallel: int,
    memory: RolloutMemory,
    assumptions: Assumptions,
    steady: bool = False,
) -> RolloutTime:
    """Time until the last of the completions ends, dealt out evenly over the copies of the sampler.

    `steady` is a sampler that always has work, so that no batch has a tail: new prompts take the place of what ends.
    """
    a, lengths = assumptions, job.lengths
    share = job.completions / replicas
    batch = min(memory.sequences, share)
    waves = share / batch
    # after the last sequence has begun, those that are left run out: the longest one ends the batch
    steps = waves * lengths.mean + (0.0 if steady else lengths.longest - lengths.mean)
    mean_batch = share * lengths.mean / steps if steps else 0.0
    read = steps * job.weight_bytes * shape.parameters_read(mean_batch)
    attended = share * (lengths.prompt * lengths.mean + lengths.completion_square / 2)  # positions, over all tokens
    cache = CACHE_BYTES * shape.cache_values_per_token * attended
    operations = 2 * shape.matmul_parameters * share * lengths.mean
    operations += 4 * shape.layers * shape.query_width * attended
    memory_s = (read + cache) / (a.decode_bandwidth * device.memory_bytes_per_s * tensor_parallel)
    compute_s = operations / (a.mfu * _peak(device, job.weight_bytes) * tensor_parallel)
    waiting_s = steps * (a.engine_step_s + _all_reduce_s(shape, device, tensor_parallel, mean_batch, a))
    prompts = job.prompts / replicas
    prefill = prompts * _forward_operations(shape, lengths.prompt, lengths.prompt**2)
    prefill_s = prefill / (a.mfu * _peak(device, job.weight_bytes) * tensor_parallel)
    return RolloutTime(prefill_s, max(memory_s, compute_s) + waiting_s, steps)


def _all_reduce_s(shape: DecoderShape, device: Device, devices: int, batch: float, a: Assumptions) -> float:
    """Two all-reduces a layer of one decoding step, in bf16."""
    if devices == 1:
        return 0.0
    sent = 2 * (devices - 1) / devices * 2 * batch * shape.hidden
    return 2 * shape.layers * (a.collective_s + sent / (a.links * group_bytes_per_s(device, devices)))


@dataclass(frozen=True)
class UpdateTime:
    """Seconds of all optimizer steps on one batch."""

    score_s: float
    """Forward passes of reward models, of the reference, and of the policy before it moves."""
    compute_s: float
    """Forward and backward passes, with what checkpointing computes again; or the gathering of weights, if longer."""
    reduce_s: float
    """Summing of gradients over the ranks."""
    optimizer_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.score_s + self.compute_s + self.reduce_s + self.optimizer_s


def update_time(
    shape: DecoderShape, job: TrainingJob, device: Device, ranks: int, assumptions: Assumptions
) -> UpdateTime:
    """Time of the updates on one batch, tokens dealt out evenly over the ranks."""
    peak = assumptions.mfu * _peak(device, job.arithmetic_bytes)
    square = job.sequences * job.lengths.sequence_square
    forward = _forward_operations(shape, job.tokens, square)
    # the gradient of a frozen matrix is not computed, only that of its input
    passes = (3 if job.lora is None else 2) + job.checkpointing
    trained = trained_parameters(shape, job)
    shards = 1 if job.sharding == "ddp" else ranks
    moved = job.updates * _ADAM_BYTES * trained / shards
    gathers = _gather_s(shape, job, device, ranks, assumptions)
    return UpdateTime(
        score_s=_score_s(shape, job, peak, ranks, gathers / 2),
        compute_s=max(passes * forward / (peak * ranks), gathers),
        reduce_s=job.updates * _reduce_s(trained, job, device, ranks, assumptions),
        optimizer_s=moved / (assumptions.decode_bandwidth * device.memory_bytes_per_s),
    )


def _score_s(shape: DecoderShape, job: TrainingJob, peak: float, ranks: int, gather_s: float) -> float:
    """Frozen models are sharded over the ranks and gathered as the policy is; a reward model has one device, and how
    long one on a CPU takes is not known."""
    square = job.sequences * job.lengths.sequence_square
    sharded = [*job.references, *[shape] * job.own_scores]
    sharded_s = sum(max(_forward_operations(s, job.tokens, square) / (peak * ranks), gather_s) for s in sharded)
    judges = () if job.judge_place == "cpu" else job.judges
    judged = sum(judge.share * _forward_operations(judge.shape, job.tokens, square) for judge in judges)
    return sharded_s + judged / peak


def _gather_s(shape: DecoderShape, job: TrainingJob, device: Device, ranks: int, a: Assumptions) -> float:
    """FSDP2 puts all weights together twice a micro-batch: for the forward, and again for the backward pass."""
    if job.sharding != "fsdp2" or ranks == 1:
        return 0.0
    micro_batches = max(float(job.updates), job.tokens / ranks / job.micro_batch_tokens)
    gathered = 2 * micro_batches * job.arithmetic_bytes * shape.parameters * (ranks - 1) / ranks
    return gathered / (a.links * group_bytes_per_s(device, ranks))


def _reduce_s(trained: int, job: TrainingJob, device: Device, ranks: int, a: Assumptions) -> float:
    """A reduce-scatter of fp32 gradients; an all-reduce, twice as much, where each rank keeps all of them."""
    if ranks == 1 or job.sharding == "model_parallel":
        return 0.0
    copies = 2 if job.sharding == "ddp" else 1
    return copies * _FP32_BYTES * trained * (ranks - 1) / ranks / (a.links * group_bytes_per_s(device, ranks))


def handover_s(shape: DecoderShape, layout: Layout, weight_bytes: int, assumptions: Assumptions) -> float:
    """Seconds until every sampler has new weights: one copy enters each node, all nodes at once."""
    if layout.devices == 1:
        return 0.0
    rate = layout.weight_links * layout.device.network_bytes_per_s
    if layout.devices <= layout.device.devices_per_node:
        rate = layout.device.node_link_bytes_per_s
    return weight_bytes * shape.parameters / (assumptions.links * rate)


def group_bytes_per_s(device: Device, devices: int) -> float:
    """Rate at which a device of a group takes part in a ring: its own link, or its share of all links of a node."""
    if devices <= device.devices_per_node:
        return device.node_link_bytes_per_s
    return min(device.node_link_bytes_per_s, device.devices_per_node * device.network_bytes_per_s)


def _forward_operations(shape: DecoderShape, tokens: float, square: float) -> float:
    """2 a weight and token, and causal attention: 2 a value of the queries, layer and squared length."""
    return 2 * shape.matmul_parameters * tokens + 2 * shape.layers * shape.query_width * square


def _peak(device: Device, value_bytes: int) -> float:
    return device.bf16_flops_per_s if value_bytes < _FP32_BYTES else device.fp32_flops_per_s
