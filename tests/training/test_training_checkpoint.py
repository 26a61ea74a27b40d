"""A state is read back as it was, or refused in one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ponder.errors import BrokenInputError
from ponder.training.checkpoint import load_state, save_state

STATE: dict[str, Any] = {"step": 3, "elapsed": 0.1, "name": "a", "parts": [{"w": torch.arange(500.0)}], "none": None}


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_there_and_back(tmp_path: Path) -> None:
    assert load_state(tmp_path) is None
    save_state(tmp_path, STATE)
    save_state(tmp_path, {**STATE, "step": 4})
    found = load_state(tmp_path)
    assert found is not None
    assert torch.equal(found.pop("parts")[0]["w"], torch.arange(500.0))
    assert found == {"step": 4, "elapsed": 0.1, "name": "a", "none": None}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_torn_file_is_refused(tmp_path: Path, share: float) -> None:
    save_state(tmp_path, STATE)
    path = the_file(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BrokenInputError, match=r"damaged.*--fresh"):
        load_state(tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_changed_byte_is_noticed(tmp_path: Path, share: float) -> None:
    """In the middle of the numbers, where nothing but a checksum can tell."""
    save_state(tmp_path, STATE)
    path = the_file(tmp_path)
    data = bytearray(path.read_bytes())
    data[int(len(data) * share)] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(BrokenInputError, match="damaged"):
        load_state(tmp_path)


@pytest.mark.parametrize("content", [b"\0" * 3000, b"hello", b"PK\x03\x04" + b"x" * 200, b"\x80\x02" + b"(" * 40])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    save_state(tmp_path, STATE)
    the_file(tmp_path).write_bytes(content)
    with pytest.raises(BrokenInputError, match=r"damaged.*--fresh"):
        load_state(tmp_path)


class Touch:
    """Unpickling this would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def test_nothing_in_a_state_is_run(tmp_path: Path) -> None:
    """Not even of a file whose checksum is right."""
    save_state(tmp_path, {"step": Touch(tmp_path / "touched")})
    with pytest.raises(BrokenInputError, match="damaged"):
        load_state(tmp_path)
    assert not (tmp_path / "touched").exists()


def test_what_a_killed_write_left_behind_is_swept_away(tmp_path):
    save_state(tmp_path, {"step": 1})
    (tmp_path / ".state.pt.tmp-123").write_bytes(b"half a file")
    assert load_state(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
