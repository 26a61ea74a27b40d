"""A file of tensors and plain values, either whole or known to be damaged: a checksum, then what torch writes."""

from __future__ import annotations

import errno
import hashlib
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from ponder.errors import BrokenInputError, DamagedCheckpointError
from ponder.store.files import disk_errors, replacing

_DIGEST_BYTES = 16
_CHUNK_BYTES = 2**20

State = dict[str, Any]


def save_state(path: Path, state: Mapping[str, Any], before: Path | None = None) -> None:
    """Write a state in the place of `path`; what was there goes to `before`. Never held in memory a second time.

    Raises `BrokenInputError` when the disk refuses; both files are then as they were.
    """
    with replacing(path, before) as file:
        file.write(bytes(_DIGEST_BYTES))
        content = _Hashing(file)
        torch.save(dict(state), cast(BinaryIO, content))  # it writes and flushes, no more
        if content.error is not None:
            raise content.error
        file.seek(0)
        file.write(content.hash.digest())


def load_state(path: Path) -> State:
    """A state that was saved, on the CPU. Only tensors and plain values are ever unpickled.

    Raises `DamagedCheckpointError` for any other content: torch itself would not notice a wrong number.
    """
    with reading(path), open(path, "rb") as file:
        digest, found = file.read(_DIGEST_BYTES), _new_hash()
        for chunk in iter(partial(file.read, _CHUNK_BYTES), b""):
            found.update(chunk)
        try:
            if digest != found.digest():
                raise ValueError("the checksum differs")
            file.seek(_DIGEST_BYTES)
            state: State = torch.load(file, map_location="cpu", weights_only=True)
        except (ValueError, RuntimeError, pickle.UnpicklingError) as error:
            # what torch says is about its own settings and would lead a reader astray
            raise DamagedCheckpointError(f"{path} is damaged") from error
    return state


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """As `disk_errors`, but a disk that has lost what a file held raises `DamagedCheckpointError`."""
    try:
        with disk_errors(path, "read"):
            yield
    except BrokenInputError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EIO:
            raise DamagedCheckpointError(f"{path} is damaged: the disk reports an input/output error") from error
        raise


class _Hashing:
    """Hashes what passes on its way to a file. It keeps the disk's error, which torch would lose, for the end."""

    def __init__(self, file: BinaryIO) -> None:
        self.hash = _new_hash()
        self.error: OSError | None = None
        self._file = file

    def write(self, data: memoryview) -> int:
        if self.error is None:
            self.hash.update(data)
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Whoever opened the file does that."""


def _new_hash() -> Any:
    return hashlib.blake2b(digest_size=_DIGEST_BYTES)
