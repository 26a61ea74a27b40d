"""What DeepSeek published of R1, its stages and its students, each row with its source (published.yaml).

Shown beside a run's own tables, never among them: benchmarks, prompts and samples differ.
"""

from __future__ import annotations

import functools
import importlib.resources
from dataclasses import dataclass

import yaml

NOTICE = "Published, not measured here"
"""What stands above the tables wherever they are shown."""


@dataclass(frozen=True)
class PublishedRow:
    """Figures of one model or benchmark, in the order of the table's columns; None was not given."""

    name: str
    values: tuple[float | None, ...]
    source: str
    """[v1], [v2] (of arXiv 2501.12948), [Nat] or [README], with the number of the table."""


@dataclass(frozen=True)
class PublishedTable:
    """One table of the paper. Percentages, but for Codeforces ratings."""

    name: str
    title: str
    rows_are: str
    """`model` or `benchmark`; the columns are the other."""
    columns: tuple[str, ...]
    rows: tuple[PublishedRow, ...]

    def value(self, row: str, column: str) -> float | None:
        """One figure by the names of its row and column. Raises `KeyError` for names that are not there."""
        values = {entry.name: entry.values for entry in self.rows}[row]
        return dict(zip(self.columns, values, strict=True))[column]


@functools.cache
def published_tables() -> tuple[PublishedTable, ...]:
    """All tables, in the paper's order."""
    text = importlib.resources.files("ponder.evaluation").joinpath("published.yaml").read_text(encoding="utf-8")
    return tuple(
        PublishedTable(
            table["name"],
            table["title"],
            table["rows_are"],
            tuple(table["columns"]),
            tuple(PublishedRow(row["name"], tuple(row["values"]), row["source"]) for row in table["rows"]),
        )
        for table in yaml.safe_load(text)
    )
