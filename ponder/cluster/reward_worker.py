"""A reward model in a process of its own, behind the `RewardModel` protocol.

Its weights go through Ray one tensor at a time, on the CPU: the driver never holds the whole model, and the worker's
node need not see the driver's files. A worker has no state but them, so that one which dies or falls silent is
replaced, and asked again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ponder.cluster.rollout_pool import reason_of
from ponder.cluster.runtime import as_arrays, as_tensors
from ponder.errors import InterruptedRunError, PonderError
from ponder.model.reward_model import HEAD, RewardCard, open_reward_model
from ponder.recipe import ClusterSettings
from ponder.rewards import RewardModel

_CALLS = 4
"""Calls that a worker answers at once: one that scores, and those that ask whether it lives."""

_BEAT_S = 5.0
_SLICE_S = 1.0


@dataclass(frozen=True)
class SentRewardModel:
    """Makes a reward model from what lies in Ray's object store."""

    card: RewardCard
    weights: Mapping[str, Any]
    """References to the weights by their names in the folder, each as `as_arrays` makes it."""
    dtype: torch.dtype
    device: str

    def __call__(self) -> RewardModel:
        return self.card.build(self.weights, self._read, self.dtype).to(torch.device(self.device))

    def _read(self, name: str) -> Tensor:
        import ray

        return as_tensors(ray.get(self.weights[name]))[name]


def send_reward_model(folder: str, dtype: torch.dtype, device: str) -> SentRewardModel:
    """What makes the reward model of a folder on `device`, in any process of the cluster; Ray runs already.

    Raises `BrokenInputError` for a folder that is no reward model, or damaged.
    """
    import ray

    card, names, read = open_reward_model(folder)
    weights: dict[str, Any] = {}
    for name in sorted(names):
        weight = read(name).to(torch.float32 if name == HEAD else dtype)
        weights[name] = ray.put(as_arrays({name: weight}))
    return SentRewardModel(card, weights, dtype, device)


class RewardWorker:
    """Holds a reward model. Plain Python; Ray runs its methods in several threads."""

    def __init__(self, make: Callable[[], RewardModel], threads: int) -> None:
        self._scorer = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._model = self._scorer.submit(make)  # what it raises is for those who ask

    def score_replies(self, prompts: list[str], replies: list[str]) -> list[float]:
        """See `RewardModel`."""
        return self._scorer.submit(self._model.result().score_replies, prompts, replies).result()

    def is_alive(self) -> None:
        """Answers once the model is there, and while it is at work."""
        self._model.result()


class SeparateRewardModel:
    """The driver's side of a reward worker: a `RewardModel`."""

    def __init__(
        self, name: str, make: Callable[[], RewardModel], settings: ClusterSettings, warn: Callable[[str], None]
    ) -> None:
        """Start the worker of the reward model `name`, which makes it there; Ray runs already.

        `warn` hears when it is replaced.
        """
        import ray

        self._ray = ray
        self._name = name
        self._settings = settings
        self._warn = warn
        self._make = make
        self._actor = self._start()
        self.restarts = 0

    def score_replies(self, prompts: list[str], replies: list[str]) -> list[float]:
        """See `RewardModel`. Raises what making the model and scoring raise, and `InterruptedRunError` beyond
        `max_restarts`."""
        while True:
            scores, why = self._ask(prompts, replies)
            if scores is not None:
                return scores
            self._replace(f"the worker of the reward model {self._name!r} {why}", len(replies))

    def close(self) -> None:
        """End the worker."""
        self._ray.kill(self._actor)

    def _start(self) -> Any:
        self._has_started = False
        judge = self._settings.reward_models
        remote: Any = self._ray.remote(RewardWorker)
        options = {"num_cpus": judge.cpus, "num_gpus": judge.gpus, "max_concurrency": _CALLS}
        return remote.options(**options).remote(self._make, judge.threads)

    def _ask(self, prompts: list[str], replies: list[str]) -> tuple[list[float] | None, str]:
        """The scores, or why there are none."""
        from ray.exceptions import RayError, RayTaskError

        limits = self._settings.deadlines
        begun, silent = time.monotonic(), 0.0
        scores, beat = self._actor.score_replies.remote(prompts, replies), self._actor.is_alive.remote()
        try:
            while True:
                looked = time.monotonic()
                answered, _ = self._ray.wait([scores, beat], num_returns=1, timeout=_SLICE_S)
                if scores in answered:
                    found: list[float] = self._ray.get(scores)
                    self._has_started = True
                    return found, ""
                if beat in answered:
                    self._ray.get(beat)
                    self._has_started, silent = True, 0.0
                    self._ray.wait([scores], timeout=min(_BEAT_S, limits.silent_s / 4))
                    beat = self._actor.is_alive.remote()
                    continue
                # a driver that was itself stopped for a while must not take that for the worker's silence
                silent += min(time.monotonic() - looked, 2 * _SLICE_S)
                allowed = limits.silent_s if self._has_started else limits.start_s
                if silent > allowed:
                    return None, f"was silent for {allowed:g} s while the driver waited for {len(replies)} scores"
                if time.monotonic() - begun > limits.rollout_s:
                    return None, f"has owed {len(replies)} scores for {limits.rollout_s:g} s (rollout_s)"
        except RayTaskError as error:
            if isinstance(error.cause, PonderError):
                raise error.cause from error
            raise RuntimeError(f"the worker of the reward model {self._name!r}: {error}") from error
        except RayError as error:
            return None, f"is gone ({reason_of(error)})"

    def _replace(self, what: str, missing: int) -> None:
        self.restarts += 1
        if self.restarts > self._settings.max_restarts:
            raise InterruptedRunError(f"{what}, and cluster.max_restarts ({self._settings.max_restarts}) is used up")
        self._warn(f"{what}: replaced, its {missing} scores are asked for again")
        self._ray.kill(self._actor)
        self._actor = self._start()
