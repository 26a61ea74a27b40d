"""Bytes on one device: of a trainer, of a sampler."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.capacity.hardware import Device
from ponder.capacity.jobs import Judge, RolloutJob, TrainingJob, trained_parameters
from ponder.capacity.shapes import DecoderShape

_FP32_BYTES = 4
_NF4_BYTES = 0.5
CACHE_BYTES = 2
"""Of a value in the cache of keys and values: bf16."""
LOGITS = 1 << 26
"""Logits that the log-probabilities hold at a time on a GPU (ponder/training/logprobs.py; a test compares)."""
_LOGIT_COPIES = 3  # logits, their log-softmax, the gradient
SCORED_TOKENS = 8192
"""Of one forward pass of a reward model (ponder/model/reward_model.py; a test compares)."""


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on each rank."""

    weights_bytes: float
    gradients_bytes: float
    moments_bytes: float
    gathered_bytes: float
    """Layers that FSDP2 has put together, this one and the next, or DDP's copy in the arithmetic's precision."""
    activations_bytes: float
    logits_bytes: float
    references_bytes: float
    judges_bytes: float
    """Reward models, where they lie beside a rank: on the device of the driver alone."""

    @property
    def total_bytes(self) -> float:
        """All of it."""
        return self.kept_bytes + self.gathered_bytes + self.activations_bytes + self.logits_bytes

    @property
    def kept_bytes(self) -> float:
        """What stays between two steps."""
        trained = self.weights_bytes + self.gradients_bytes + self.moments_bytes
        return trained + self.references_bytes + self.judges_bytes


def training_memory(shape: DecoderShape, job: TrainingJob, ranks: int) -> TrainingMemory:
    """Memory of the fullest of so many ranks."""
    shards = 1 if job.sharding == "ddp" else ranks
    trained = trained_parameters(shape, job)
    frozen = shape.parameters if job.lora is not None else 0
    kept_bytes = _NF4_BYTES if job.lora is not None and job.lora.quantise == "nf4" else _FP32_BYTES
    return TrainingMemory(
        weights_bytes=(_FP32_BYTES * trained + kept_bytes * frozen) / shards,
        gradients_bytes=_FP32_BYTES * trained / shards,
        moments_bytes=_FP32_BYTES * job.moments * trained / shards,
        gathered_bytes=_gathered_bytes(shape, job, ranks),
        activations_bytes=_activation_bytes(shape, job) / (ranks if job.sharding == "model_parallel" else 1),
        logits_bytes=_LOGIT_COPIES * _FP32_BYTES * _logits(shape, job),
        references_bytes=_FP32_BYTES * sum(reference.parameters for reference in job.references) / shards,
        judges_bytes=sum(_judge_weights(judge, job) for judge in job.judges) if job.judge_place == "beside" else 0.0,
    )


def judge_bytes(judge: Judge, job: TrainingJob) -> float:
    """Memory of a reward model on a device of its own: weights, and the largest forward pass.

    That holds, a token, a layer's input and residual stream, and three inner widths of SwiGLU.
    """
    shape, longest = judge.shape, job.lengths.prompt + job.lengths.longest
    tokens = min(max(float(SCORED_TOKENS), longest), job.sequences * longest)
    return _judge_weights(judge, job) + job.arithmetic_bytes * (2 * shape.hidden + 3 * shape.feed_forward) * tokens


def _judge_weights(judge: Judge, job: TrainingJob) -> float:
    return job.arithmetic_bytes * judge.shape.parameters


def _logits(shape: DecoderShape, job: TrainingJob) -> float:
    """Those that exist at a time: a chunk, one row at least, and no more than a micro-batch has."""
    return min(max(LOGITS, shape.vocabulary), shape.vocabulary * job.micro_batch_tokens)


def _gathered_bytes(shape: DecoderShape, job: TrainingJob, ranks: int) -> float:
    if job.sharding == "model_parallel" or (ranks == 1 and job.arithmetic_bytes == _FP32_BYTES):
        return 0.0
    if job.sharding == "ddp" or ranks == 1:
        return job.arithmetic_bytes * shape.parameters if job.arithmetic_bytes < _FP32_BYTES else 0.0
    return job.arithmetic_bytes * (2 * shape.layer_parameters + shape.table_parameters)


def _activation_bytes(shape: DecoderShape, job: TrainingJob) -> float:
    """What the backward pass of a micro-batch finds.

    A block keeps, a token, the inputs of its norms and of what follows them (4 widths), queries and the attention's
    output, keys and values, and four inner widths of SwiGLU; attention's scores are never stored (flash attention).
    With checkpointing every block keeps its input, and one block at a time all of it.
    """
    block = 4 * shape.hidden + 2 * shape.query_width + shape.cache_width + 4 * shape.feed_forward
    values = shape.layers * shape.hidden + block if job.checkpointing else shape.layers * block
    return job.arithmetic_bytes * values * job.micro_batch_tokens


@dataclass(frozen=True)
class RolloutMemory:
    """Bytes on each device of a sampler."""

    weights_bytes: float
    cache_bytes: float
    """Of keys and values: what is left, at most what all of its sequences need at their mean length."""
    sequences: float
    """Sequences that one copy of the sampler advances at once."""

    @property
    def total_bytes(self) -> float:
        """All of it."""
        return self.weights_bytes + self.cache_bytes


def rollout_memory(
    shape: DecoderShape,
    job: RolloutJob,
    device: Device,
    replicas: int,
    tensor_parallel: int,
    usable_memory: float,
    taken_bytes: float = 0.0,
    own_weights: bool = True,
) -> RolloutMemory | None:
    """Memory of a sampler on `tensor_parallel` devices, beside `taken_bytes` a device; None where it does not fit.

    It fits when weights and the longest sequence do. With `own_weights` false the weights are among what is taken.
    """
    weights = job.weight_bytes * shape.parameters / tensor_parallel if own_weights else 0.0
    left = (usable_memory * device.memory_bytes - taken_bytes - weights) * tensor_parallel
    token = CACHE_BYTES * shape.cache_values_per_token
    if left < token * (job.lengths.prompt + job.lengths.longest):
        return None
    share = job.completions / replicas
    # a sequence holds, over its life, its prompt and on average the size-biased half of its completion
    held = job.lengths.prompt + job.lengths.completion_square / (2 * job.lengths.mean)
    sequences = min(share, max(1.0, left / (token * held)))
    return RolloutMemory(weights, min(left, sequences * token * held) / tensor_parallel, sequences)
