"""What the tests of the sandbox share besides fixtures: a look at this machine's processes."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def commands_on_host(marker: str) -> list[str]:
    """Processes of this machine that have a word among their arguments; seen from outside, a sandbox hides nothing."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if marker in path.read_bytes().decode("utf-8", "replace").split("\0"):
                found.append(path.parent.name)
    return found


def left_on_host(marker: str) -> list[str]:
    """Those that stay: one that was killed may take a moment to go."""
    deadline = time.monotonic() + 60
    while (found := commands_on_host(marker)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
