"""Files that are either whole or absent, and one sentence when the disk refuses.

Every file of a run folder is written through this module: to a temporary name first, synced, then renamed, so
that a reader, or the next start after a `kill -9`, never meets half a file.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ponder.errors import BrokenInputError

_ADVICE = {
    errno.ENOSPC: "the disk is full; free space and run the same command again, or choose another folder with --run",
    errno.EDQUOT: "the disk quota is used up; free space and run the same command again, or choose another --run",
    errno.EROFS: "the file system is read-only; choose another folder with --run",
    errno.EACCES: "permission denied; choose another folder with --run",
    errno.EPERM: "permission denied; choose another folder with --run",
    errno.ENAMETOOLONG: "the name is too long; choose another folder with --run",
    errno.EFBIG: "the file grows beyond what `ulimit -f` or the file system allows; raise it or choose another --run",
    errno.ESTALE: "the server of that disk has lost the file; mount it again and run the same command again",
    errno.ENOTDIR: "a part of that path is a file; choose another folder with --run",
    errno.EIO: "the disk reports an input/output error; choose another folder with --run",
}
_SQLITE_ADVICE = {
    sqlite3.SQLITE_FULL: _ADVICE[errno.ENOSPC],
    sqlite3.SQLITE_READONLY: _ADVICE[errno.EROFS],
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; choose another folder with --run",
    sqlite3.SQLITE_IOERR: _ADVICE[errno.EIO],
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a copy or choose another folder with --run",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database; remove it or choose another folder with --run",
    sqlite3.SQLITE_BUSY: "another program keeps the file locked; close it and run the same command again",
}


@contextmanager
def disk_errors(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn what a disk can do to us while `doing` something with `path` into one sentence.

    Raises `BrokenInputError` for a full or read-only disk, a missing permission, a damaged database and their
    like; any other exception passes unchanged, since it is a defect and not the disk's fault.
    """
    try:
        yield
    except (OSError, sqlite3.DatabaseError) as error:
        advice = disk_advice(error)
        if advice is None:
            raise
        raise BrokenInputError(f"cannot {doing} {path}: {advice}") from error


def disk_advice(error: BaseException) -> str | None:
    """What to do about an error that the disk is to blame for; None for any other error."""
    if isinstance(error, OSError) and error.errno is not None:
        return _ADVICE.get(error.errno)
    if isinstance(error, sqlite3.DatabaseError):
        # the extended codes keep the primary one in their low byte
        return _SQLITE_ADVICE.get(getattr(error, "sqlite_errorcode", -1) & 0xFF)
    return None


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises `BrokenInputError` when that is impossible."""
    with disk_errors(path, "create the folder"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise BrokenInputError(f"cannot create the folder {path}: a file of that name is in the way") from error
        except FileNotFoundError as error:
            raise BrokenInputError(f"cannot create the folder {path}: nothing can be made there") from error


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: readers see the old file or the new one, whatever happens in between.

    Raises `BrokenInputError` when the disk refuses, or there is no such folder; the old file is then untouched.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, before: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes the place of `path` when the block ends without an error, as `atomic_write` does.

    Where `before` is given, what was at `path` goes there; a kill between the two renames leaves nothing at `path`.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if before is not None and path.exists():
                os.replace(path, before)
            os.replace(temporary, path)
        except FileNotFoundError as error:
            raise BrokenInputError(f"cannot write {path}: there is no folder {path.parent}") from error
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def atomic_write_json(path: Path, value: Any) -> None:
    """`atomic_write` of a value as indented JSON; keys keep their order."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises `BrokenInputError` when it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenInputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BrokenInputError(f"{path} is not a JSON file: {error}") from error


def sync_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power cut, not only the end of the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
