"""Processes that stand for the ranks of a cluster, started once for many tests."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from ponder.training.sharding import join, open_store

_DEADLINE_S = 300


class RankPool:
    """Calls `function(rank, size, *arguments)` on the first `size` processes at once; the functions are of modules."""

    def __init__(self, processes: int) -> None:
        self._size = processes
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each rank returns; fails with the traceback of the first that raised."""
        try:
            return self._ask(size, function, *arguments)
        except (EOFError, OSError):  # the next test gets others: these may answer late
            self.close()
            self._start()
            raise

    def _ask(self, size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        self._pipes[0].send(None)
        port = self._pipes[0].recv()
        for rank, pipe in enumerate(self._pipes[:size]):
            pipe.send((rank, size, port, function, arguments))
        answers = []
        for pipe in self._pipes[:size]:
            if not pipe.poll(_DEADLINE_S):
                raise TimeoutError("a rank is silent")
            answers.append(pipe.recv())
        failed = [why for ok, why in answers if not ok]
        assert not failed, failed[0]
        return [answer for _, answer in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    store: Any = None
    while True:
        asked = pipe.recv()
        if asked is None:  # rank 0 opens the place where all meet
            store = open_store("127.0.0.1")
            pipe.send(store.port)
            continue
        rank, size, port, function, arguments = asked
        try:
            if rank != 0:
                store = open_store("127.0.0.1", port)
            join(rank, size, store, 120, torch.device("cpu"), loopback=True)
            answer = (True, function(rank, size, *arguments))
        except BaseException:  # noqa: BLE001  # the test shows it
            answer = (False, f"rank {rank}: {traceback.format_exc()}")
        if dist.is_initialized():
            dist.destroy_process_group()
        pipe.send(answer)
