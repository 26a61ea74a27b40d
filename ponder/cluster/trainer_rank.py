"""A trainer's rank in a process of its own. The class is plain Python; `trainer_group` makes it an actor.

Ray runs `call` in one thread and `where` in another, so that a rank answers while it computes or waits for others.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ponder.cluster.runtime import as_arrays, as_tensors
from ponder.errors import LostWorkersError, UsageError
from ponder.recipe import ClusterSettings
from ponder.training.execution import is_out_of_memory
from ponder.training.rank import RankLearner
from ponder.training.sharding import is_lost_peer, join, open_store


@dataclass(frozen=True)
class RankPlan:
    """What all ranks of a group are made from."""

    make: Callable[..., RankLearner]
    """Called with `rank`, `size`, `weights` and `device` (see `RankLearner`)."""
    cluster: ClusterSettings


@dataclass(frozen=True)
class Answer:
    """What a call returned, on rank 0, and how things stand after it, on every rank."""

    result: Any = None
    version: int = 0
    lr: float = 0.0
    notes: list[str] = field(default_factory=list)


@contextmanager
def _explained() -> Iterator[None]:
    """Say in a `PonderError` what an exchange or an allocation that failed means."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        if is_out_of_memory(error):
            raise UsageError(f"a trainer rank is out of memory: lower tokens_per_micro_batch ({reason})") from error
        if is_lost_peer(error):
            raise LostWorkersError(f"an exchange between trainer ranks failed: {reason}") from error
        raise


class TrainerRank:
    """Holds a `RankLearner`. A call raises what that raises, and `LostWorkersError` when other ranks are gone."""

    def __init__(self) -> None:
        self._trainer: RankLearner | None = None
        self._store: Any = None

    def where(self) -> tuple[int, str]:
        """Process id and host name: at any time, as a sign of life."""
        return os.getpid(), socket.gethostname()

    def listen(self) -> tuple[str, int]:
        """On rank 0: open the place where the ranks meet; host and port."""
        import ray

        host = ray.util.get_node_ip_address()
        self._store = open_store(host)
        return host, self._store.port

    def start(self, rank: int, plan: RankPlan, place: tuple[str, int], weights: Mapping[str, Any] | None) -> Answer:
        """Meet the others and take this rank's part of the model, of rank 0's `weights` (as `as_arrays` packs them)."""
        ranks = plan.cluster.trainer
        torch.set_num_threads(ranks.threads)
        device = torch.device("cuda" if ranks.gpus else "cpu")
        store = self._store if rank == 0 else open_store(*place)
        with _explained():
            join(rank, ranks.ranks, store, plan.cluster.deadlines.update_s, device, loopback=place[0] == "127.0.0.1")
            whole = None if weights is None else as_tensors(weights)
            self._trainer = plan.make(rank=rank, size=ranks.ranks, weights=whole, device=device)
        return self._answer(None)

    def call(self, name: str, arguments: tuple[Any, ...]) -> Answer:
        """Call a method of the trainer, as on all ranks at once."""
        trainer = self._trainer
        assert trainer is not None, "called before start"
        with _explained():
            result = getattr(trainer, name)(*arguments)
        return self._answer(result)

    def publish(self) -> Answer:
        """Put the whole weights into Ray from rank 0, where whoever needs them gets them; the result is [reference]."""
        import ray

        assert self._trainer is not None, "called before start"
        with _explained():
            weights = self._trainer.weights()
        return self._answer([ray.put(as_arrays(weights))] if weights else None)

    def _answer(self, result: Any) -> Answer:
        trainer = self._trainer
        assert trainer is not None
        notes = trainer.drain_notes()
        return Answer(result if trainer.ranks.rank == 0 else None, trainer.version, trainer.lr, notes)
