"""Files that are either whole or absent."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from ponder.errors import BrokenInputError
from ponder.store.files import atomic_write, atomic_write_json, disk_advice, make_folder, read_json


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    atomic_write(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BrokenInputError, match="the disk is full"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_synced_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b))[1])
    atomic_write(tmp_path / "x", b"\x00\xff")
    assert calls == ["sync", "rename", "sync"]
    assert (tmp_path / "x").read_bytes() == b"\x00\xff"


def test_json_keeps_order_and_script(tmp_path: Path) -> None:
    value = {"b": ["倒计时"], "a": 1.5}
    atomic_write_json(tmp_path / "x.json", value)
    assert list(read_json(tmp_path / "x.json").items()) == list(value.items())
    assert "倒计时" in (tmp_path / "x.json").read_text(encoding="utf-8")


def test_a_folder_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokenInputError, match=r"a part of that path is a file; choose another folder with --run"):
        make_folder(tmp_path / "file" / "run")
    with pytest.raises(BrokenInputError, match="a file of that name is in the way"):
        make_folder(tmp_path / "file")
    with pytest.raises(BrokenInputError, match="the name is too long"):
        make_folder(tmp_path / ("a" * 300))


def test_a_file_in_no_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BrokenInputError, match="there is no folder"):
        atomic_write(tmp_path / "none" / "x.txt", "x")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EFBIG])
def test_advice_names_the_setting(code: int) -> None:
    advice = disk_advice(OSError(code, "no"))
    assert advice is not None
    assert "--run" in advice


def test_other_errors_are_no_fault_of_the_disk() -> None:
    assert disk_advice(OSError(errno.EPIPE, "no")) is None
    assert disk_advice(ValueError("no")) is None
    assert disk_advice(sqlite3.OperationalError("no such table")) is None
