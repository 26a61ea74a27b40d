"""A checkpoint that many ranks write together, each its own part, and any other number of ranks reads.

A part is one safetensors file with some rows of every tensor, so nothing is ever unpickled (PyTorch's distributed
checkpoints pickle their metadata); its header says which rows of how large a tensor they are. A reader takes the rows
that it needs from whichever parts hold them. The caller keeps the list of parts with their checksums, in a file of its
own that is replaced at once: a checkpoint counts only when it stands there (`ponder.training.checkpoint`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ponder.errors import BrokenInputError, DamagedCheckpointError
from ponder.store.files import disk_errors, make_folder, sync_folder
from ponder.training.execution import Ranks
from ponder.training.sharding import Shard
from ponder.training.state_file import reading

_PARTS = "part-*-of-*.safetensors"
_DIGEST_BYTES = 16


def write_part(folder: Path, shards: Mapping[str, Shard], ranks: Ranks) -> dict[str, str]:
    """Write this rank's rows into `folder`; returns the part's entry for the list: `file` and `digest`.

    Raises `BrokenInputError` when the disk refuses.
    """
    tensors: dict[str, Tensor] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, shard in shards.items():
        own, first = shard.own(ranks)
        rows[name] = {"first": first, "shape": shard.shape}
        if len(own):
            tensors[name] = own.cpu().contiguous()
    path = folder / f"part-{ranks.rank:05}-of-{ranks.size:05}.safetensors"
    make_folder(folder)
    with disk_errors(path):
        try:
            save_file(tensors, path, metadata={"rows": json.dumps(rows)})
        except SafetensorError as error:  # that is how the library says that the disk refused
            raise BrokenInputError(f"cannot write {path}: {error}; free space or choose another --run") from error
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        digest = _digest(path)
        sync_folder(folder)
    return {"file": path.name, "digest": digest}


def read_parts(folder: Path, parts: Sequence[Mapping[str, str]], wanted: Mapping[str, Shard]) -> None:
    """Fill the `wanted` shards from the parts in `folder`. Raises `DamagedCheckpointError` when they lack rows."""
    missing = {name: len(shard.local) for name, shard in wanted.items()}
    for part in parts:
        path = folder / part["file"]
        try:
            with reading(path), safe_open(path, framework="pt") as file:
                rows = json.loads((file.metadata() or {})["rows"])
                for name in set(file.keys()) & wanted.keys():
                    missing[name] -= _copy_rows(file.get_slice(name), rows[name], wanted[name])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedCheckpointError(f"{path} is damaged") from error
    if any(missing.values()):
        raise DamagedCheckpointError(f"{folder} is incomplete")


def _copy_rows(source: Any, place: Mapping[str, Any], wanted: Shard) -> int:
    """Copy what a part and a shard have in common; returns how many rows that is."""
    if tuple(place["shape"]) != wanted.shape:
        raise ValueError(f"shape {place['shape']} where {wanted.shape} is expected")
    first = place["first"]
    start = max(first, wanted.first)
    end = min(first + source.get_shape()[0], wanted.first + len(wanted.local))
    if start >= end:
        return 0
    found: Tensor = source[start - first : end - first]
    if found.dtype != wanted.local.dtype:
        raise ValueError(f"{found.dtype} where {wanted.local.dtype} is expected")
    wanted.local[start - wanted.first : end - wanted.first].copy_(found)
    return end - start


def check_parts(folder: Path, parts: Sequence[Mapping[str, str]], ranks: Ranks) -> None:
    """Compare checksums; each rank takes its share of the parts. Raises `DamagedCheckpointError` for a broken one."""
    for part in parts[ranks.rank :: ranks.size]:
        path = folder / part["file"]
        with reading(path):
            if Path(part["file"]).name != part["file"] or not path.is_file():
                raise DamagedCheckpointError(f"{path} is missing")
            if _digest(path) != part["digest"]:
                raise DamagedCheckpointError(f"{path} is damaged")


def remove_others(folder: Path, keep: Sequence[str]) -> None:
    """Remove the checkpoints in `folder` that are not called one of `keep`, and nothing but checkpoints."""
    for other in folder.iterdir() if folder.is_dir() else ():
        if other.is_dir() and other.name not in keep and any(other.glob(_PARTS)):
            shutil.rmtree(other, ignore_errors=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).hexdigest()


_MOMENTS = "moments."


def state_shards(states: Mapping[str, Mapping[str, Tensor]], ranks: Ranks) -> tuple[dict[str, Shard], dict[str, float]]:
    """An optimizer's state, by parameter and key, as shards and as plain numbers (the count of steps)."""
    shards: dict[str, Shard] = {}
    numbers: dict[str, float] = {}
    for parameter, state in states.items():
        for key, value in state.items():
            name = f"{_MOMENTS}{parameter}.{key}"
            if value.ndim == 0:
                numbers[name] = float(value)
            else:
                shards[name] = Shard.of(value, ranks)
    return shards, numbers


def empty_state(
    parameters: Mapping[str, Tensor], names: Sequence[str], numbers: Mapping[str, float]
) -> dict[str, dict[str, Tensor]]:
    """The state that `state_shards` tells of: its numbers, and zeros where its shards belong. Raises
    `BrokenInputError` for a parameter that is not here."""
    states: dict[str, dict[str, Tensor]] = {}
    for name in (*names, *numbers):
        parameter, _, key = name.removeprefix(_MOMENTS).rpartition(".")
        if parameter not in parameters:
            raise BrokenInputError(f"the checkpoint is of another model: it has {parameter}; start again with --fresh")
        like = parameters[parameter]
        value = torch.tensor(numbers[name], device=like.device) if name in numbers else torch.zeros_like(like)
        states.setdefault(parameter, {})[key] = value
    return states
