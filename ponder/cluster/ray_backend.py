"""Rollout workers and trainers on a Ray cluster, behind the `Backend` protocol.

The model reaches them through Ray, as a config and weights: nodes need not share a file system for that. (Checkpoints
are another matter: see `TrainerGroup.save_state`.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ponder.cluster.processes import scratch_folder
from ponder.cluster.reward_worker import SeparateRewardModel, send_reward_model
from ponder.cluster.rollout_pool import RolloutPool
from ponder.cluster.runtime import Runtime, as_arrays, as_tensors
from ponder.cluster.trainer_group import TrainerGroup
from ponder.errors import UsageError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import DTYPES, Decoder, Precision
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import LoadedModel, save_folder
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import ClusterSettings, Device
from ponder.rewards import RewardModel
from ponder.rollout.base import Session
from ponder.rollout.native import NativeSession
from ponder.rollout.vllm import VllmSession
from ponder.training.trainer import TrainerSettings


class RayBackend:
    """See `Backend`. Its engine is a `RolloutPool`, its trainer a `TrainerGroup`."""

    def __init__(
        self,
        model: LoadedModel,
        settings: TrainerSettings,
        cluster: ClusterSettings,
        keep_reference: bool,
        warn: Callable[[str], None],
        reward_models: int = 0,
        device: Device = "cpu",
    ) -> None:
        """Start or join Ray, and start the workers and ranks. `warn` hears of those that are replaced.

        `reward_models` is how many `separate` may be asked for, `device` the recipe's. Raises `UsageError` for what
        Ray, the engine or the trainers cannot do, `InterruptedRunError` when workers or ranks do not start.
        """
        self._model = model
        self._cluster = cluster
        self._warn = warn
        weights = dict(model.decoder.state_dict())
        size = sum(weight.numel() * weight.element_size() for weight in weights.values())
        with ExitStack() as stack:
            stack.enter_context(Runtime(cluster, size, reward_models, device))
            self.engine = open_pool(model, cluster, settings.precision, warn)
            stack.callback(self.engine.close)
            self.trainer = TrainerGroup(model.config, weights, settings, cluster, keep_reference, warn)
            stack.callback(self.trainer.close)
            self._stack = stack.pop_all()
        self._published: int | None = None
        self._before = self._costs()

    def publish(self) -> None:
        """See `Backend`: returns at once, and what is asked for next is sampled under these weights."""
        if self._published != self.trainer.version:
            self.engine.publish(self.trainer.version, self.trainer.publish_ref())
            self._published = self.trainer.version

    def recover(self) -> None:
        """See `Backend`."""
        self.engine.forget()
        self._published = None
        self.trainer.restart()

    def policy(self) -> Decoder:
        """See `Backend`: in this process, on the CPU."""
        decoder = Decoder(self._model.config)
        decoder.load_state_dict(dict(self.trainer.weights()))
        return decoder

    def separate(self, name: str, folder: str, precision: Precision) -> RewardModel | None:
        """See `Backend`."""
        if self._cluster.reward_models.place == "shared":
            return None
        sent = send_reward_model(folder, DTYPES[precision], "cuda" if self._cluster.reward_models.gpus else "cpu")
        worker = SeparateRewardModel(name, sent, self._cluster, self._warn)
        self._stack.callback(worker.close)
        return worker

    def metrics(self) -> dict[str, float]:
        """See `Backend`: since the last call, or of the last update of the weights."""
        now, before = self._costs(), self._before
        self._before = now
        statistics = self.engine.statistics
        return {
            "cluster/restarts": now[0] - before[0],
            "time/wait": now[1] - before[1],
            "time/weights": statistics.weights_s,
        }

    def close(self) -> None:
        """See `Backend`: ends Ray, too, where it was started here."""
        self._stack.close()

    def _costs(self) -> tuple[float, float]:
        return float(self.engine.statistics.restarts), self.engine.statistics.waited_s


def open_pool(
    model: LoadedModel, cluster: ClusterSettings, precision: Precision, warn: Callable[[str], None]
) -> RolloutPool:
    """Rollout workers for a model, which sample once weights are published; Ray runs already. Raises as `RolloutPool`,
    and `UsageError` for an architecture that workers cannot hold."""
    if isinstance(model.decoder, FallbackDecoder):
        raise UsageError("cluster: ray is for Llama, Qwen2 and Qwen3 models alone: set cluster: local")
    return RolloutPool(_sessions(model, cluster, precision), cluster, warn)


def _sessions(model: LoadedModel, cluster: ClusterSettings, precision: Precision) -> Callable[[], Session]:
    """What a rollout worker makes its session with, on whichever node it is."""
    if cluster.rollout.engine == "vllm":
        return VllmSessions(as_arrays(model.decoder.state_dict()), model.config, model.tokenizer, cluster, precision)
    device = "cuda" if cluster.rollout.gpus else "cpu"
    return NativeSessions(model.config, model.tokenizer, device, precision)


@dataclass(frozen=True)
class NativeSessions:
    """Makes sessions of the native engine. They have no weights before they load some."""

    config: DecoderConfig
    tokenizer: Tokenizer
    device: str
    precision: Precision

    def __call__(self) -> NativeSession:
        decoder = Decoder(self.config).to(torch.device(self.device))
        decoder.compute_in(self.precision)
        return NativeSession(decoder, self.tokenizer.decode)


@dataclass(frozen=True)
class VllmSessions:
    """Makes sessions of vLLM, which reads a model from a folder: a temporary one on its own node."""

    weights: dict[str, Any]
    """As `as_arrays` makes them."""
    config: DecoderConfig
    tokenizer: Tokenizer
    cluster: ClusterSettings
    precision: Precision

    def __call__(self) -> VllmSession:
        decoder = Decoder(self.config)
        decoder.load_state_dict(as_tensors(self.weights))
        rollout = self.cluster.rollout
        # it has read the folder when it has started
        with scratch_folder("vllm") as folder:
            save_folder(folder / "model", decoder, self.tokenizer)
            return VllmSession(
                folder / "model",
                rollout.vllm,
                dtype=DTYPES[self.precision],
                threads=rollout.threads,
                deadlines=self.cluster.deadlines,
            )
