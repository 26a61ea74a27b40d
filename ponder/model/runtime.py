"""How this process uses the CPU: threads of the linear algebra, and memory that is kept instead of given back."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEP_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 1 << 25  # glibc refuses more


def prepare_cpu(threads: int = 0) -> int:
    """Set the threads of the linear algebra (0: all cores that this process may use) and return their number.

    On glibc it also tells malloc to keep what it once got: every micro-batch asks for the same large buffers, and to
    have the kernel clear their pages anew each time costs several per cent of a step.
    """
    count = threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads or os.cpu_count()
    torch.set_num_threads(count or 1)
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)
        mallopt(_M_TOP_PAD, 1 << 26)
    return torch.get_num_threads()
