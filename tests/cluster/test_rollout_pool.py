"""The pool of rollout workers under real faults, with a session whose tokens show the company they were drawn in."""

from __future__ import annotations

import functools
import itertools
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("ray")

from counting_session import HANG, CountingSession

from ponder.cluster.rollout_pool import PoolStatistics, RolloutPool
from ponder.cluster.runtime import Runtime
from ponder.errors import BrokenInputError, InterruptedRunError, LostWorkersError, UsageError
from ponder.recipe import ClusterSettings
from ponder.rollout.base import Completion, Finished, Request, Sampling, Ticket
from ponder.rollout.native import run_to_end

SAMPLING = Sampling(max_tokens=20)
REQUESTS = [Request((1, 2), f"prompt {i}", 4) for i in range(5)]


SETTINGS = ClusterSettings.model_validate(
    {"kind": "ray", "rollout": {"workers": 2, "cpus": 0.5}, "trainer": {"cpus": 0}, "max_restarts": 5}
)


@pytest.fixture(scope="module", autouse=True)
def ray_runs() -> Iterator[None]:
    with Runtime(SETTINGS):
        import counting_session
        from ray import cloudpickle

        # the workers' processes cannot import what lies in this folder
        cloudpickle.register_pickle_by_value(counting_session)
        yield
        cloudpickle.unregister_pickle_by_value(counting_session)


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trap") / "trap"


class SharedPool:
    """A pool for all tests, as long as they leave it whole: one that fails costs the next one nothing."""

    def __init__(self, trap: Path) -> None:
        self.make_session = functools.partial(CountingSession, trap, step_s=0.01)
        self.warnings: list[str] = []
        self.pool: RolloutPool | None = None

    def take(self) -> RolloutPool:
        if self.pool is None:
            self.pool = RolloutPool(self.make_session, SETTINGS, self.warnings.append)
        self.warnings.clear()
        self.pool.statistics = PoolStatistics()
        self.pool.publish(1, weights(1.0))
        return self.pool

    def end(self) -> None:
        if self.pool is not None:
            self.pool.close()
        self.pool = None


@pytest.fixture(scope="module")
def shared_pool(trap: Path) -> Iterator[SharedPool]:
    shared = SharedPool(trap)
    yield shared
    shared.end()


@pytest.fixture
def pool(shared_pool: SharedPool, trap: Path) -> Iterator[RolloutPool]:
    """Two idle workers that nothing has happened to, with the first weights."""
    pool = shared_pool.take()
    yield pool
    if pool._batches or trap.exists():
        shared_pool.end()
    trap.unlink(missing_ok=True)


@pytest.fixture
def warnings(shared_pool: SharedPool) -> list[str]:
    """What the pool has warned of in this test."""
    return shared_pool.warnings


@pytest.fixture
def change(pool: RolloutPool, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Other settings for this test."""

    def change(max_restarts: int = 5, **deadlines: float) -> None:
        monkeypatch.setattr(pool, "_deadlines", SETTINGS.deadlines.model_copy(update=deadlines))
        monkeypatch.setattr(pool, "_settings", SETTINGS.model_copy(update={"max_restarts": max_restarts}))

    return change


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), value, dtype=torch.bfloat16)}


def alone(requests: list[Request], version: int = 1, value: float = 1.0) -> list[list[Completion]]:
    """What one session makes of requests that it samples side by side."""
    session = CountingSession()
    session.load_weights(version, weights(value))
    session.add(requests, SAMPLING, 7)
    return run_to_end(session, requests)


def expected(version: int = 1, value: float = 1.0) -> list[list[Completion]]:
    """Requests are dealt to two workers in turn, and each samples its own side by side."""
    even, odd = alone(REQUESTS[::2], version, value), alone(REQUESTS[1::2], version, value)
    return [even[0], odd[0], even[1], odd[1], even[2]]


def test_each_worker_samples_its_share_under_the_published_weights(pool: RolloutPool) -> None:
    heard: list[Finished] = []
    found = pool.generate(REQUESTS, SAMPLING, 7, heard.extend)
    assert found == expected()
    assert found[0][0].logprobs[0] == -6.0 and found[0][0].versions == [(0, 1)]
    assert sorted((request, sample) for request, sample, _ in heard) == [(r, s) for r in range(5) for s in range(4)]
    assert all(found[request][sample] == completion for request, sample, completion in heard)
    # asked for before the weights have arrived, and sampled under them all the same
    pool.publish(2, weights(2.0))
    assert pool.generate(REQUESTS, SAMPLING, 7) == expected(2, 2.0)
    assert pool.version == 2 and pool.statistics.weights_bytes == 12


@pytest.mark.parametrize(
    ("by", "why", "limits"),
    [
        (signal.SIGKILL, "is gone", {}),
        (0, "is gone", {}),  # exits with 137, as the OOM killer makes a container do
        (signal.SIGSTOP, r"was silent for 5 s .* while the driver waited for \d+ rollouts", {"silent_s": 5.0}),
        (HANG, r"has owed \d+ rollouts for 5 s", {"rollout_s": 5.0}),  # answers, but samples nothing
    ],
)
def test_a_lost_worker_is_replaced_and_no_rollout_is_lost_doubled_or_changed(
    by: int,
    why: str,
    limits: dict[str, float],
    pool: RolloutPool,
    change: Callable[..., None],
    trap: Path,
    warnings: list[str],
) -> None:
    change(**limits)
    trap.write_text(str(int(by)))
    heard: list[Finished] = []
    assert pool.generate(REQUESTS, SAMPLING, 7, heard.extend) == expected()
    assert len(heard) == 20 == len({(request, sample) for request, sample, _ in heard})
    assert len(warnings) == 1 == pool.statistics.restarts
    said = rf"rollout worker [01] \(pid \d+ on \S+\) {why}.*: replaced, its \d+ rollouts are asked for again"
    assert re.fullmatch(said, warnings[0])
    # nothing of it is left in the replacement's company
    assert pool.generate(REQUESTS, SAMPLING, 7) == expected()


def test_a_worker_that_dies_idle_is_noticed_when_it_is_needed(pool: RolloutPool, warnings: list[str]) -> None:
    pool.publish(1, weights(1.0), wait=True)
    os.kill(int(re.findall(r"pid (\d+)", pool._workers[1].where)[0]), signal.SIGKILL)
    assert pool.generate(REQUESTS, SAMPLING, 7) == expected()
    assert len(warnings) == 1


def test_too_many_losses_end_the_run_resumably(pool: RolloutPool, change: Callable[..., None], trap: Path) -> None:
    change(max_restarts=0)
    trap.write_text(str(int(signal.SIGKILL)))
    with pytest.raises(InterruptedRunError, match=r"cluster\.max_restarts \(0\) is used up") as caught:
        pool.generate(REQUESTS, SAMPLING, 7)
    assert not isinstance(caught.value, LostWorkersError)  # which the loop would take for one that it can mend
    pool.forget()


def test_what_a_session_raises_reaches_the_driver() -> None:
    one = SETTINGS.model_copy(update={"rollout": SETTINGS.rollout.model_copy(update={"workers": 1, "cpus": 0})})
    warnings: list[str] = []

    def broken() -> CountingSession:
        raise BrokenInputError("there is no such model")

    with pytest.raises(BrokenInputError, match=r"^there is no such model$"):
        RolloutPool(broken, one, warnings.append)

    def defect() -> CountingSession:
        raise ZeroDivisionError("by design")

    with pytest.raises(RuntimeError, match="by design"):
        RolloutPool(defect, one, warnings.append)
    pool = RolloutPool(CountingSession, one, warnings.append)
    with pytest.raises(UsageError, match="request 'no prompt' has an empty prompt"):
        pool.generate([Request((), "no prompt")], SAMPLING, 7)
    pool.close()
    assert warnings == []


def test_new_weights_reach_what_is_under_way_between_two_tokens(pool: RolloutPool) -> None:
    def begin(key: str, max_tokens: int) -> Ticket:
        return pool.begin([Request((1,), key)], Sampling(max_tokens=max_tokens), 7)

    # dealt in turn: the last joins the long one, which has 287 tokens
    long, *short = begin("long", 600), begin("short 0", 2), begin("short 1", 2)
    pool.finish_any(short, 2)
    pool.publish(5, weights(5.0), wait=True)
    ((completion,),) = pool.finish(long)
    for ticket in short:
        pool.finish(ticket)
    assert [version for _, version in completion.versions] == [1, 5]
    change = completion.versions[1][0]
    assert 0 < change < len(completion.ids)
    assert completion.logprobs == [-6.0] * change + [-30.0] * (len(completion.ids) - change)


def test_batches_are_finished_in_any_order_and_forgotten_without_a_trace(
    pool: RolloutPool, warnings: list[str]
) -> None:
    long = pool.begin([Request((1,), "long", 8)], Sampling(max_tokens=10_000), 7)
    short = [pool.begin([Request((1,), f"short {i}")], Sampling(max_tokens=2), 7) for i in range(3)]
    assert pool.finish_any([long, *short], 3) == set(short)
    assert [len(pool.finish(ticket)) for ticket in short] == [1, 1, 1]
    pool.forget()
    assert pool.generate(REQUESTS, SAMPLING, 7) == expected()
    assert warnings == [] and pool.statistics.restarts == 0
    with pytest.raises(KeyError):
        pool.finish(long)


def test_weights_that_died_with_their_owner_send_the_stage_back(pool: RolloutPool) -> None:
    import ray
    from ray.exceptions import OwnerDiedError

    def lost() -> None:
        raise OwnerDiedError("00", None, "")

    reference = ray.remote(lost).options(num_cpus=0, max_retries=0).remote()
    with pytest.raises(LostWorkersError, match="weights of policy 2"):
        pool.publish(2, reference, wait=True)
    pool.forget()
    pool.publish(2, weights(2.0))
    assert pool.generate(REQUESTS, SAMPLING, 7) == expected(2, 2.0)


def test_a_clock_that_jumps_loses_nobody(
    pool: RolloutPool, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = time.time
    jumps = itertools.cycle([0, 1e6, -1e6])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    assert pool.generate(REQUESTS, SAMPLING, 7) == expected()
    assert warnings == []
