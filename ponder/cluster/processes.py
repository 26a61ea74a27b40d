"""Processes and folders that must not outlive their owner, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_LOCK = "lock"


@contextlib.contextmanager
def scratch_folder(kind: str, longest: int | None = None) -> Iterator[Path]:
    """A temporary folder that goes at the end; one whose process was killed goes when the next is made.

    `longest` bounds its path's length, in characters.
    """
    prefix = f"ponder-{kind}-"
    parent = tempfile.gettempdir()
    if longest is not None and len(parent) + len(prefix) + 9 > longest:
        parent = "/tmp"
    for old in Path(parent).glob(f"{prefix}*"):
        _remove_if_dead(old)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    with open(folder / _LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_if_dead(folder: Path) -> None:
    try:
        with open(folder / _LOCK, "r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # in use, somebody else's, or just being made
        return


def descendants(pid: int) -> list[int]:
    """Processes below a process, parents first; empty where there is no /proc."""
    return [below for child in children(pid) for below in (child, *descendants(child))]


def children(pid: int) -> list[int]:
    """Processes that a process has started, or inherited; empty where there is no /proc."""
    with contextlib.suppress(OSError):
        threads = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return []


def command_line(pid: int) -> str:
    """Of a process, with spaces between the arguments; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def end_processes(pids: Sequence[int], patience_s: float) -> None:
    """Wait for processes to end, and kill those that have not by then."""
    deadline = time.monotonic() + patience_s
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in filter(is_alive, pids):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process runs: neither gone nor a zombie that waits for its parent."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")
