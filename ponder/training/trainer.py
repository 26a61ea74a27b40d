"""What a trainer is: weights, their optimizer and, of a policy, its reference behind the few calls that a stage makes.

The `Local` ones are one process; the ranks of a cluster stand behind the same interfaces (`ponder/cluster/`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from ponder.model.decoder import Decoder
from ponder.model.lora import add_adapters, learnt_weights, load_learnt_weights, merged_weights
from ponder.model.reward_model import Scored
from ponder.recipe import AlgorithmSettings, LoraSettings, OptimizerSettings
from ponder.training.execution import Execution
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example, micro_batches
from ponder.training.reward_update import RewardExample, RewardStatistics, reward_scores, reward_step
from ponder.training.update import Trajectory, UpdateStatistics, frozen_logprobs, policy_step, supervised_step


@dataclass(frozen=True)
class TrainerSettings:
    """All that an update depends on besides weights and data."""

    optimizer: OptimizerSettings
    total_steps: int
    """Optimizer steps of the whole stage, for the learning rate's schedule."""
    budget: int
    """Tokens of one forward and backward pass, on each rank."""
    algorithm: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    """Of policy updates; `importance.mode` is resolved, never `auto`."""
    temperature: float = 1.0
    max_tokens: int = 512
    """Of the sampling, for losses that divide by it."""
    lora: LoraSettings | None = None
    seed: int = 0
    """Of what an adapter starts from."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    activation_checkpointing: bool = False
    frozen_layers: int = 0
    """Lowest layers that keep their weights, and with them the embeddings."""


class Learner(Protocol):
    """Holds weights that learn: what all trainers have in common."""

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """Every weight, whole, on the CPU, by the decoder's own names; adapters are merged in."""
        ...

    def save_state(self, folder: Path, name: str) -> dict[str, Any]:
        """What an exact resume needs: tensors and plain values for the caller's own state file. A trainer that keeps
        its part in files of its own puts them into `folder / name`, in place of what is there, and returns what it
        needs to find them, with `name` as `folder`: whoever asked removes them when they are not wanted any more."""
        ...

    def load_state(self, folder: Path, state: dict[str, Any]) -> None:
        """Go back to what `save_state` returned. Raises `DamagedCheckpointError` for a damaged or missing file."""
        ...

    def restart(self) -> None:
        """After a `LostWorkersError`, which any call may raise where a rank is lost: as in the beginning again, and
        without state until `load_state`."""
        ...

    def close(self) -> None:
        """End processes and free memory."""
        ...


class Trainer(Learner, Protocol):
    """Trains a language model: a policy, or whoever learns from text."""

    @property
    def version(self) -> int:
        """Policy steps done so far, over all starts: names the weights that a rollout was sampled with."""
        ...

    def policy_updates(self, parts: Sequence[Sequence[Trajectory]]) -> list[UpdateStatistics]:
        """One step of the policy: an optimizer step on each part, in order. `version` grows by one."""
        ...

    def supervised_update(self, examples: Sequence[Example]) -> UpdateStatistics:
        """One optimizer step on the mean cross-entropy of the replies' tokens."""
        ...

    def logprobs(self, trajectories: Sequence[Trajectory], of: Literal["policy", "reference"]) -> list[Tensor]:
        """The reply's log-probabilities (T,) in nats, for each trajectory, without a gradient."""
        ...

    def refresh_reference(self) -> None:
        """Copy the policy into the reference."""
        ...


class RewardTrainer(Learner, Protocol):
    """Trains a reward model: a decoder with a scalar head."""

    def reward_update(self, examples: Sequence[RewardExample]) -> RewardStatistics:
        """One optimizer step on the mean loss of pairs, or of labelled replies."""
        ...

    def raw_scores(self, replies: Sequence[Scored]) -> list[float]:
        """Scores before any norm, without a gradient."""
        ...


def prepare(model: Decoder, settings: TrainerSettings) -> None:
    """Make a decoder, in place, into what an optimizer is to move: what is frozen, added, and how it computes."""
    if settings.lora is not None:
        add_adapters(model, settings.lora, settings.seed)
    model.freeze(settings.frozen_layers)
    model.compute_in(settings.precision)
    model.checkpoint_activations(settings.activation_checkpointing)


def update_policy(
    policy: Decoder,
    optimizer: Optimizer,
    parts: Sequence[Sequence[Trajectory]],
    settings: TrainerSettings,
    reference: Decoder | None,
) -> list[UpdateStatistics]:
    """An optimizer step on each part, in order, as the settings say."""
    return [
        policy_step(
            policy,
            optimizer,
            part,
            settings.algorithm,
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            budget=settings.budget,
            reference=reference,
        )
        for part in parts
    ]


class LocalLearner:
    """A `Learner` in this process. It trains the decoder that it is given, in place, or adapters that it puts there."""

    def __init__(
        self, model: Decoder, settings: TrainerSettings, tell: Callable[[str], None] = lambda note: None
    ) -> None:
        """`tell` hears what a person should know, such as that memory ran out and a step was repeated."""
        prepare(model, settings)
        self.model = model
        self.settings = settings
        self.execution = Execution(fp16=settings.precision == "fp16")
        self.optimizer = Optimizer(model, settings.optimizer, settings.total_steps, self.execution)
        self._tell = tell

    @property
    def lr(self) -> float:
        return self.optimizer.lr

    def _tell_notes(self) -> None:
        for note in self.execution.notes:
            self._tell(note)
        self.execution.notes.clear()

    def weights(self) -> Mapping[str, Tensor]:
        return {name: weight.cpu() for name, weight in merged_weights(self.model).items()}

    def save_state(self, folder: Path, name: str) -> dict[str, Any]:
        """All of it goes into the caller's file."""
        return {
            "weights": learnt_weights(self.model),
            "optimizer": self.optimizer.state_dict(),
            "execution": self.execution.state_dict(),
        }

    def load_state(self, folder: Path, state: dict[str, Any]) -> None:
        load_learnt_weights(self.model, state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.execution.load_state_dict(state["execution"])

    def restart(self) -> None:
        """Nothing that this process holds is lost while it lives."""

    def close(self) -> None:
        """Nothing is held that goes not by itself."""


class LocalTrainer(LocalLearner):
    """A `Trainer` in this process."""

    def __init__(
        self,
        policy: Decoder,
        settings: TrainerSettings,
        keep_reference: bool = False,
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        """See `LocalLearner`."""
        super().__init__(policy, settings, tell)
        self.reference = copy.deepcopy(policy) if keep_reference else None
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    def policy_updates(self, parts: Sequence[Sequence[Trajectory]]) -> list[UpdateStatistics]:
        updates = update_policy(self.model, self.optimizer, parts, self.settings, self.reference)
        self._version += 1
        self._tell_notes()
        return updates

    def supervised_update(self, examples: Sequence[Example]) -> UpdateStatistics:
        update = supervised_step(self.model, self.optimizer, examples, self.settings.budget)
        self._tell_notes()
        return update

    def logprobs(self, trajectories: Sequence[Trajectory], of: Literal["policy", "reference"]) -> list[Tensor]:
        model = self.model if of == "policy" else self.reference
        assert model is not None, "asked for a reference where none is kept"
        parts: list[Tensor] = []
        for batch in micro_batches([t.example for t in trajectories], self.settings.budget):
            logprobs = frozen_logprobs(model, batch, self.settings.temperature).cpu()
            parts += logprobs.split([len(trajectories[m].example.reply_ids) for m in batch.members])
        return parts

    def refresh_reference(self) -> None:
        assert self.reference is not None, "asked for a reference where none is kept"
        load_learnt_weights(self.reference, learnt_weights(self.model))

    def save_state(self, folder: Path, name: str) -> dict[str, Any]:
        state = super().save_state(folder, name) | {"version": self._version}
        if self.reference is not None:
            state["reference"] = learnt_weights(self.reference)
        return state

    def load_state(self, folder: Path, state: dict[str, Any]) -> None:
        super().load_state(folder, state)
        self._version = state["version"]
        if self.reference is not None:
            load_learnt_weights(self.reference, state["reference"])


class LocalRewardTrainer(LocalLearner):
    """A `RewardTrainer` in this process."""

    def reward_update(self, examples: Sequence[RewardExample]) -> RewardStatistics:
        statistics = reward_step(self.model, self.optimizer, examples, self.settings.budget)
        self._tell_notes()
        return statistics

    def raw_scores(self, replies: Sequence[Scored]) -> list[float]:
        scores = reward_scores(self.model, self.execution, replies, self.settings.budget)
        self._tell_notes()
        return scores
