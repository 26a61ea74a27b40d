"""The driver's side of the rollout workers: who samples what, under which weights, and what if one is lost.

Each request goes to the worker that owes the fewest rollouts, whatever their lengths turn out to be, and a worker
samples what it got of one batch side by side, as one chunk. So the bits of a rollout depend on the weights, the seed
and the number of workers only, where the workers were idle before. One that dies or falls silent is replaced, and its
whole chunk is sampled again, in the same company; of two copies of a rollout the first is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ponder.cluster.rollout_worker import CALLS, Chunk, Ended, RolloutWorker
from ponder.cluster.runtime import as_arrays
from ponder.errors import InterruptedRunError, LostWorkersError, PonderError
from ponder.recipe import ClusterSettings
from ponder.rollout.base import Completion, Finished, OnFinished, Request, Sampling, Session, Ticket

if TYPE_CHECKING:
    from torch import Tensor

_SLICE_S = 1.0
"""The driver looks up from waiting at least so often."""

_BEAT_S = 5.0
"""A worker that has nothing to report says so at least so often; a quarter of `silent_s` where that is shorter."""

_CLOSE_S = 10.0
"""For a worker to end by itself before it is killed."""

_MAX_FAILED_STARTS = 3
"""Replacements in a row, in one place, that die before they are ready: the fault is no accident."""


@dataclass(eq=False)
class _Batch:
    """Requests under way, and what has come of them."""

    ticket: Ticket
    requests: Sequence[Request]
    on_finished: OnFinished | None
    results: list[dict[int, Completion]]
    """For each request, completions by number of sample."""
    chunks: set[int] = field(default_factory=set)
    """Numbers of those that workers still owe."""


@dataclass
class PoolStatistics:
    """What the pool has cost so far."""

    restarts: int = 0
    """Workers that were replaced."""
    waited_s: float = 0.0
    """Seconds in which the driver waited for rollouts."""
    weights_bytes: int = 0
    """Of the last update of the weights, for one worker; 0 where the trainers put it into Ray themselves."""
    weights_s: float = 0.0
    """From the last update's publishing until the last worker had it, where that was waited for."""


@dataclass(eq=False)
class _Assignment:
    """A chunk that a worker is at."""

    chunk: Chunk
    batch: _Batch
    members: list[int]
    """Numbers of its requests in the batch."""
    missing: int = 0
    """Rollouts that this worker has not delivered."""
    begun: float = 0.0
    """On the clock of `time.monotonic`."""


@dataclass(eq=False)
class _Worker:
    """What the driver knows of a worker."""

    number: int
    actor: Any
    starting: Any
    """The call that says that it is ready, until it has."""
    where: str = "starting"
    loading: Any = None
    """The last update of its weights, until it has loaded it."""
    loading_since: float = 0.0
    report: Any = None
    """The call that brings its next report."""
    owes: dict[int, _Assignment] = field(default_factory=dict)
    """By the number of the chunk."""
    waited: float = 0.0
    """Seconds that the driver has waited since its last sign of life."""
    failed_starts: int = 0

    @property
    def owed(self) -> int:
        """Rollouts that it has not delivered."""
        return sum(assignment.missing for assignment in self.owes.values())

    def awaited(self) -> list[Any]:
        """The calls that it has not answered."""
        return [call for call in (self.starting, self.loading, self.report) if call is not None]


class RolloutPool:
    """Rollout workers behind the `Engine` protocol, and more. Belongs to one thread."""

    def __init__(
        self, make_session: Callable[[], Session], settings: ClusterSettings, warn: Callable[[str], None]
    ) -> None:
        """Start the workers; Ray runs already. `warn` hears of each that is replaced.

        They sample what the session holds until the first `publish`. Raises what `make_session` raises, and
        `InterruptedRunError` when a worker does not start, nor its replacements.
        """
        import ray

        self._ray = ray
        self._settings = settings
        self._deadlines = settings.deadlines
        self._warn = warn
        self._make_session = ray.put(make_session)
        self._update = 0
        self._weights: Any = None
        self._version = 0
        self._published = 0.0
        self._num_chunks = 0
        self._num_batches = 0
        self._batches: dict[Ticket, _Batch] = {}
        self._done: list[Ticket] = []
        """Batches that are whole, in order of completion, until they are finished."""
        self.statistics = PoolStatistics()
        self._workers = [self._start_worker(number) for number in range(settings.rollout.workers)]
        try:
            self._wait_until(lambda: all(worker.starting is None for worker in self._workers))
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """The policy whose weights were published last."""
        return self._version

    # --- sampling --------------------------------------------------------------------------------------------------

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        """See `Engine`. Raises what the session raises, and `LostWorkersError` beyond `max_restarts`."""
        return self.finish(self.begin(requests, sampling, seed, on_finished))

    def begin(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> Ticket:
        """See `PoolEngine`: sampling begins under the weights that were published last, or later ones.

        `on_finished` hears of each rollout once.
        """
        self._num_batches += 1
        batch = _Batch(self._num_batches, requests, on_finished, [{} for _ in requests])
        self._batches[batch.ticket] = batch
        for worker, members in self._deal(requests):
            chunk = Chunk(self._num_chunks, [requests[i] for i in members], sampling, seed, self._update)
            self._num_chunks += 1
            batch.chunks.add(chunk.number)
            self._assign(worker, _Assignment(chunk, batch, members))
        return batch.ticket

    def finish(self, ticket: Ticket) -> list[list[Completion]]:
        """See `PoolEngine`. Raises as `generate`."""
        batch = self._batches[ticket]
        self._wait_until(lambda: not batch.chunks)
        del self._batches[ticket]
        self._done.remove(ticket)
        return [[group[sample] for sample in sorted(group)] for group in batch.results]

    def finish_any(self, tickets: Sequence[Ticket], count: int) -> set[Ticket]:
        """See `PoolEngine`. Raises as `generate`."""
        wanted = set(tickets)
        self._wait_until(lambda: sum(ticket in wanted for ticket in self._done) >= min(count, len(wanted)))
        return set([ticket for ticket in self._done if ticket in wanted][:count])

    def forget(self) -> None:
        """See `PoolEngine`. A worker that was at something is replaced, at no charge."""
        self._batches.clear()
        self._done.clear()
        for worker in self._workers:
            if worker.owes:
                worker.owes.clear()
                self._replace(worker)

    def _deal(self, requests: Sequence[Request]) -> list[tuple[_Worker, list[int]]]:
        """Which requests each worker gets, by their numbers."""
        load = [worker.owed for worker in self._workers]
        members: list[list[int]] = [[] for _ in self._workers]
        for number, request in enumerate(requests):
            least = load.index(min(load))
            load[least] += request.num_samples
            members[least].append(number)
        return [(worker, dealt) for worker, dealt in zip(self._workers, members, strict=True) if dealt]

    # --- weights ---------------------------------------------------------------------------------------------------

    def publish(self, version: int, weights: Mapping[str, Tensor] | Any, wait: bool = False) -> None:
        """Bring new weights, or Ray's reference to them (tensors or what `as_arrays` makes, by the decoder's names).

        Whatever begins later is sampled under them, what is under way from its next token on. `wait` returns only when
        every worker has them, which takes at most `deadlines.weights_s` for each. Raises as `generate`.
        """
        if isinstance(weights, Mapping):
            arrays = as_arrays(weights)
            self.statistics.weights_bytes = sum(content.nbytes for _, _, content in arrays.values())
            weights = self._ray.put(arrays)
        self._update += 1
        self._version = version
        self._weights = weights
        self._published = time.monotonic()
        for worker in self._workers:
            self._load(worker)
            worker.loading_since = self._published
        if wait:
            self._wait_until(lambda: all(worker.loading is None for worker in self._workers))

    # --- workers ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the workers and their sessions."""
        ending = [worker.actor.close.remote() for worker in self._workers]
        if ending:
            self._ray.wait(ending, num_returns=len(ending), timeout=_CLOSE_S)
        for worker in self._workers:
            self._ray.kill(worker.actor)
        self._workers = []

    def _start_worker(self, number: int) -> _Worker:
        rollout = self._settings.rollout
        remote: Any = self._ray.remote(RolloutWorker)
        options = {"num_cpus": rollout.cpus, "num_gpus": rollout.gpus, "scheduling_strategy": "SPREAD"}
        actor = remote.options(**options, max_concurrency=CALLS).remote(self._make_session, rollout.threads)
        return _Worker(number, actor, actor.ready.remote())

    def _load(self, worker: _Worker) -> None:
        worker.loading = worker.actor.load_weights.remote(self._update, self._version, self._weights)
        worker.loading_since = time.monotonic()

    def _assign(self, worker: _Worker, assignment: _Assignment) -> None:
        assignment.begun = time.monotonic()
        assignment.missing = sum(request.num_samples for request in assignment.chunk.requests)
        worker.owes[assignment.chunk.number] = assignment
        worker.actor.submit.remote(assignment.chunk)

    def _replace(self, worker: _Worker, failed_starts: int = 0) -> None:
        """A new process in a worker's place, with the newest weights and all that the old one owed."""
        self._ray.kill(worker.actor)
        new = self._start_worker(worker.number)
        new.failed_starts = failed_starts
        self._workers[worker.number] = new
        if self._weights is not None:
            self._load(new)
        for assignment in worker.owes.values():
            self._assign(new, assignment)

    # --- waiting ---------------------------------------------------------------------------------------------------

    def _wait_until(self, done: Callable[[], bool]) -> None:
        """Take what the workers say, and replace those that say nothing, until `done`."""
        begun = time.monotonic()
        while not done():
            for worker, why in self._listen().items():
                self._lose(worker, why)
        self.statistics.waited_s += time.monotonic() - begun

    def _listen(self) -> dict[_Worker, str]:
        """Wait for a word of any worker, a moment at most; returns who is lost, and why."""
        begun = time.monotonic()
        for worker in self._workers:
            if worker.report is None and (worker.owes or worker.loading is not None):
                worker.report = worker.actor.collect.remote(min(_BEAT_S, self._deadlines.silent_s / 4))
        calls = {call: worker for worker in self._workers for call in worker.awaited()}
        self._ray.wait(list(calls), num_returns=1, timeout=_SLICE_S)
        # whatever else has come meanwhile counts as well: nobody is silent because another speaks much
        answered, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        # a driver that was itself stopped for a while must not take that for the workers' silence
        elapsed = min(time.monotonic() - begun, 2 * _SLICE_S)
        for worker in set(calls.values()):
            worker.waited += elapsed
        lost = {calls[call]: why for call in answered if (why := self._take(calls[call], call)) is not None}
        for worker in self._workers:
            if worker not in lost and (why := self._is_late(worker)) is not None:
                lost[worker] = why
        return lost

    def _take(self, worker: _Worker, call: Any) -> str | None:
        """The answer to a call; returns why the worker is lost, if it is."""
        from ray.exceptions import ObjectLostError, RayError, RayTaskError

        worker.waited = 0.0
        try:
            answer = self._ray.get(call)
        except RayTaskError as error:
            return self._failed(worker, error.cause, error)
        except RayError as error:  # of the process, its node, or the network between
            if call is worker.loading and isinstance(error, ObjectLostError):
                return self._failed(worker, error, error)
            return f"is gone ({reason_of(error)})"
        if call is worker.report:
            worker.report = None
            self._keep(worker, answer)
        elif call is worker.starting:
            pid, host = answer
            self._has_started(worker, f"pid {pid} on {host}")
        else:
            worker.loading = None
            if worker.loading_since == self._published:  # not that of a replacement
                self.statistics.weights_s = time.monotonic() - self._published
        return None

    def _has_started(self, worker: _Worker, where: str) -> None:
        worker.starting = None
        worker.failed_starts = 0
        worker.where = where
        # its other deadlines run from here
        worker.loading_since = time.monotonic()
        for assignment in worker.owes.values():
            assignment.begun = time.monotonic()

    def _failed(self, worker: _Worker, cause: BaseException, error: Exception) -> str:
        """What a session raised: raised here, unless another worker can mend it."""
        from ray.exceptions import ObjectLostError

        if isinstance(cause, ObjectLostError):
            raise LostWorkersError(
                f"rollout worker {worker.number} ({worker.where}) cannot get the weights of policy {self._version}: "
                "the trainer that held them is gone"
            ) from error
        if isinstance(cause, LostWorkersError):
            return f"has lost its engine ({cause})"
        if isinstance(cause, PonderError):
            raise cause
        raise RuntimeError(f"rollout worker {worker.number} ({worker.where}): {error}") from error

    def _is_late(self, worker: _Worker) -> str | None:
        """Why a worker that says nothing, or delivers nothing, is lost, if it is."""
        limits, now = self._deadlines, time.monotonic()
        if worker.starting is not None:
            return f"has not started for {limits.start_s:g} s (start_s)" if worker.waited > limits.start_s else None
        if worker.waited > limits.silent_s:
            wait = f"waited for {worker.owed} rollouts" if worker.owes else "brought new weights"
            return f"was silent for {limits.silent_s:g} s (silent_s) while the driver {wait}"
        if worker.loading is not None and now - worker.loading_since > limits.weights_s:
            return f"has not loaded new weights for {limits.weights_s:g} s (weights_s)"
        for assignment in worker.owes.values():
            if now - assignment.begun > limits.rollout_s:
                return f"has owed {assignment.missing} rollouts for {limits.rollout_s:g} s (rollout_s)"
        return None

    def _lose(self, worker: _Worker, why: str) -> None:
        """Replace a worker. Raises `InterruptedRunError` when too many were lost."""
        what = f"rollout worker {worker.number} ({worker.where}) {why}"
        self.statistics.restarts += 1
        if self.statistics.restarts > self._settings.max_restarts:
            raise InterruptedRunError(f"{what}, and cluster.max_restarts ({self._settings.max_restarts}) is used up")
        failed_starts = worker.failed_starts + (worker.starting is not None)
        if failed_starts >= _MAX_FAILED_STARTS:
            raise InterruptedRunError(f"{what}, like the {failed_starts - 1} before it: see cluster.rollout")
        again = f", its {worker.owed} rollouts are asked for again" if worker.owes else ""
        self._warn(f"{what}: replaced{again}")
        self._replace(worker, failed_starts)

    def _keep(self, worker: _Worker, ended: Sequence[Ended]) -> None:
        """Put completions where they belong; of two copies of a rollout the first stays."""
        fresh: dict[_Batch, list[Finished]] = {}
        for number, place, sample, completion in ended:
            assignment = worker.owes[number]
            batch, request = assignment.batch, assignment.members[place]
            if sample not in batch.results[request]:
                batch.results[request][sample] = completion
                fresh.setdefault(batch, []).append((request, sample, completion))
            assignment.missing -= 1
            if not assignment.missing:
                del worker.owes[number]
                batch.chunks.remove(number)
                if not batch.chunks:
                    self._done.append(batch.ticket)
        for batch, finished in fresh.items():
            if batch.on_finished is not None:
                batch.on_finished(finished)


def reason_of(error: Exception) -> str:
    """What Ray says of a death, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if "creation task" in lines[0]:  # followed by a traceback
        return lines[-1]
    telling = next((line for line in lines if "is dead because" in line), lines[0])
    return telling.removeprefix("The actor is dead because ").partition(". ")[0]
