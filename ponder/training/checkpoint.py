"""What an exact resume needs, in one file that is either whole or absent."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from ponder.errors import BrokenInputError
from ponder.store.files import atomic_write

_FILE = "state.pt"


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values. Raises `BrokenInputError` when the disk refuses; the old one stays."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    atomic_write(folder / _FILE, buffer.getvalue())


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state last saved in `folder`, or None. Only tensors and plain values are ever unpickled.

    Raises `BrokenInputError` when the file is damaged.
    """
    path = folder / _FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        # what torch says here is about its own settings, and would lead a reader astray
        raise BrokenInputError(f"{path} is damaged: start the stage again with --fresh") from error
    return state
