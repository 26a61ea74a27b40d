"""What an exact resume needs, in one file that is either whole or absent."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from ponder.errors import BrokenInputError
from ponder.store.files import atomic_write, disk_errors

_FILE = "state.pt"
_DIGEST_BYTES = 16


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write a state of tensors and plain values. Raises `BrokenInputError` when the disk refuses; the old one stays."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    atomic_write(folder / _FILE, _digest(content) + content)


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state last saved in `folder`, or None. Only tensors and plain values are ever unpickled.

    Raises `BrokenInputError` when the file is damaged: torch itself would not notice a wrong number.
    """
    path = folder / _FILE
    for unfinished in folder.glob(f".{_FILE}.tmp-*"):  # by a process that was killed while it wrote
        unfinished.unlink(missing_ok=True)
    if not path.exists():
        return None
    with disk_errors(path, "read"):
        whole = path.read_bytes()
    digest, content = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
    try:
        if digest != _digest(content):
            raise ValueError("the checksum differs")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, pickle.UnpicklingError) as error:
        # what torch says is about its own settings and would lead a reader astray
        raise BrokenInputError(f"{path} is damaged: start the stage again with --fresh") from error
    return state


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
