"""A state is read back as it was, or refused in one sentence."""

from __future__ import annotations

import errno
import os
import re
import resource
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from ponder.errors import BrokenInputError, DamagedCheckpointError
from ponder.training.state_file import load_state, reading, save_state

STATE: dict[str, Any] = {"step": 3, "elapsed": 0.1, "name": "a", "parts": [{"w": torch.arange(500.0)}], "none": None}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.pt"


def test_there_and_back(path: Path) -> None:
    save_state(path, STATE)
    save_state(path, {**STATE, "step": 4})
    found = load_state(path)
    assert torch.equal(found.pop("parts")[0]["w"], torch.arange(500.0))
    assert found == {"step": 4, "elapsed": 0.1, "name": "a", "none": None}
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_goes_where_it_is_told(path: Path) -> None:
    before = path.with_name("before.pt")
    for step in (1, 2, 3):
        save_state(path, {"step": step}, before)
        assert load_state(path) == {"step": step}
    assert load_state(before) == {"step": 2}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_torn_file_is_refused(path: Path, share: float) -> None:
    save_state(path, STATE)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        load_state(path)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_changed_byte_is_noticed(path: Path, share: float) -> None:
    """In the middle of the numbers, where nothing but a checksum can tell."""
    save_state(path, STATE)
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        load_state(path)


@pytest.mark.parametrize("content", [b"\0" * 3000, b"hello", b"PK\x03\x04" + b"x" * 200, b"\x80\x02" + b"(" * 40])
def test_a_file_of_something_else_is_refused(path: Path, content: bytes) -> None:
    save_state(path, STATE)
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        load_state(path)


class Touch:
    """Unpickling this would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_state_is_run(path: Path, tmp_path: Path) -> None:
    """Not even of a file whose checksum is right."""
    save_state(path, {"step": Touch(tmp_path / "touched")})
    with pytest.raises(DamagedCheckpointError, match="damaged"):
        load_state(path)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("room", [0, 10_000, 300_000])
def test_a_full_disk_is_one_sentence_and_changes_nothing(path: Path, room: int) -> None:
    """Whether it refuses in the middle of what torch writes or behind it."""
    before = path.with_name("before.pt")
    for step in (1, 2):
        save_state(path, {"step": step}, before)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(BrokenInputError, match=re.escape(f"cannot write {path}: the file grows beyond")):
            save_state(path, {"step": 3, "weights": [torch.zeros(50_000), torch.zeros(50_000)]}, before)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [load_state(path), load_state(before)] == [{"step": 2}, {"step": 1}]
    assert sorted(path.parent.iterdir()) == [before, path]


def test_a_disk_that_loses_a_file_is_damage_and_a_missing_permission_is_not(path: Path) -> None:
    for number, found in ((errno.EIO, DamagedCheckpointError), (errno.EACCES, BrokenInputError)):
        with pytest.raises(BrokenInputError) as raised, reading(path):
            raise OSError(number, "so says the disk")
        assert type(raised.value) is found


def test_a_state_is_written_as_it_comes(path: Path) -> None:
    """Not put together in memory first: that would be the whole of a model again, and its moments."""
    weights = torch.zeros(8 * 2**20 // 4)
    tracemalloc.start()
    try:
        save_state(path, {"weights": weights})
        load_state(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()
