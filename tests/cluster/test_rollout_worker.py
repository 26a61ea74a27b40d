"""A rollout worker's class in this process, without Ray."""

from __future__ import annotations

import gc
import tracemalloc
from functools import partial

import pytest
import torch
from counting_session import CountingSession

from ponder.cluster.rollout_worker import Chunk, RolloutWorker
from ponder.cluster.runtime import as_arrays
from ponder.rollout.base import Request, Sampling


class NeverIdle(CountingSession):
    """As where nobody waits for the last rollout of a batch."""

    @property
    def idle(self) -> bool:
        return False


@pytest.mark.parametrize("session", [CountingSession, NeverIdle])
def test_a_worker_keeps_nothing_of_what_it_has_handed_over(session: type[CountingSession]) -> None:
    worker = RolloutWorker(partial(session, step_s=0.001), threads=1)
    weights = as_arrays({"w": torch.ones(64, 64)})

    def steps(begin: int, end: int) -> None:
        for step in range(begin, end):
            worker.load_weights(step + 1, step, weights)
            requests = [Request((1, 2), f"{step}/{prompt}", 4) for prompt in range(2)]
            worker.submit(Chunk(step, requests, Sampling(max_tokens=4), 7, step + 1))
            ended = 0
            while ended < 8:
                ended += len(worker.collect(60))

    steps(0, 20)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        steps(20, 120)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        worker.close()
    assert after - before < 10_000, "one entry a request, kept at each step, would be twice as much"
