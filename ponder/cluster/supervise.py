"""The process above a run on a cluster: starts it again when it dies, and lets nothing of it stay behind.

A run that computes in this process alone dies when it is killed, and that is all. With Ray there are more ways to die:
Ray ends the driver's process itself, without a word to Python, when its head or this node's daemon is gone. The run
folder has all that a new process needs to go on, so that is what it gets.

    supervise(argv)                 parent: waits, forwards signals, starts again
      join_supervisor()             child: dies with the parent, and tells an exit from a crash
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType

from ponder.cluster.processes import children, descendants
from ponder.errors import InterruptedRunError

_VARIABLE = "PONDER_SUPERVISOR"
"""In the child's environment: the supervisor's process id, and the pipe on which the child says that it exits."""

STOP_MARGIN_S = 30.0
"""Beyond what a run has to end its step, for it to end its processes."""

_LOOK_S = 1.0
_LEFTOVERS_S = 10.0
"""For what the child left behind to be gone after SIGKILL."""

_MAX_IDLE_STARTS = 3
"""Starts in a row that may die without progress: what kills them is no accident."""

Progress = Callable[[], Mapping[str, int]]
"""How far a run has come, by marks that grow, or appear, with new work only: never when work is done again."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def is_supervised() -> bool:
    """Whether this process was started by a supervisor, and has not joined it yet."""
    return _VARIABLE in os.environ


def join_supervisor() -> None:
    """In the child: die when the supervisor does, and tell it of every exit that goes through Python."""
    supervisor, pipe = map(int, os.environ.pop(_VARIABLE).split(":"))
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it died before it could be noticed
        os._exit(InterruptedRunError.exit_code)
    os.set_inheritable(pipe, False)
    atexit.register(os.write, pipe, b"x")


def supervise(
    argv: Sequence[str], progress: Progress, max_restarts: int, stop_s: float, say: Callable[[str], None]
) -> int:
    """Run a command until it exits by itself; returns its exit code.

    When it dies otherwise, `say` hears why, and it is started again: `max_restarts` times, but not when three starts in
    a row made no `progress`. SIGTERM, SIGHUP and Ctrl-C are passed on; `stop_s` seconds later it is
    killed. Raises `InterruptedRunError` when it is not started again. Belongs on the main thread.
    """
    return _Supervisor(argv, progress, max_restarts, stop_s, say).run()


class _Supervisor:
    """One command, over all its starts."""

    def __init__(
        self, argv: Sequence[str], progress: Progress, max_restarts: int, stop_s: float, say: Callable[[str], None]
    ) -> None:
        self.argv = argv
        self.progress = progress
        self.max_restarts = max_restarts
        self.stop_s = stop_s
        self.say = say
        self.furthest: dict[str, int] = {}
        self.child: subprocess.Popen[bytes] | None = None
        self.kill_at: float | None = None
        """Set when a stop has been asked for, on the clock of `time.monotonic`."""

    def run(self) -> int:
        # whatever loses its parent below us becomes our child, where we can find it
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._has_progressed()  # from where an earlier command has left it
        idle, restarts = 0, 0
        with self._signals():
            while True:
                code, exited = self._run_once()
                if exited and code >= 0:
                    return code
                how = _how_it_died(code)
                if self.kill_at is not None:
                    raise InterruptedRunError(f"the run {how} when it was told to stop: the same command goes on")
                idle = 0 if self._has_progressed() else idle + 1
                restarts += 1
                if idle >= _MAX_IDLE_STARTS or restarts > self.max_restarts:
                    often = (
                        f"{idle} times in a row without progress" if idle >= _MAX_IDLE_STARTS else f"{restarts} times"
                    )
                    raise InterruptedRunError(f"the run {how}, {often}: the same command goes on where it was")
                self.say(f"the run {how}; it goes on where it was (start {restarts + 1})")

    def _has_progressed(self) -> bool:
        """Whether any mark is beyond the furthest that it has been."""
        beyond = {name: at for name, at in self.progress().items() if at > self.furthest.get(name, -1)}
        self.furthest |= beyond
        return bool(beyond)

    def _run_once(self) -> tuple[int, bool]:
        """The exit code, negative for a signal, and whether the child said that it exits."""
        read, write = os.pipe()
        environment = os.environ | {_VARIABLE: f"{os.getpid()}:{write}"}
        # a session of its own: Ctrl-C reaches the child through us, and Ray's processes not at all
        self.child = subprocess.Popen(self.argv, env=environment, pass_fds=[write], start_new_session=True)
        os.close(write)
        try:
            code = self._wait(self.child)
            _end_leftovers()
            os.set_blocking(read, False)
            with contextlib.suppress(BlockingIOError):
                return code, os.read(read, 1) == b"x"
            return code, False
        finally:
            os.close(read)

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(_LOOK_S)
            _reap(child.pid)
            if self.kill_at is not None and time.monotonic() > self.kill_at:
                child.kill()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def forward(number: int, frame: FrameType | None) -> None:
            if self.kill_at is None:
                self.kill_at = time.monotonic() + self.stop_s
            if self.child is not None and self.child.poll() is None:
                self.child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

        before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _how_it_died(code: int) -> str:
    if code >= 0:
        return f"was ended by Ray, or by the watch over it (exit code {code})"
    return f"was killed by {signal.Signals(-code).name}"


def _end_leftovers() -> None:
    """Kill everything below this process, and what that leaves behind in turn."""
    deadline = time.monotonic() + _LEFTOVERS_S
    while (left := descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.01)


def _reap(but: int | None = None) -> None:
    """Take note of the ends of processes that became our children when their parents died."""
    for pid in children(os.getpid()):
        if pid != but:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
