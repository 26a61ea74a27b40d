"""Whatever happens to one checkpoint, a stage goes on from it or from the one before, and says which."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder.errors import BrokenInputError, DamagedCheckpointError
from ponder.training.checkpoint import BEFORE, NEWEST, Checkpoints
from ponder.training.execution import Ranks
from ponder.training.sharded_checkpoint import check_parts, read_parts, write_part
from ponder.training.sharding import Shard


class Counting:
    """A trainer whose only weight counts its steps; it keeps it in two parts of its own, or in the caller's file."""

    lr = 0.0

    def __init__(self, in_parts: bool) -> None:
        self.in_parts = in_parts
        self.weight = torch.zeros(4)

    def _shards(self) -> dict[str, Shard]:
        return {"w": Shard(self.weight, (4,))}

    def save_state(self, folder: Path, name: str) -> dict[str, Any]:
        if not self.in_parts:
            return {"w": self.weight.clone()}
        parts = [write_part(folder / name, self._shards(), Ranks(rank, 2)) for rank in range(2)]
        return {"folder": name, "parts": parts}

    def load_state(self, folder: Path, state: dict[str, Any]) -> None:
        if self.in_parts:
            check_parts(folder / state["folder"], state["parts"], Ranks())
            read_parts(folder / state["folder"], state["parts"], self._shards())
        else:
            self.weight = state["w"]

    def weights(self) -> dict[str, Tensor]:
        return {}

    def restart(self) -> None:
        """As every trainer."""

    def close(self) -> None:
        """As every trainer."""


class Stage:
    """Takes steps and checkpoints as a stage does; `start` is another process."""

    def __init__(self, folder: Path, in_parts: bool) -> None:
        self.folder = folder
        self.in_parts = in_parts
        self.said: list[str] = []
        self.start()

    def start(self) -> None:
        self.checkpoints = Checkpoints(self.folder, self.said.append)
        self.trainer = Counting(self.in_parts)

    def save(self, step: int) -> None:
        self.trainer.weight.fill_(step)
        self.checkpoints.save(self.trainer, {"step": step})

    def load(self) -> int | None:
        """The step at which the stage goes on, which is what the trainer counts."""
        state = self.checkpoints.load(self.trainer)
        assert self.trainer.weight.tolist() == [0.0 if state is None else state["step"]] * 4
        return None if state is None else state["step"]

    def restarted(self) -> int | None:
        self.start()
        return self.load()

    def file(self, name: str) -> Path:
        return self.folder / name

    def parts(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.is_dir()}


def tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit, as late in the file as numbers are."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


Damage = Callable[[Path], None]


@pytest.fixture(params=[False, True], ids=["one file", "parts"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> Stage:
    return Stage(tmp_path, request.param)


def test_it_goes_on_from_the_newest(stage: Stage) -> None:
    assert stage.load() is None
    assert not stage.checkpoints.exist
    for step in (0, 2, 4):
        stage.save(step)
        assert stage.load() == step
        assert stage.restarted() == step
        assert stage.checkpoints.exist
    assert stage.said == []


@pytest.mark.parametrize("damage", [tear, flip])
def test_from_a_damaged_one_it_goes_back_to_the_one_before(stage: Stage, damage: Damage) -> None:
    for step in (2, 4, 6):
        stage.save(step)
    damage(stage.file(NEWEST))
    for _ in range(2):  # as often as it is started before the next one is saved
        assert stage.restarted() == 4
    said = f"{stage.file(NEWEST)} is damaged: the stage goes back to the checkpoint before it, and on from step 4"
    assert stage.said == [said] * 2
    stage.save(6)  # in the place of the damaged one, and not of the one that it went back to
    assert stage.restarted() == 6
    damage(stage.file(NEWEST))
    assert stage.restarted() == 4
    stage.save(6)
    stage.save(8)
    damage(stage.file(NEWEST))
    assert stage.restarted() == 6


@pytest.mark.parametrize("how", ["torn", "flipped", "missing", "folder missing"])
@pytest.mark.parametrize("rank", [0, 1])
def test_from_damaged_parts_it_goes_back_too(tmp_path: Path, how: str, rank: int) -> None:
    stage = Stage(tmp_path, in_parts=True)
    for step in (2, 4):
        stage.save(step)
    folder = stage.file("trainer-4")
    part = folder / f"part-{rank:05}-of-00002.safetensors"
    if how == "folder missing":
        folder.rename(tmp_path / "elsewhere")
    elif how == "missing":
        part.unlink()
    else:
        {"torn": tear, "flipped": flip}[how](part)
    assert stage.restarted() == 2
    named = "part-0000" if how == "folder missing" else part.name
    assert named in stage.said[0] and stage.said[0].endswith("on from step 2")
    stage.save(4)  # by the name that the damaged one has
    assert stage.restarted() == 4
    assert {"trainer-2", "trainer-4"} <= stage.parts()


def test_where_both_are_damaged_it_says_so(stage: Stage) -> None:
    for step in (2, 4):
        stage.save(step)
    tear(stage.file(NEWEST))
    tear(stage.file(BEFORE))
    said = f"{stage.file(NEWEST)} is damaged, as the checkpoint before it is: start the stage again with --fresh"
    with pytest.raises(DamagedCheckpointError, match=re.escape(said)):
        stage.restarted()
    stage.file(BEFORE).unlink()
    with pytest.raises(DamagedCheckpointError, match=r"state\.pt is damaged: start the stage again with --fresh"):
        stage.restarted()


def test_the_first_one_stands_before_nothing(stage: Stage) -> None:
    """Where it is damaged a stage begins, in a process whose trainer has not moved."""
    stage.save(2)
    tear(stage.file(NEWEST))
    with pytest.raises(BrokenInputError, match=r"state\.pt is damaged: the same command starts"):
        stage.load()
    assert stage.restarted() is None
    assert stage.said[0].endswith("on from its beginning")
    stage.save(2)
    assert stage.restarted() == 2
    tear(stage.file(NEWEST))
    assert stage.restarted() is None


def test_two_are_kept_and_no_more(stage: Stage) -> None:
    """Also where a step is saved again and again, as by a run that is stopped whenever it has started."""
    for step in (2, 4, 6, 6, 6, 6, 8):
        stage.save(step)
        stage.restarted()
        kept = {path.name for path in stage.folder.iterdir() if path.is_file()}
        assert kept == {NEWEST, BEFORE}
        assert len(stage.parts()) <= 2
    if stage.in_parts:
        (again,) = stage.parts() - {"trainer-8"}
        assert again.startswith("trainer-6")
    tear(stage.file(NEWEST))
    assert stage.restarted() == 6


class Killed(BaseException):
    """Nothing catches it, and no clean-up that matters here runs."""


def test_a_kill_at_any_moment_leaves_what_was_saved(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every rename and removal of a save, of the first, of another, and of one after a damage."""
    import os
    import shutil

    for prepare, expected in (([], None), ([2, 4], 4), ([2, 4, "damage"], 2)):
        for moment in itertools.count(1):
            for path in stage.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            stage.start()
            for what in prepare:
                stage.save(what) if isinstance(what, int) else tear(stage.file(NEWEST))
            assert stage.restarted() == expected
            seen = itertools.count(1)

            def dying(function: Callable[..., Any], seen: Any = seen, moment: int = moment) -> Callable[..., Any]:
                def call(*args: Any, **kwargs: Any) -> Any:
                    if next(seen) == moment:
                        raise Killed
                    return function(*args, **kwargs)

                return call

            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", dying(os.replace))
                patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
                try:
                    stage.save(6)
                except Killed:
                    killed = True
                else:
                    killed = False
            assert stage.restarted() in ((expected, 6) if killed else (6,))
            stage.save(8)
            assert stage.restarted() == 8
            if not killed:
                assert moment > 1
                break
