"""rollouts.sqlite turned into Parquet, to be read by anything and kept for long."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ponder.errors import UsageError
from ponder.store.files import disk_errors, make_folder, sync_folder
from ponder.store.rollouts import RolloutRow, RolloutStore

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_PART = 50_000


def archive_rollouts(store: RolloutStore, folder: Path, rows_per_part: int = ROWS_PER_PART) -> list[Path]:
    """Write every rollout of a run to `folder`/rollouts-00000.parquet and on, zstd-compressed; returns the parts.

    A part is written under a temporary name and renamed, so a reader of the folder never meets a torn one. The
    columns are those of `RolloutRow`; `rewards` and `reference` are JSON texts, since their keys differ by stage.
    Raises `UsageError` when there are no rollouts, `BrokenInputError` when the disk refuses.
    """
    import pyarrow.parquet

    make_folder(folder)
    parts: list[Path] = []
    rows = store.iter_rollouts(tokens=True)
    while chunk := list(islice(rows, rows_per_part)):
        part = folder / f"rollouts-{len(parts):05d}.parquet"
        temporary = part.with_suffix(".parquet.tmp")
        with disk_errors(part):
            pyarrow.parquet.write_table(_table(chunk), temporary, compression="zstd")
            os.replace(temporary, part)
            sync_folder(folder)
        parts.append(part)
    if not parts:
        raise UsageError(f"{store.path} holds no rollouts to archive: run a `reinforce` or `evaluate` stage first")
    return parts


def _table(rows: list[RolloutRow]) -> pyarrow.Table:
    import pyarrow

    columns = {field.name: [getattr(row, field.name) for row in rows] for field in fields(RolloutRow)}
    for name in ("rewards", "reference"):
        columns[name] = [json.dumps(value, ensure_ascii=False) for value in columns[name]]
    # said outright where a part may hold nothing but nulls or empty lists, so that all parts have one schema
    arrays: dict[str, Any] = {
        **columns,
        "answer": pyarrow.array(columns["answer"], pyarrow.string()),
        "advantage": pyarrow.array(columns["advantage"], pyarrow.float64()),
        "version": pyarrow.array(columns["version"], pyarrow.int64()),
        "versions": pyarrow.array(columns["versions"], pyarrow.list_(pyarrow.list_(pyarrow.int64()))),
        "token_ids": pyarrow.array(columns["token_ids"], pyarrow.list_(pyarrow.uint32())),
    }
    for name in ("logprobs", "entropies", "ratios"):
        arrays[name] = pyarrow.array(columns[name], pyarrow.list_(pyarrow.float32()))
    return pyarrow.table(arrays)
