"""A rollout worker: a session in a process of its own, which takes requests and weights between two tokens.

The class is plain Python. Ray runs its methods in several threads, so that it answers whatever the session is at;
the session has a thread of its own.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ponder.cluster.runtime import as_tensors
from ponder.rollout.base import Completion, Request, Sampling, Session

CALLS = 16
"""Calls that a worker answers at once: Ray's `max_concurrency`."""

_SETTLE_S = 0.02
"""Completions that end so close together travel in one report."""

Ended = tuple[int, int, int, Completion]
"""A completion that has ended: number of its chunk, of its request in the chunk, of its sample, the completion."""


@dataclass(frozen=True)
class Chunk:
    """Requests that are sampled side by side, from their first token on."""

    number: int
    requests: Sequence[Request]
    sampling: Sampling
    seed: int
    update: int
    """They wait for this update of the weights, or a later one."""


@dataclass
class _Place:
    """Where the samples of one of the session's requests belong, as long as some are missing."""

    chunk: int
    request: int
    missing: int


@dataclass(frozen=True)
class _Weights:
    update: int
    version: int
    arrays: Mapping[str, Any]


class RolloutWorker:
    """Holds a session. Every method may raise what the session has raised."""

    def __init__(self, make_session: Callable[[], Session], threads: int) -> None:
        """The session is made, and lives, in a thread of its own with `threads` CPU threads for the linear algebra."""
        self._changed = threading.Condition()
        self._chunks: deque[Chunk] = deque()
        self._weights: _Weights | None = None
        self._update = 0
        self._ended: list[Ended] = []
        self._places: dict[int, _Place] = {}
        """By the number of the request, of all that the session was ever given."""
        self._count = 0
        self._ready = self._closing = self._idle = False
        # a pool of one thread keeps what the thread raised
        self._life: Future[None] = ThreadPoolExecutor(1, "session").submit(self._live, make_session, threads)
        self._life.add_done_callback(self._wake)

    def ready(self) -> tuple[int, str]:
        """Wait until the session is there: process id and host name."""
        self._wait(lambda: self._ready)
        return os.getpid(), socket.gethostname()

    def submit(self, chunk: Chunk) -> None:
        """Sample a chunk as soon as the weights that it waits for are loaded."""
        with self._changed:
            self._chunks.append(chunk)
            self._changed.notify_all()

    def load_weights(self, update: int, version: int, arrays: Mapping[str, Any]) -> None:
        """Sample every further token under these weights; returns when they, or later ones, are loaded."""
        with self._changed:
            if update > max(self._update, 0 if self._weights is None else self._weights.update):
                self._weights = _Weights(update, version, arrays)
                self._changed.notify_all()
        del arrays  # memory that Ray shares is free once nobody looks at it
        self._wait(lambda: self._update >= update)

    def collect(self, timeout_s: float) -> list[Ended]:
        """What has ended since the last call: at once when there is something, else after at most `timeout_s`."""
        with self._changed:
            if self._wait(lambda: bool(self._ended), timeout_s):
                self._changed.wait_for(lambda: self._idle, _SETTLE_S)
            ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """End the session, and what belongs to it."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._life.result()

    # --- the session's thread --------------------------------------------------------------------------------------

    def _live(self, make_session: Callable[[], Session], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)  # holds for the calling thread only
        session = make_session()
        try:
            self._tell(ready=True, idle=True)
            while self._take(session):
                finished = session.step()
                self._tell([self._placed(*one) for one in finished], idle=session.idle)
        finally:
            session.close()

    def _take(self, session: Session) -> bool:
        """Hand over what has come since the last token, and wait while there is nothing to do; False is the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._weights or self._due() or not session.idle)
            weights, self._weights = self._weights, None
        if weights is not None:
            session.load_weights(weights.version, as_tensors(weights.arrays))
        with self._changed:
            if weights is not None:
                self._update = weights.update
                self._changed.notify_all()
            due = self._due()
            self._chunks = deque(chunk for chunk in self._chunks if chunk not in due)
            self._idle = self._idle and not due
        for chunk in due:
            self._add(session, chunk)
        return not self._closing

    def _add(self, session: Session, chunk: Chunk) -> None:
        for place, request in enumerate(chunk.requests):
            self._places[self._count] = _Place(chunk.number, place, request.num_samples)
            self._count += 1
        session.add(chunk.requests, chunk.sampling, chunk.seed)

    def _placed(self, request: int, sample: int, completion: Completion) -> Ended:
        """What a step has ended, by the chunk that it came with."""
        place = self._places[request]
        place.missing -= 1
        if not place.missing:
            del self._places[request]
        return place.chunk, place.request, sample, completion

    def _due(self) -> list[Chunk]:
        return [chunk for chunk in self._chunks if chunk.update <= self._update]

    def _tell(self, ended: Sequence[Ended] = (), *, ready: bool = True, idle: bool) -> None:
        with self._changed:
            self._ended += ended
            self._ready, self._idle = ready, idle
            if ended or idle:
                self._changed.notify_all()

    # --- the other threads -----------------------------------------------------------------------------------------

    def _wait(self, until: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait for the session's thread, and raise what it raised."""
        with self._changed:
            reached = self._changed.wait_for(lambda: until() or self._life.done(), timeout_s)
            if self._life.done() and not until():
                self._life.result()
            return reached

    def _wake(self, _: Future[None]) -> None:
        with self._changed:
            self._changed.notify_all()
