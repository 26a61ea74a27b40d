"""How this process uses the machine's memory."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_LARGEST_MMAP_THRESHOLD = 1 << 25
"""glibc refuses more."""


def keep_freed_memory() -> None:
    """Tell glibc's malloc to keep what it once got; elsewhere nothing happens.

    Every micro-batch asks for the same large buffers, and having the kernel clear their pages anew each time costs
    several per cent of a step.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_TOP_PAD, 1 << 26)
