"""The work that memory and time are asked for: rollouts to draw, sequences to train on, and where both happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ponder.capacity.hardware import Device
from ponder.capacity.shapes import DecoderShape
from ponder.recipe import LoraSettings

Sharding = Literal["fsdp2", "ddp", "model_parallel"]
"""Of the trainers: as in a recipe; or as in Megatron, where ranks keep parts of layers that are never gathered, and
what they exchange instead is part of `mfu`."""

JudgePlace = Literal["beside", "own", "cpu"]
"""Where reward models score: in the driver, all of them on a device that a rank has, too; each on a device of its own;
or on the hosts' CPUs."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and completions. Completions are exponential, cut at the longest."""

    prompt: float
    mean: float
    longest: float

    @property
    def completion_square(self) -> float:
        """Mean of the squared length of a completion: 2 mean^2 for exponential ones, never above mean x longest."""
        return min(2 * self.mean**2, self.mean * self.longest)

    @property
    def sequence(self) -> float:
        """Mean length of prompt and completion."""
        return self.prompt + self.mean

    @property
    def sequence_square(self) -> float:
        """Mean of the squared length of prompt and completion."""
        return self.prompt**2 + 2 * self.prompt * self.mean + self.completion_square


@dataclass(frozen=True)
class RolloutJob:
    """Completions to draw; the prompt of a group is computed once."""

    prompts: int
    samples: int
    lengths: Lengths
    weight_bytes: int = 2
    """Bytes that the sampler keeps a parameter in."""

    @property
    def completions(self) -> int:
        """All that are drawn."""
        return self.prompts * self.samples


@dataclass(frozen=True)
class Judge:
    """A reward model, whole on one device."""

    shape: DecoderShape
    share: float = 1.0
    """Of the sequences that it scores, in the mean over all steps; above 1 where several rewards ask it."""


@dataclass(frozen=True)
class TrainingJob:
    """Sequences to train on, in so many optimizer steps, and the frozen models that score them first."""

    sequences: float
    lengths: Lengths
    updates: int = 1
    tokens_per_micro_batch: int = 8192
    """Packing budget of a rank; a longer sequence is still one micro-batch."""
    arithmetic_bytes: int = 2
    """Of a value in forward and backward: 2 for bf16 and fp16, 4 for fp32. What is kept of weights is fp32."""
    checkpointing: bool = False
    moments: int = 2
    """Values that the optimizer keeps a parameter: 2 for AdamW, 1 for Muon."""
    lora: LoraSettings | None = None
    sharding: Sharding = "fsdp2"
    references: tuple[DecoderShape, ...] = ()
    """Frozen models beside the trained one, sharded alike: a reference, a teacher."""
    judges: tuple[Judge, ...] = ()
    judge_place: JudgePlace = "own"
    own_scores: int = 0
    """Forward passes of the trained model itself before the update: 1 where the sampler is another engine."""

    @property
    def tokens(self) -> float:
        """All tokens, prompts counted with each sequence."""
        return self.sequences * self.lengths.sequence

    @property
    def micro_batch_tokens(self) -> float:
        """Tokens of the largest forward and backward pass of a rank."""
        longest = self.lengths.prompt + self.lengths.longest
        return min(max(self.tokens_per_micro_batch, longest), self.sequences * longest)


@dataclass(frozen=True)
class Layout:
    """Who computes where. Shared devices sample, then train; otherwise the two kinds of devices are different ones."""

    device: Device
    rollout_devices: int
    train_devices: int
    tensor_parallel: int = 1
    shared: bool = False
    swapped: bool = False
    """Shared devices move what the other half holds to the hosts' memory meanwhile."""
    weight_links: int = 1
    """Network links over which new weights enter a node: 1 through Ray's object store, one a device with NCCL."""
    judge_devices: int = 0
    """Those of reward models alone."""

    @property
    def devices(self) -> int:
        """Those that sample or train."""
        return self.rollout_devices if self.shared else self.rollout_devices + self.train_devices

    @property
    def replicas(self) -> int:
        """Copies of the sampler."""
        return self.rollout_devices // self.tensor_parallel


def lora_parameters(shape: DecoderShape, lora: LoraSettings) -> int:
    """Values of the adapters: rank x (in + out) of each target, q, k and v, and gate and up, as one matrix each."""
    sides = {
        "qkv": shape.hidden + shape.query_width + shape.cache_width,
        "out": shape.query_width + shape.hidden,
        "gate_up": shape.hidden + 2 * shape.feed_forward,
        "down": shape.feed_forward + shape.hidden,
    }
    return shape.layers * lora.rank * sum(sides[target] for target in lora.targets)


def trained_parameters(shape: DecoderShape, job: TrainingJob) -> int:
    """Parameters that get a gradient."""
    return shape.parameters if job.lora is None else lora_parameters(shape, job.lora)
