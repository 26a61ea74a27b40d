"""Data sets on disk: a folder with Parquet rows and a card that says where they come from.

    stages/STAGE/data/examples.parquet   rows, in order (or preferences.parquet, labelled.parquet)
    stages/STAGE/data/card.json          counts: what was asked for, kept, dropped, and why
    stages/STAGE/data/README.md          the same for a person

What an example looks like does not depend on the model that will read it: prompt, thinking and answer stand apart, and
`fine_tune` renders them with its own template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from ponder.errors import BrokenInputError
from ponder.store.files import atomic_write, atomic_write_json, disk_errors, make_folder, read_json, sync_folder


@dataclass(frozen=True)
class Example:
    """One thing asked and how it was answered."""

    id: str
    """The same for the same problem, sample and source."""
    source: str
    """The stage, file or generator that it comes from."""
    domain: str
    language: str
    """Of the prompt: a code such as `en` or `zh`."""
    prompt: str
    """What the user asked, before any template: the last user turn."""
    thinking: str
    """Empty where the answer needs none."""
    answer: str
    """What the user reads."""
    task: str = ""
    problem_id: str = ""
    reference: Any = None
    """What the task's verifier needs; None where there is no rule."""
    history: tuple[Mapping[str, str], ...] = ()
    """Earlier turns, each {role, content}, a system turn among them: only a `chat` template can render them."""


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to one prompt, the first being preferred."""

    id: str
    source: str
    language: str
    prompt: str
    chosen: str
    """A whole reply, with its thinking where it has some."""
    rejected: str
    margin: float = 1.0
    """How clear the preference is, as the judges' averaged difference or 1."""


@dataclass(frozen=True)
class LabelledReply:
    """One reply and whether it is safe."""

    id: str
    source: str
    language: str
    prompt: str
    reply: str
    """A whole reply, with its thinking where it has some."""
    safe: bool


Row = TypeVar("Row", Example, PreferencePair, LabelledReply)

_FILES: dict[type, str] = {
    Example: "examples.parquet",
    PreferencePair: "preferences.parquet",
    LabelledReply: "labelled.parquet",
}
_JSON = ("reference", "history")  # of any shape, so kept as JSON text


def write_rows(folder: Path, rows: Sequence[Row], kind: type[Row], card: Mapping[str, Any]) -> None:
    """Write rows and card. The rows come first: a folder with a card is whole.

    Raises `BrokenInputError` when the disk refuses.
    """
    import pyarrow
    import pyarrow.parquet

    make_folder(folder)
    path = folder / _FILES[kind]
    columns = {
        field.name: [
            json.dumps(value, ensure_ascii=False) if field.name in _JSON else value
            for value in (getattr(row, field.name) for row in rows)
        ]
        for field in fields(kind)
    }
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with disk_errors(path):
        try:
            pyarrow.parquet.write_table(pyarrow.table(columns), temporary, compression="zstd")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(folder)
    atomic_write(folder / "README.md", _readable(card))
    atomic_write_json(folder / "card.json", dict(card))


def has_rows(folder: Path, kind: type[Row]) -> bool:
    """Whether a data set holds rows of that kind."""
    return (folder / _FILES[kind]).is_file()


def read_rows(folder: Path, kind: type[Row]) -> list[Row]:
    """All rows of that kind, in order. Raises `BrokenInputError` when they are missing or damaged."""
    import pyarrow
    import pyarrow.parquet

    path = folder / _FILES[kind]
    try:
        table = pyarrow.parquet.read_table(path)
    except OSError as error:
        raise BrokenInputError(f"cannot read {path}: {error.strerror or error}") from error
    except pyarrow.ArrowException as error:
        raise BrokenInputError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error
    missing = {field.name for field in fields(kind)} - set(table.column_names)
    if missing:
        raise BrokenInputError(f"{path} has no column {sorted(missing)[0]!r}: it was not written by Ponder")
    return [kind(**_parsed(row)) for row in table.to_pylist()]


def read_card(folder: Path) -> dict[str, Any]:
    """The card of a data set. Raises `BrokenInputError` when it is missing or no JSON."""
    card: dict[str, Any] = read_json(folder / "card.json")
    return card


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    parsed = {name: json.loads(value) if name in _JSON else value for name, value in row.items()}
    if "history" in parsed:
        parsed["history"] = tuple(parsed["history"])
    return parsed


def _readable(card: Mapping[str, Any]) -> str:
    """The card as Markdown: a heading a block, a line an entry."""
    lines = ["# Data card", ""]
    for name, value in card.items():
        if isinstance(value, Mapping):
            lines += ["", f"## {name}", "", *(f"- {key}: {entry}" for key, entry in value.items())]
        else:
            lines += [f"- {name}: {value}"]
    return "\n".join(lines).rstrip() + "\n"
