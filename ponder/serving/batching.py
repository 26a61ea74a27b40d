"""One thread computes all replies: requests join the batch of their model between two tokens, and leave it so.

    event loop                         worker thread
    submit(job)  ── commands ──►       join waiting replies that fit
    cancel(job)  ──────────────►       one step of each model that has work
                 ◄── job.deliver ──    what each reply has said since

The worker waits only for commands, and what it delivers is never waited for: a client that does not read holds up
nobody.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ponder.model.decoder import Decoder
from ponder.rollout.base import FinishReason
from ponder.rollout.stepping import LiveSequence, Stepper, Token, bytes_per_position
from ponder.serving.replies import Piece, Reply

_log = logging.getLogger("ponder.serving")

_LONGEST_IDLE_S = 1.0
"""The worker looks up from an empty queue so often."""


@dataclass(frozen=True)
class SaidToken:
    """A token with its log-probabilities, for those who asked for them."""

    token: Token
    is_thinking: bool


@dataclass(frozen=True)
class Delta:
    """What one reply has said since the last delta."""

    index: int
    pieces: tuple[Piece, ...]
    tokens: tuple[SaidToken, ...] = ()
    """Only where log-probabilities were asked for."""
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Failure:
    """The job cannot go on, through no fault of its own."""

    message: str


Event = list[Delta] | Failure
Command = Literal["submit", "cancel", "close"]


@dataclass(eq=False)
class Choice:
    """One reply of a job: what computes it, and what reads it. The worker's, until its `finish_reason` is set."""

    index: int
    sequence: LiveSequence
    reply: Reply
    stop_ids: frozenset[int]
    close_ids: tuple[int, ...]
    """What is forced when the budget of thinking is used up."""
    finish_reason: FinishReason | None = None


@dataclass(eq=False)
class Job:
    """The replies of one request. `deliver` is called in the worker's thread and must neither wait nor raise."""

    decoder: Decoder
    choices: Sequence[Choice]
    deliver: Callable[[Event], None]

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.sequence.ids) for choice in self.choices)

    @property
    def reasoning_tokens(self) -> int:
        return sum(choice.reply.num_reasoning for choice in self.choices)


@dataclass(eq=False)
class _Lane:
    """One model's batch and those who wait for it."""

    stepper: Stepper
    room: int
    """Positions that the cache may hold."""
    waiting: deque[tuple[Job, Choice]] = field(default_factory=deque)
    live: dict[LiveSequence, tuple[Job, Choice]] = field(default_factory=dict)


class Batcher:
    """The worker thread. Safe to use from any other thread."""

    def __init__(self, concurrency: int, cache_bytes: int) -> None:
        """`concurrency` replies at once per model, with a cache of about `cache_bytes` at most per model."""
        self._concurrency = concurrency
        self._cache_bytes = cache_bytes
        self._commands: queue.SimpleQueue[tuple[Command, Job | None]] = queue.SimpleQueue()
        self._lanes: dict[Decoder, _Lane] = {}
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_running(self) -> int:
        return sum(len(lane.live) for lane in list(self._lanes.values()))

    @property
    def num_waiting(self) -> int:
        return sum(len(lane.waiting) for lane in list(self._lanes.values()))

    def submit(self, job: Job) -> None:
        """Let a job wait for its place."""
        self._commands.put(("submit", job))

    def cancel(self, job: Job) -> None:
        """Drop what is left of a job: its places are free before the next token is computed. Harmless when over."""
        self._commands.put(("cancel", job))

    def close(self, timeout_s: float = 10.0) -> None:
        """End the thread; jobs that are not over fail."""
        self._commands.put(("close", None))
        self._thread.join(timeout_s)

    # --- in the worker's thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._obey():
                for lane in list(self._lanes.values()):
                    self._advance(lane)
                self._lanes = {d: lane for d, lane in self._lanes.items() if lane.live or lane.waiting}
        finally:  # on a defect too: nobody may wait for a thread that is gone
            self._take_commands()
            for lane in self._lanes.values():
                self._fail(lane, "the server is stopping")

    def _obey(self) -> bool:
        """Carry out the commands there are, waiting for one if there is nothing else to do; False: close."""
        if self._lanes:
            return self._take_commands()
        try:
            return self._carry_out(*self._commands.get(timeout=_LONGEST_IDLE_S)) and self._take_commands()
        except queue.Empty:
            return True

    def _take_commands(self) -> bool:
        """Carry out the commands that have come; False: one of them was to close."""
        goes_on = True
        while not self._commands.empty():
            goes_on = self._carry_out(*self._commands.get()) and goes_on
        return goes_on

    def _carry_out(self, command: Command, job: Job | None) -> bool:
        """False: close."""
        if job is None:
            return False
        if command == "submit":
            lane = self._lanes.setdefault(job.decoder, self._new_lane(job.decoder))
            lane.waiting.extend((job, choice) for choice in job.choices)
        else:
            self._drop(job)
        return True

    def _new_lane(self, decoder: Decoder) -> _Lane:
        # the cache doubles as it grows, so half of it is all that may be promised
        return _Lane(Stepper(decoder), self._cache_bytes // bytes_per_position(decoder) // 2)

    def _drop(self, job: Job) -> None:
        lane = self._lanes.get(job.decoder)
        if lane is None:
            return
        lane.waiting = deque(entry for entry in lane.waiting if entry[0] is not job)
        for sequence in [s for s, (owner, _) in lane.live.items() if owner is job]:
            self._leave(lane, sequence)

    def _advance(self, lane: _Lane) -> None:
        """Let in who fits, then one token for everyone."""
        try:
            self._join(lane)
            said = lane.stepper.step()
        except (RuntimeError, MemoryError):  # torch raises RuntimeError when memory is short
            _log.exception("a model failed; its replies are given up")
            self._fail(lane, "the model failed on this request: lower max_tokens, or see the server's log")
            return
        deltas: dict[Job, list[Delta]] = {}
        for sequence, token in said:
            job, choice = lane.live[sequence]
            delta = listen(choice, token)
            if choice.finish_reason is not None:
                self._leave(lane, sequence)
            if delta is not None:
                deltas.setdefault(job, []).append(delta)
        for job, parts in deltas.items():
            job.deliver(parts)

    def _join(self, lane: _Lane) -> None:
        """Let in who fits; the stepper sees to it that nobody's prompt holds up those who are speaking."""
        while lane.waiting and self._fits(lane, lane.waiting[0][1].sequence):
            job, choice = lane.waiting.popleft()
            lane.live[choice.sequence] = (job, choice)
            lane.stepper.join([choice.sequence])

    def _fits(self, lane: _Lane, sequence: LiveSequence) -> bool:
        """The cache is a rectangle: rows times the longest that any of them may become."""
        rows = [*lane.live, sequence]
        if len(rows) > self._concurrency:
            return False
        return len(rows) == 1 or len(rows) * max(row.max_length for row in rows) <= lane.room

    def _leave(self, lane: _Lane, sequence: LiveSequence) -> None:
        del lane.live[sequence]
        lane.stepper.leave(sequence)

    def _fail(self, lane: _Lane, message: str) -> None:
        jobs = {job for job, _ in (*lane.waiting, *lane.live.values())}
        lane.waiting.clear()
        lane.live.clear()
        lane.stepper = Stepper(lane.stepper.decoder)
        for job in jobs:
            job.deliver(Failure(message))


def listen(choice: Choice, token: Token) -> Delta | None:
    """Let a reply hear its next token; sets its `finish_reason` when that was the last one."""
    sequence, reply = choice.sequence, choice.reply
    pieces, thinks = reply.push(token.id)
    ended = token.id in choice.stop_ids
    if ended or reply.stopped or len(sequence.ids) >= len(sequence.uniforms):
        pieces += reply.finish()
        # without an answer a reply is unfinished, even if the model itself ended it
        choice.finish_reason = "stop" if (ended or reply.stopped) and not reply.is_thinking else "length"
    elif reply.must_close:
        sequence.forced.extend(choice.close_ids)
    wanted = sequence.num_top is not None and not ended
    tokens = (SaidToken(token, thinks),) if wanted else ()
    if not pieces and not tokens and choice.finish_reason is None:
        return None
    return Delta(choice.index, tuple(pieces), tokens, choice.finish_reason)
