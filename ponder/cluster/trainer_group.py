"""The driver's side of the trainers: ranks of torch.distributed as Ray actors, behind the protocols of trainers.

Ranks do everything together, so that one that is lost costs them all: the others would wait for it. They are ended, and
`LostWorkersError` tells why; `restart` brings new ones, which know nothing until `load_state`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from ponder.cluster.rollout_pool import reason_of
from ponder.cluster.runtime import as_arrays, as_tensors
from ponder.cluster.trainer_rank import Answer, RankPlan, TrainerRank
from ponder.errors import LostWorkersError, PonderError
from ponder.model.config import DecoderConfig
from ponder.model.reward_model import Scored
from ponder.recipe import ClusterSettings
from ponder.training.packing import Example
from ponder.training.rank import RankLearner, RankRewardTrainer, RankTrainer
from ponder.training.reward_update import RewardExample, RewardStatistics
from ponder.training.trainer import TrainerSettings
from ponder.training.update import Trajectory, UpdateStatistics

if TYPE_CHECKING:
    from torch import Tensor

_BEAT_S = 1.0
"""The driver asks ranks that compute for a sign of life so often."""

_GRACE_S = 5.0
"""Once a rank has failed, the others have so long to say the same, or to be found dead."""


class RankGroup:
    """A `Learner` on `cluster.trainer.ranks` ranks. Belongs to one thread."""

    def __init__(
        self,
        make: Callable[..., RankLearner],
        weights: Mapping[str, Tensor],
        cluster: ClusterSettings,
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        """Start the ranks on Ray, which runs already; each holds what `make` makes there (see `RankPlan`).

        `weights` are the model's, by the decoder's own names; `tell` hears what a person should know. Raises
        `LostWorkersError` when a rank does not start within `deadlines.start_s`, `UsageError` for settings that ranks
        cannot heed.
        """
        import ray

        self._ray: Any = ray
        self._plan = RankPlan(make, cluster)
        self._deadlines = cluster.deadlines
        self._weights = ray.put(as_arrays(weights))
        self._tell = tell
        self._version = 0
        self._lr = 0.0
        self._place: Any = None
        """The ranks' placement group, where they reserve anything."""
        self._actors: list[Any] = []
        self._where: list[tuple[int, str] | None] = []
        self._start()

    @property
    def lr(self) -> float:
        return self._lr

    def weights(self) -> Mapping[str, Tensor]:
        """See `Learner`; not to be written to. `publish_ref` is for whoever only passes them on."""
        # they lie with rank 0, which may be gone by now
        (arrays,) = self._gather([self.publish_ref()], "the weights", self._deadlines.weights_s)
        return as_tensors(arrays)

    def save_state(self, folder: Path, name: str) -> dict[str, Any]:
        """See `Learner`: each rank writes its part into `folder`, which every node must reach under that path."""
        return self._call("a checkpoint", self._deadlines.weights_s, "save_state", folder.absolute(), name)

    def load_state(self, folder: Path, state: dict[str, Any]) -> None:
        """See `Learner`."""
        self._call("a checkpoint to be read", self._deadlines.weights_s, "load_state", folder.absolute(), state)

    def close(self) -> None:
        """End the ranks."""
        for actor, where in zip(self._actors, self._where, strict=True):
            self._ray.kill(actor)
            if where is not None and where[1] == socket.gethostname():
                # a process that is stopped does not hear Ray
                with contextlib.suppress(ProcessLookupError):
                    os.kill(where[0], signal.SIGKILL)
        self._actors, self._where = [], []
        if self._place is not None:
            self._ray.util.remove_placement_group(self._place)
            self._place = None

    # --- beyond it -------------------------------------------------------------------------------------------------

    def publish_ref(self) -> Any:
        """Ray's reference to the whole weights (`as_arrays`), which rank 0 has put there: they never come by here."""
        calls = [actor.publish.remote() for actor in self._actors]
        (reference,) = self._wait(calls, "the weights", self._deadlines.weights_s).result
        return reference

    def restart(self) -> None:
        """New ranks in place of all, as they were in the beginning."""
        self.close()
        self._start()

    # --- ranks -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        trainer, size = self._plan.cluster.trainer, self._plan.cluster.trainer.ranks
        self._where = [None] * size
        options = {"num_cpus": trainer.cpus, "num_gpus": trainer.gpus, "concurrency_groups": {"life": 1}}
        remote = self._ray.remote(**options)(TrainerRank)
        self._place = self._reserve()
        self._actors = [remote.options(scheduling_strategy=self._bundle(rank)).remote() for rank in range(size)]
        begun = time.monotonic()
        try:
            pings = [self._ping(actor) for actor in self._actors]
            self._where = self._gather(pings, "it to start", self._deadlines.start_s, starting=True)
            place = self._gather([self._actors[0].listen.remote()], "it to start", self._deadlines.start_s)[0]
            calls = [
                actor.start.remote(rank, self._plan, place, self._weights if rank == 0 else None)
                for rank, actor in enumerate(self._actors)
            ]
            left = self._deadlines.start_s - (time.monotonic() - begun)
            self._wait(calls, "it to take the model", left)
        except BaseException:
            self.close()
            raise

    def _reserve(self) -> Any:
        """Room for all ranks on as few nodes as have it, since they exchange much: Ray would fill each by half."""
        trainer = self._plan.cluster.trainer
        each = {name: amount for name, amount in (("CPU", trainer.cpus), ("GPU", trainer.gpus)) if amount}
        return self._ray.util.placement_group([each] * trainer.ranks, strategy="PACK") if each else None

    def _bundle(self, rank: int) -> Any:
        """Where Ray starts a rank."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        return "DEFAULT" if self._place is None else PlacementGroupSchedulingStrategy(self._place, rank)

    def _ping(self, actor: Any) -> Any:
        return actor.where.options(concurrency_group="life").remote()

    def _call(self, what: str, limit_s: float, name: str, *arguments: Any) -> Any:
        if not self._actors:
            raise LostWorkersError("the trainer's ranks are gone, and were not started again")
        shared = self._ray.put(arguments)  # once, however many ranks there are
        return self._wait([actor.call.remote(name, shared) for actor in self._actors], what, limit_s).result

    def _wait(self, calls: Sequence[Any], what: str, limit_s: float) -> Answer:
        """Rank 0's answer, when all have answered."""
        first: Answer = self._gather(calls, what, limit_s)[0]
        self._version, self._lr = first.version, first.lr
        for note in first.notes:
            self._tell(note)
        return first

    # --- waiting ---------------------------------------------------------------------------------------------------

    def _gather(self, calls: Sequence[Any], what: str, limit_s: float, starting: bool = False) -> list[Any]:
        """The answers, in order of rank. Raises a `PonderError` that a rank raised; ends all ranks and raises
        `LostWorkersError` when one is dead, silent or late."""
        answers: dict[int, Any] = {}
        failures: dict[int, BaseException] = {}
        signs = None if starting else _SignsOfLife(self._ping, self._actors)
        waited, last = 0.0, time.monotonic()
        while missing := [rank for rank in range(len(calls)) if rank not in answers and rank not in failures]:
            done, _ = self._ray.wait([calls[rank] for rank in missing], num_returns=1, timeout=_BEAT_S)
            for rank in missing:
                if calls[rank] in done:
                    self._take(calls[rank], rank, what, answers, failures)
            # a driver that was itself stopped for a while must not take that for the ranks' silence
            elapsed = min(time.monotonic() - last, 2 * _BEAT_S)
            waited, last = waited + elapsed, time.monotonic()
            if failures:
                limit_s = min(limit_s, waited + _GRACE_S)
            if waited > limit_s:
                break
            silent = None if signs is None else signs.silent(missing, elapsed, self._deadlines.silent_s)
            if silent is not None:
                self._lose(silent, f"was silent for {self._deadlines.silent_s:g} s (silent_s)", what)
        if failures:
            self._fail(failures, consistent=len(failures) == len(calls), what=what)
        if missing:
            self._lose(missing[0], f"has not answered for {limit_s:g} s", what)
        return [answers[rank] for rank in range(len(calls))]

    def _take(
        self, call: Any, rank: int, what: str, answers: dict[int, Any], failures: dict[int, BaseException]
    ) -> None:
        from ray.exceptions import RayError, RayTaskError

        try:
            answers[rank] = self._ray.get(call)
        except RayTaskError as error:
            failures[rank] = error.cause if isinstance(error.cause, PonderError) else error
        except RayError as error:  # of the process, its node, or the network between
            self._lose(rank, "died", what, reason_of(error))

    def _fail(self, failures: Mapping[int, BaseException], consistent: bool, what: str) -> None:
        """Raise what ranks raised: the cause before what it brought about on others."""
        rank, error = min(failures.items(), key=lambda item: (isinstance(item[1], LostWorkersError), item[0]))
        if isinstance(error, LostWorkersError):
            self._lose(rank, "lost the others", what, str(error))
        name = self._name(rank)
        if not consistent or not isinstance(error, PonderError):
            self.close()  # they wait for one that has left
        if isinstance(error, PonderError):
            raise error
        raise RuntimeError(f"{name}: {error}") from error

    def _lose(self, rank: int, how: str, what: str, why: str = "") -> NoReturn:
        name = self._name(rank)
        self.close()
        raise LostWorkersError(f"{name} {how} while the driver waited for {what}{why and ': ' + why}")

    def _name(self, rank: int) -> str:
        where = self._where[rank]
        place = "not started" if where is None else f"pid {where[0]} on {where[1]}"
        return f"trainer rank {rank} of {len(self._actors)} ({place})"


class TrainerGroup(RankGroup):
    """A `Trainer` on ranks."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, Tensor],
        settings: TrainerSettings,
        cluster: ClusterSettings,
        keep_reference: bool = False,
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        """See `RankGroup`."""
        sharding = cluster.trainer.sharding
        make = partial(RankTrainer, config=config, settings=settings, sharding=sharding, keep_reference=keep_reference)
        super().__init__(make, weights, cluster, tell)

    @property
    def version(self) -> int:
        return self._version

    def policy_updates(self, parts: Sequence[Sequence[Trajectory]]) -> list[UpdateStatistics]:
        """See `Trainer`."""
        return self._call("an update", self._deadlines.update_s, "policy_updates", parts)

    def supervised_update(self, examples: Sequence[Example]) -> UpdateStatistics:
        """See `Trainer`."""
        return self._call("an update", self._deadlines.update_s, "supervised_update", examples)

    def logprobs(self, trajectories: Sequence[Trajectory], of: Literal["policy", "reference"]) -> list[Tensor]:
        """See `Trainer`."""
        return self._call("log-probabilities", self._deadlines.update_s, "logprobs", trajectories, of)

    def refresh_reference(self) -> None:
        """See `Trainer`."""
        self._call("a new reference", self._deadlines.weights_s, "refresh_reference")


class RewardTrainerGroup(RankGroup):
    """A `RewardTrainer` on ranks."""

    def __init__(
        self,
        config: DecoderConfig,
        weights: Mapping[str, Tensor],
        settings: TrainerSettings,
        cluster: ClusterSettings,
        tell: Callable[[str], None] = lambda note: None,
    ) -> None:
        """See `RankGroup`."""
        make = partial(RankRewardTrainer, config=config, settings=settings, sharding=cluster.trainer.sharding)
        super().__init__(make, weights, cluster, tell)

    def reward_update(self, examples: Sequence[RewardExample]) -> RewardStatistics:
        """See `RewardTrainer`."""
        return self._call("an update", self._deadlines.update_s, "reward_update", examples)

    def raw_scores(self, replies: Sequence[Scored]) -> list[float]:
        """See `RewardTrainer`."""
        return self._call("scores", self._deadlines.update_s, "raw_scores", replies)


class _SignsOfLife:
    """Asks ranks for one while they compute, in the thread that they keep for it."""

    def __init__(self, ping: Callable[[Any], Any], actors: Sequence[Any]) -> None:
        self._ping = ping
        self._actors = actors
        self._asked = [ping(actor) for actor in actors]
        self._waited = [0.0] * len(actors)

    def silent(self, ranks: Sequence[int], elapsed: float, limit_s: float) -> int | None:
        """The first of these ranks that has not answered for `limit_s` seconds, of which `elapsed` are new."""
        import ray

        answered, _ = ray.wait(self._asked, num_returns=len(self._asked), timeout=0)
        for rank in ranks:
            self._waited[rank] += elapsed
            if self._asked[rank] in answered:
                self._waited[rank], self._asked[rank] = 0.0, self._ping(self._actors[rank])
        return next((rank for rank in ranks if self._waited[rank] > limit_s), None)
