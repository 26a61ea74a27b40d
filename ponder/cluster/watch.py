"""A watch over Ray's own processes: many calls into Ray wait for them, and for as long as it takes.

A rollout worker or a rank that falls silent is found by whoever waits for it. The daemon of this node (it holds the
shared memory) and the head are below all that: where they are stopped, or cut off, the driver would stand still.
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ponder.errors import InterruptedRunError

_BEAT_S = 5.0
_SLICE_S = 1.0
_GRACE_S = 5.0
_STDERR = 2
_PROBE_BYTES = 1 << 20
"""Too large to travel inside a message: it goes through the shared memory."""


class RayWatch:
    """Asks this node's daemon and the head for a sign of life, and ends this process when there is none.

    An exception would not do: the main thread may sit in a call that never returns to Python. A supervisor starts the
    run again (`ponder.cluster.supervise`).
    """

    def __init__(self, silent_s: float) -> None:
        """Both may take `silent_s` seconds to answer."""
        self._silent_s = silent_s
        self._answered = threading.Event()
        self._leaving = threading.Event()
        self._closed = threading.Event()
        self._asking = threading.Thread(target=self._ask, name="asks Ray", daemon=True)
        self._watching = threading.Thread(target=self._watch, name="watches Ray", daemon=True)
        self._asking.start()
        self._watching.start()

    def leave(self) -> None:
        """Ask no more: Ray is about to be left, for which it has as long as for an answer."""
        self._leaving.set()
        self._asking.join()  # where Ray does not answer, the watch ends the process
        self._answered.set()

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        self._watching.join()

    def _ask(self) -> None:
        import ray
        from ray.exceptions import RayError

        probe = bytes(_PROBE_BYTES)
        while not self._leaving.wait(min(_BEAT_S, self._silent_s / 4)):
            try:
                ray.put(probe)
                ray.nodes()
            except (RayError, RuntimeError, OSError):  # no sign of life either
                continue
            self._answered.set()

    def _watch(self) -> None:
        silent = 0.0
        while not self._closed.wait(_SLICE_S):
            # slices are counted, not looked up on a clock: a driver that was itself stopped must not blame Ray
            silent = 0.0 if self._answered.is_set() else silent + _SLICE_S
            self._answered.clear()
            if silent > self._silent_s:
                _end_run(
                    f"Ray's daemon on this machine, or its head, has not answered for {self._silent_s:g} s "
                    "(cluster.deadlines.silent_s)"
                )


@contextmanager
def started_within(limit_s: float) -> Iterator[None]:
    """End this process, as `RayWatch` does, where the body has not started or joined Ray after `limit_s` seconds.

    Ray waits for its head without letting go of the interpreter, so that no thread can say anything. A timer that needs
    none then ends the process soon after, with a traceback in place of the sentence, and exit code 1.
    """
    started = threading.Event()

    def watch() -> None:
        waited = 0.0
        while not started.wait(_SLICE_S):
            waited += _SLICE_S  # as above
            if waited > limit_s:
                _end_run(f"Ray has not started within {limit_s:g} s (cluster.deadlines.start_s)")

    watching = threading.Thread(target=watch, name="watches Ray start", daemon=True)
    watching.start()
    faulthandler.dump_traceback_later(limit_s + _GRACE_S, exit=True, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        started.set()
        watching.join()


def _end_run(why: str) -> NoReturn:
    os.write(_STDERR, f"ponder: {why}: the run ends here, and the same command goes on where it was\n".encode())
    os._exit(InterruptedRunError.exit_code)
