"""evaluations.json: one row a model and benchmark, with all that is needed to read the number rightly.

A row holds at least `model` and `benchmark`; the rest (value, interval, k, temperature, top-p, max tokens, template
hash, engine, seed, where the samples lie) is written as given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ponder.errors import BrokenInputError
from ponder.store.files import atomic_write_json, read_json

Row = dict[str, Any]

_KEY = ("stage", "step", "model", "benchmark", "metric")


class EvaluationsWriter:
    """Writes the rows of one stage; each `add` replaces the whole file at once."""

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage

    def add(self, rows: Iterable[Mapping[str, Any]], step: int | None = None) -> None:
        """Add rows, replacing those of the same stage, step, model, benchmark and metric.

        `step` tells evaluations during a stage apart from each other. Raises `ValueError` when a row lacks
        `model` or `benchmark`, `BrokenInputError` when the disk refuses.
        """
        new = [{"stage": self.stage, "step": step, **row} for row in rows]
        for row in new:
            if "model" not in row or "benchmark" not in row:
                raise ValueError(f"an evaluation row needs `model` and `benchmark`, got {sorted(row)}")
        replaced = {_key(row) for row in new}
        kept = [row for row in read_evaluations(self.path) if _key(row) not in replaced]
        atomic_write_json(self.path, kept + new)

    def rewind(self, step: int) -> None:
        """Drop this stage's rows after `step`, and those without a step; -1 drops all."""
        edit_evaluations(self.path, lambda row: row if row["stage"] != self.stage or _before(row, step) else None)


def read_evaluations(path: Path) -> list[Row]:
    """All rows; none when the file is missing. Raises `BrokenInputError` for a file that holds anything else."""
    rows = read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "stage" in row for row in rows):
        raise BrokenInputError(f"{path} is damaged: it must be a list of rows that name their stage")
    return rows


def edit_evaluations(path: Path, change: Callable[[Row], Row | None]) -> None:
    """Pass every row through `change` (None drops it) and replace the file at once."""
    old = read_evaluations(path)
    new = [kept for kept in map(change, (dict(row) for row in old)) if kept is not None]
    if new != old:
        atomic_write_json(path, new)


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _KEY)


def _before(row: Row, step: int) -> bool:
    return row.get("step") is not None and int(row["step"]) <= step
