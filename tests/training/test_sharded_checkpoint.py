"""Checkpoints of many ranks: equal bit for bit on another number of them, and one clear error when a part is broken."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rank_pool import RankPool
from test_ranks import make_trainer, settings
from test_update_step import make_decoder, make_trajectories
from torch import Tensor
from torch.distributed.tensor import DTensor

from ponder.errors import BrokenInputError, DamagedCheckpointError
from ponder.recipe import LoraSettings, OptimizerSettings
from ponder.training.execution import Ranks
from ponder.training.rank import RankTrainer
from ponder.training.sharded_checkpoint import check_parts, read_parts, remove_others, write_part
from ponder.training.sharding import Shard, Sharding, row_range

OF = settings({"kl": {"beta": 0.1}})
LORA = settings(lora=LoraSettings(rank=2), optimizer=OptimizerSettings(lr=1e-2))
MUON = settings(optimizer=OptimizerSettings(name="muon", lr=1e-2))


@given(rows=st.integers(1, 40), size=st.integers(1, 9))
def test_every_row_belongs_to_one_rank(rows: int, size: int) -> None:
    ranges = [row_range(rows, rank, size) for rank in range(size)]
    assert [row for first, last in ranges for row in range(first, last)] == list(range(rows))
    sizes = [len(x) for x in torch.zeros(rows).chunk(size)]  # as FSDP2 cuts
    assert [last - first for first, last in ranges if last > first] == sizes


# --- bit for bit ------------------------------------------------------------------------------------------------------


def everything(trainer: RankTrainer) -> dict[str, Any]:
    """All that must survive, whole: weights, moments, reference and counts."""

    def whole(tensor: Tensor) -> Tensor:
        return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()

    found: dict[str, Any] = {f"policy {n}": whole(p.detach()) for n, p in trainer.model.named_parameters()}
    if trainer.reference is not None:
        found |= {f"reference {n}": whole(p) for n, p in trainer.reference.named_parameters()}
    for name, state in trainer.optimizer.moments().items():
        found |= {f"{name} {key}": whole(value) for key, value in state.items()}
    return found | {"version": trainer.version, "lr": trainer.lr, "limit": trainer.execution.limit}


def train_and_save(rank: int, size: int, sharding: Sharding, of: Any, folder: Path) -> tuple[Any, ...]:
    trainer = make_trainer(rank, size, sharding, of, reference=of is not LORA)
    trajectories = make_trajectories(make_decoder(double=False))
    trainer.policy_updates([trajectories])
    if trainer.reference is not None:
        trainer.refresh_reference()
    trainer.logprobs(trajectories, "policy")  # leaves whole weights behind, which must not be what is saved
    trainer.policy_updates([trajectories, trajectories])
    trainer.execution.limit = 30
    state = trainer.save_state(folder, "trainer-3")
    found = everything(trainer)
    trainer.policy_updates([trajectories])
    return state, found, dict(trainer.weights())


def load_and_train(rank: int, size: int, sharding: Sharding, of: Any, folder: Path, state: Any) -> tuple[Any, ...]:
    trainer = make_trainer(rank, size, sharding, of, reference=of is not LORA)
    trajectories = make_trajectories(make_decoder(double=False))
    trainer.policy_updates([trajectories])
    trainer.load_state(folder, state)
    found = everything(trainer)
    trainer.policy_updates([trajectories])
    return found, dict(trainer.weights())


@pytest.mark.parametrize(
    ("of", "before", "after"),
    [
        (OF, (2, "fsdp2"), (2, "fsdp2")),
        (OF, (2, "fsdp2"), (1, "fsdp2")),
        (OF, (1, "ddp"), (2, "fsdp2")),
        (OF, (2, "fsdp2"), (3, "fsdp2")),
        (OF, (3, "fsdp2"), (2, "ddp")),
        (LORA, (2, "fsdp2"), (3, "ddp")),
        (MUON, (2, "ddp"), (3, "fsdp2")),
    ],
    ids=["2 to 2", "2 to 1", "1 to 2", "2 to 3", "fsdp2 to ddp", "adapters", "muon"],
)
def test_another_number_of_ranks_goes_on_from_the_same(
    ranks: RankPool, tmp_path: Path, of: Any, before: tuple[int, Sharding], after: tuple[int, Sharding]
) -> None:
    saved = ranks.run(before[0], train_and_save, before[1], of, tmp_path)
    state, expected, end = saved[0]
    assert [s for s, *_ in saved] == [state] * before[0]
    assert {path.name for path in (tmp_path / "trainer-3").iterdir()} == {part["file"] for part in state["parts"]}
    loaded = ranks.run(after[0], load_and_train, after[1], of, tmp_path, state)
    for found, _ in loaded:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value, name
    assert expected["version"] == 2
    weights, went_on = (torch.cat([x[name].flatten() for name in end]) for x in (end, loaded[0][1]))
    if before == after:
        assert torch.equal(went_on, weights)
    else:  # a sum over other ranks rounds otherwise, and so, step by step, does all that follows
        assert float((went_on - weights).norm() / weights.norm()) < 1e-3


# --- what can be wrong ------------------------------------------------------------------------------------------------


def write_two(folder: Path) -> tuple[list[dict[str, str]], dict[str, Tensor]]:
    """A checkpoint of two ranks, written by one process."""
    tensors = {"a": torch.randn(5, 3), "b": torch.randn(1), "c": torch.arange(4, dtype=torch.bfloat16)}
    shards = {name: Shard(tensor, tuple(tensor.shape)) for name, tensor in tensors.items()}
    return [write_part(folder, shards, Ranks(rank, 2)) for rank in range(2)], tensors


def wanted(tensors: dict[str, Tensor]) -> dict[str, Shard]:
    return {name: Shard(torch.zeros_like(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}


def test_parts_are_plain_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    parts, tensors = write_two(tmp_path / "x")
    files = [load_file(tmp_path / "x" / part["file"]) for part in parts]
    assert torch.equal(torch.cat([files[0]["a"], files[1]["a"]]), tensors["a"])
    assert "b" not in files[1]
    shards = wanted(tensors)
    read_parts(tmp_path / "x", parts, shards)
    assert all(torch.equal(shards[name].local, tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("damage", ["missing", "torn", "one bit", "empty", "other rows", "escapes"])
def test_a_broken_part_gives_one_error(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "x"
    parts, tensors = write_two(folder)
    path = folder / parts[1]["file"]
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one bit":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other rows":
        parts = parts[:1]
    else:
        parts[1]["file"] = "../x/" + parts[1]["file"]
    named = folder if damage == "other rows" else folder / parts[1]["file"]
    with pytest.raises(DamagedCheckpointError, match=re.escape(f"{named} is ")):
        check_parts(folder, parts, Ranks())
        read_parts(folder, parts, wanted(tensors))


def test_reading_notices_what_checksums_cannot(tmp_path: Path) -> None:
    parts, tensors = write_two(tmp_path / "x")
    for change in ({"a": torch.zeros(5, 2)}, {"a": torch.zeros(5, 3).double()}, {"d": torch.zeros(2)}):
        with pytest.raises(DamagedCheckpointError, match=r"is damaged|is incomplete"):
            read_parts(tmp_path / "x", parts, wanted(tensors | change))
    (tmp_path / "x" / parts[0]["file"]).write_bytes(b"\xff" * 100)
    with pytest.raises(DamagedCheckpointError, match=f"{parts[0]['file']} is damaged"):
        read_parts(tmp_path / "x", parts, wanted(tensors))


def save_where_that_fails(rank: int, size: int, folder: Path) -> list[Any]:
    """Onto what a dead attempt left, where there can be no folder, and a part that is gone when it is read."""
    trainer = make_trainer(rank, size, "fsdp2", settings())
    seen: list[Any] = []
    state = trainer.save_state(folder, "trainer-3")
    seen.append(state["folder"])
    try:
        trainer.save_state(folder / "file", "trainer-4")
    except BrokenInputError as error:
        seen.append(str(error))
    trainer.load_state(folder, state)
    (folder / "trainer-3" / state["parts"][1]["file"]).unlink(missing_ok=True)
    try:
        trainer.load_state(folder, state)
    except DamagedCheckpointError as error:
        seen.append(str(error))
    return seen


def test_all_ranks_say_the_same_of_a_disk(ranks: RankPool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    left = tmp_path / "trainer-3"
    left.mkdir()
    (left / "part-00007-of-00009.safetensors").touch()
    found = ranks.run(2, save_where_that_fails, tmp_path)
    assert found[0] == found[1]
    name, refused, lost = found[0]
    assert name == "trainer-3"
    assert "cannot create the folder" in refused
    assert lost == f"{left}/part-00001-of-00002.safetensors is missing"
    assert {path.name for path in left.iterdir()} == {"part-00000-of-00002.safetensors"}


def test_only_checkpoints_are_removed(tmp_path: Path) -> None:
    for name in ("trainer-1", "trainer-2", "trainer-3"):
        write_two(tmp_path / name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").touch()
    remove_others(tmp_path, ["trainer-2", "trainer-3"])
    assert {path.name for path in tmp_path.iterdir()} == {"trainer-2", "trainer-3", "mine", "file"}
