"""How this process uses the machine: its memory, and where models compute."""

from __future__ import annotations

import ctypes
import sys
from typing import Literal

import torch

from ponder.errors import UsageError

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


def pick_device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a recipe's `device` names: `auto` is a GPU where there is one. Raises `UsageError` for no GPU."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UsageError("device: cuda finds no GPU that this build of torch can use: set it to auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
