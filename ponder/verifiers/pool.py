"""A worker process that can be killed: for checks that may never end.

Libraries that compare formulas limit themselves with signals, which work on a program's main thread only, or not at
all. Here the check runs in a process of its own; when its time is up, the process is killed, and the next call starts
a new one. The limit that binds is one of processor time, so that a verdict does not depend on how busy the machine is;
the deadline on the clock is there for what sleeps. Arguments and results travel as lines of JSON, so that nothing the
worker says can run code in this process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import queue
import subprocess
import sys
import threading
from typing import Any

from ponder.errors import PonderError

START_DEADLINE_S = 300.0
"""For the worker to start and import what it needs, on a busy machine."""

MEMORY_LIMIT_BYTES = 4 * 2**30

_SERVE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from ponder.verifiers.pool import serve; serve()"


class DeadlineExceededError(Exception):
    """The call did not end in time, or the worker died of it; it is gone, and the next call gets a new one."""


class KillableWorker:
    """Calls one function, `package.module:function`, in a process of its own. Threads that share it queue."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def call(self, *arguments: Any, cpu_s: float, deadline_s: float) -> Any:
        """The function's result for JSON-like arguments.

        Raises `DeadlineExceededError` after `cpu_s` seconds of processor time (not on Windows) or `deadline_s` seconds
        on the clock; starting the worker does not count.
        """
        with self._lock:
            process = self._running()
            try:
                request = {"arguments": arguments, "cpu_s": cpu_s}
                return json.loads(self._exchange(process, request, deadline_s))
            except (queue.Empty, BrokenPipeError, json.JSONDecodeError) as error:
                self._kill()
                raise DeadlineExceededError(f"no result of {self._function} in time") from error

    def close(self) -> None:
        """End the worker; a later call starts a new one."""
        with self._lock:
            self._kill()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        # a queue of its own: a late line of a killed worker must never answer a new question
        self._lines = queue.Queue()
        threading.Thread(target=_read_lines, args=(self._process, self._lines), daemon=True).start()
        atexit.register(self._process.kill)
        try:
            ready = self._exchange(self._process, {"function": self._function}, START_DEADLINE_S)
        except (queue.Empty, BrokenPipeError):
            ready = ""
        if ready != "ready":
            self._kill()
            raise PonderError(f"the worker process for {self._function} does not start within {START_DEADLINE_S:g} s")
        return self._process

    def _exchange(self, process: subprocess.Popen[str], message: dict[str, Any], deadline_s: float) -> str:
        assert process.stdin is not None
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
        return self._lines.get(timeout=deadline_s)

    def _kill(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        atexit.unregister(process.kill)
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # an unsent line has nobody to read it
                process.stdin.close()


def _read_lines(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            lines.put(line.rstrip("\n"))
    lines.put("")  # the worker died: no need to wait for the deadline


def serve() -> None:
    """The worker's side: a line names the function, then each line holds a call's arguments."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not stand among the answers
    requests = map(json.loads, sys.stdin)
    module, _, name = next(requests)["function"].partition(":")
    function = getattr(importlib.import_module(module), name)
    _limit_memory()
    print("ready", file=answers, flush=True)
    for request in requests:
        _limit_cpu(request["cpu_s"])
        result = function(*request["arguments"])
        _limit_cpu(0)
        print(json.dumps(result), file=answers, flush=True)


def _limit_memory() -> None:
    if sys.platform == "win32":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))


def _limit_cpu(seconds: float) -> None:
    """End this process after so much more processor time; 0 lifts the limit."""
    if sys.platform != "win32":
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)
