"""A session that says what it was asked, in steps that can be slow, stop or die: for tests of what stands around it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ponder.errors import UsageError
from ponder.rollout.base import Completion, Finished, Request, Sampling, stream_seed

HANG = -1
"""In place of a signal: the session's thread sleeps for good, while its process goes on answering."""


@dataclass
class CountingSession:
    """Each sample of a request has as many tokens as its stream's seed says, 1 to `max_tokens`; a token is the number
    of sequences that were live when it was drawn, so that the composition of the batch shows.

    Whoever renames the file `trap` first, at a third step, does what it says: gets the signal of that number, exits
    (0) or hangs (`HANG`).
    """

    trap: Path | None = None
    step_s: float = 0.0
    version: int = -1
    asked: int = 0
    live: list[tuple[int, int, int, Completion]] = field(default_factory=list)
    steps: int = 0
    weight: float = 0.0

    def add(self, requests: Sequence[Request], sampling: Sampling, seed: int) -> None:
        for request in requests:
            if not request.prompt_ids:
                raise UsageError(f"request {request.key!r} has an empty prompt")
            for sample in range(request.num_samples):
                length = 1 + stream_seed(seed, request.key, sample) % sampling.max_tokens
                self.live.append((self.asked, sample, length, Completion([], [], "length")))
            self.asked += 1

    @property
    def idle(self) -> bool:
        return not self.live

    def step(self) -> list[Finished]:
        self.steps += 1
        if self.step_s:
            time.sleep(self.step_s)
        if self.steps % 3 == 0:
            self._fall_into_trap()
        count = len(self.live)
        for _, _, _, completion in self.live:
            if not completion.versions or completion.versions[-1][1] != self.version:
                completion.versions.append((len(completion.ids), self.version))
            completion.ids.append(count)
            completion.logprobs.append(-self.weight)
        ended = [row for row in self.live if len(row[3].ids) == row[2]]
        self.live = [row for row in self.live if len(row[3].ids) < row[2]]
        return [(request, sample, completion) for request, sample, _, completion in ended]

    def load_weights(self, version: int, weights: Mapping[str, Any]) -> None:
        self.version = version
        self.weight = float(weights["w"].sum())

    def close(self) -> None:
        pass

    def _fall_into_trap(self) -> None:
        if self.trap is None:
            return
        try:
            sprung = self.trap.rename(self.trap.with_name(f"sprung by {os.getpid()}"))
        except FileNotFoundError:  # there is none, or the other worker's session was faster
            return
        by = int(sprung.read_text())
        if by == HANG:
            time.sleep(3600)
        elif by:
            os.kill(os.getpid(), by)
        else:
            os._exit(137)
