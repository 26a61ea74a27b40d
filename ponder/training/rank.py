"""One rank of a trainer on torch.distributed: every rank is called alike, with the same arguments, at the same time."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ponder.errors import BrokenInputError, UsageError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.lora import add_adapters, merged_weights
from ponder.model.reward_model import Scored, put_scalar_head
from ponder.store.files import disk_errors
from ponder.training.execution import Execution, Ranks
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example
from ponder.training.reward_update import RewardExample, RewardStatistics, reward_scores, reward_step
from ponder.training.sharded_checkpoint import (
    check_parts,
    empty_state,
    read_parts,
    state_shards,
    write_part,
)
from ponder.training.sharding import Shard, Sharding, gather, named_shards, place, spread
from ponder.training.trainer import TrainerSettings, prepare, update_policy
from ponder.training.update import Trajectory, UpdateStatistics, collect, frozen_logprobs, supervised_step


class RankLearner:
    """This rank's part of a `Learner`; `weights` come on rank 0."""

    def __init__(
        self,
        rank: int,
        size: int,
        model: Decoder,
        weights: Mapping[str, Tensor] | None,
        settings: TrainerSettings,
        sharding: Sharding,
        device: torch.device | None,
    ) -> None:
        """`model` has no content yet (it is on the device `meta`). `weights` are rank 0's to give, by the model's own
        names, and None elsewhere.

        Where `size` is above 1, the ranks have met (`ponder.training.sharding.join`).
        """
        self.settings = settings
        self.ranks = Ranks(rank, size, device or torch.device("cpu"), lockstep=sharding == "fsdp2")
        self.execution = Execution(self.ranks, fp16=settings.precision == "fp16")
        prepare(model, settings)
        self.model = place(model, sharding, self.execution)
        spread(self.model, weights, self.ranks)
        self.optimizer = Optimizer(self.model, settings.optimizer, settings.total_steps, self.execution)
        self.version = 0
        """See `Trainer`."""

    @property
    def lr(self) -> float:
        """See `Learner`."""
        return self.optimizer.lr

    def weights(self) -> Mapping[str, Tensor]:
        """See `Learner`: on rank 0, and nothing elsewhere."""
        return gather(self.model, self.ranks)

    def save_state(self, folder: Path, name: str) -> dict[str, Any]:
        """See `Learner`. Each rank writes its part into `folder / name`, which all of them must reach.

        Raises `BrokenInputError`, on all ranks, when the disk refuses on one.
        """
        target = folder / name
        self.ranks.together(lambda: self._clear_for(target))
        moments, numbers = state_shards(self.optimizer.moments(), self.ranks)
        shards = self._weight_shards() | moments
        try:
            parts = self.ranks.together(lambda: write_part(target, shards, self.ranks))
        except BrokenInputError:
            self._clear_for(target)
            raise
        return {
            "folder": name,
            "parts": parts,
            "moments": list(moments),
            "numbers": numbers,
            "version": self.version,
            "step_count": self.optimizer.step_count,
            "execution": self.execution.state_dict(),
        }

    def _clear_for(self, target: Path) -> None:
        """Remove what an attempt that failed has left."""
        if self.ranks.rank == 0 and target.exists():
            with disk_errors(target, "remove"):
                shutil.rmtree(target)

    def load_state(self, folder: Path, state: dict[str, Any]) -> None:
        """See `Learner`: of any number of ranks and either sharding. Raises on all ranks alike."""
        source, parts = folder / state["folder"], state["parts"]
        self.ranks.together(lambda: check_parts(source, parts, self.ranks))
        moments = empty_state(self.optimizer.named, state["moments"], state["numbers"])
        shards = self._weight_shards() | state_shards(moments, self.ranks)[0]
        self.ranks.together(lambda: read_parts(source, parts, shards))
        self.optimizer.load_moments(moments)
        self.optimizer.step_count = state["step_count"]
        self.execution.load_state_dict(state["execution"])
        self.version = state["version"]

    def _weight_shards(self) -> dict[str, Shard]:
        """This rank's part of what a checkpoint holds of the weights: what learns."""
        return {f"model.{n}": s for n, s in named_shards(self.model, self.ranks, learnt_only=True).items()}

    def close(self) -> None:
        """Nothing is held that goes not with the process."""

    def drain_notes(self) -> list[str]:
        """What a person should know, once."""
        notes, self.execution.notes = self.execution.notes, []
        return notes


class RankTrainer(RankLearner):
    """This rank's part of a `Trainer`. Statistics are the whole batch's on every rank."""

    def __init__(
        self,
        rank: int,
        size: int,
        config: DecoderConfig,
        weights: Mapping[str, Tensor] | None,
        settings: TrainerSettings,
        sharding: Sharding = "fsdp2",
        keep_reference: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """See `RankLearner`. Raises `UsageError` for adapters on quantised weights, which belong to one process."""
        if settings.lora is not None and settings.lora.quantise != "none":
            raise UsageError("lora.quantise is for one process: set it to `none`, or cluster to `local`")
        start = _with_adapters(config, weights, settings)
        super().__init__(rank, size, _empty(config), start, settings, sharding, device)
        self.reference: Decoder | None = None
        if keep_reference:
            self.reference = _empty(config)
            prepare(self.reference, dataclasses.replace(settings, lora=None))
            self.reference = place(self.reference.requires_grad_(False), sharding, self.execution)
            spread(self.reference, weights, self.ranks)

    def policy_updates(self, parts: Sequence[Sequence[Trajectory]]) -> list[UpdateStatistics]:
        """See `Trainer`."""
        updates = update_policy(self.model, self.optimizer, parts, self.settings, self.reference)
        self.version += 1
        return updates

    def supervised_update(self, examples: Sequence[Example]) -> UpdateStatistics:
        """See `Trainer`."""
        return supervised_step(self.model, self.optimizer, examples, self.settings.budget)

    def logprobs(self, trajectories: Sequence[Trajectory], of: Literal["policy", "reference"]) -> list[Tensor]:
        """See `Trainer`: all of them, on every rank."""
        model = self.model if of == "policy" else self.reference
        assert model is not None, "asked for a reference where none is kept"
        examples = [t.example for t in trajectories]
        compute = partial(frozen_logprobs, model, temperature=self.settings.temperature)
        return collect(self.execution, examples, [len(e.reply_ids) for e in examples], self.settings.budget, compute)

    def refresh_reference(self) -> None:
        """See `Trainer`."""
        assert self.reference is not None, "asked for a reference where none is kept"
        spread(self.reference, self.weights() or None, self.ranks)

    def weights(self) -> Mapping[str, Tensor]:
        """See `RankLearner`."""
        gathered = super().weights()
        if self.settings.lora is not None and self.ranks.rank == 0:
            return merged_weights(self.model, gathered)
        return gathered

    def _weight_shards(self) -> dict[str, Shard]:
        shards = super()._weight_shards()
        if self.reference is not None:
            shards |= {f"reference.{n}": s for n, s in named_shards(self.reference, self.ranks).items()}
        return shards


class RankRewardTrainer(RankLearner):
    """This rank's part of a `RewardTrainer`. Statistics and scores are the whole batch's on every rank."""

    def __init__(
        self,
        rank: int,
        size: int,
        config: DecoderConfig,
        weights: Mapping[str, Tensor] | None,
        settings: TrainerSettings,
        sharding: Sharding = "fsdp2",
        device: torch.device | None = None,
    ) -> None:
        """See `RankLearner`."""
        with torch.device("meta"):
            model = put_scalar_head(Decoder(config))
        super().__init__(rank, size, model, weights, settings, sharding, device)

    def reward_update(self, examples: Sequence[RewardExample]) -> RewardStatistics:
        """See `RewardTrainer`."""
        return reward_step(self.model, self.optimizer, examples, self.settings.budget)

    def raw_scores(self, replies: Sequence[Scored]) -> list[float]:
        """See `RewardTrainer`."""
        return reward_scores(self.model, self.execution, replies, self.settings.budget)


def _empty(config: DecoderConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


def _with_adapters(
    config: DecoderConfig, weights: Mapping[str, Tensor] | None, settings: TrainerSettings
) -> Mapping[str, Tensor] | None:
    """Rank 0's weights, and adapters where they begin."""
    if weights is None or settings.lora is None:
        return weights
    whole = _empty(config)
    whole.load_state_dict(weights, assign=True)
    add_adapters(whole, settings.lora, settings.seed)
    return dict(whole.named_parameters())
