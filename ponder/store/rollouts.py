"""rollouts.sqlite: every rollout of every step, in one SQLite file (WAL) that opens while the run goes on.

Three tables share a rollout's id: `rollouts` (the small columns), `texts` and `tokens` (zlib blobs), so that a run
that outgrows its size cap can let go of the heavy parts of its oldest steps and keep every row.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ponder.errors import BrokenInputError
from ponder.recipe import StoreSettings
from ponder.store.files import disk_errors

_CAP_TARGET = 0.9  # prune this far below the cap, so that not every step has to prune again

_DROPPED_IN_TURN = (("tokens", "%"), ("texts", "train"), ("texts", "test"), ("rollouts", "train"), ("rollouts", "test"))
"""(table, split) beyond the cap: all that can go of one goes, oldest steps first, before anything of the next."""

_LOG_BYTES = 16 << 20
"""The write-ahead log is cut to this size when it has been folded into the file; a large step makes it longer."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS rollouts (
    id INTEGER PRIMARY KEY, stage TEXT NOT NULL, step INTEGER NOT NULL, split TEXT NOT NULL, model TEXT NOT NULL,
    problem_id TEXT NOT NULL, task TEXT NOT NULL, language TEXT NOT NULL, difficulty INTEGER NOT NULL,
    sample INTEGER NOT NULL, reference TEXT NOT NULL, rewards TEXT NOT NULL, advantage REAL, correct INTEGER NOT NULL,
    length INTEGER NOT NULL, finish_reason TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS rollouts_by_step ON rollouts (stage, step);
CREATE INDEX IF NOT EXISTS rollouts_by_problem ON rollouts (problem_id, stage);
CREATE TABLE IF NOT EXISTS texts (
    id INTEGER PRIMARY KEY REFERENCES rollouts (id) ON DELETE CASCADE,
    prompt TEXT NOT NULL, text TEXT NOT NULL, thinking TEXT NOT NULL, answer TEXT
);
CREATE TABLE IF NOT EXISTS tokens (
    id INTEGER PRIMARY KEY REFERENCES rollouts (id) ON DELETE CASCADE, ids BLOB NOT NULL, logprobs BLOB NOT NULL
);
"""
_LATER_COLUMNS = {
    "rollouts": {"version": "INTEGER"},
    "tokens": {"entropies": "BLOB", "ratios": "BLOB", "versions": "TEXT"},
}
"""By table: what files of earlier versions lack, and a writer adds."""

_SMALL = ["stage", "step", "split", "model", "problem_id", "task", "language", "difficulty", "sample", "reference"]
_SMALL += ["rewards", "advantage", "correct", "length", "finish_reason", "version"]
_TEXTS = ["prompt", "text", "thinking", "answer"]
_TOKENS = ["ids", "logprobs", "entropies", "ratios", "versions"]


@dataclass(frozen=True)
class RolloutRow:
    """One rollout as it is kept: what was asked, what was sampled, what it earned.

    `stage` and `step` are filled in by the store. `prompt` is the whole text the model saw, `text` the whole
    completion; `thinking` and `answer` are what the one parser made of it (`answer` None: unfinished). `length` is
    in tokens. What there is one of a token (`token_ids` to `ratios`) is empty where it was not asked for, is not known,
    or was dropped to keep the file below its cap; `text_dropped` says the same of the texts. Without `token_ids` none
    of it is kept.
    """

    problem_id: str
    task: str
    prompt: str
    sample: int
    text: str
    thinking: str
    answer: str | None
    rewards: dict[str, float]
    correct: bool
    finish_reason: str
    length: int
    advantage: float | None = None
    language: str = "en"
    difficulty: int = 1
    reference: Any = None
    split: Literal["train", "test"] = "train"
    model: str = ""
    """Whose rollout it is where a stage samples from several models; empty for the stage's own policy."""
    version: int | None = None
    """Of the weights that sampled the first token, its oldest; None where that is not known."""
    token_ids: Sequence[int] = field(default=(), repr=False)
    logprobs: Sequence[float] = field(default=(), repr=False)
    """Of the policy that sampled them, in nats."""
    entropies: Sequence[float] = field(default=(), repr=False)
    """Of the distributions they were drawn from, in nats."""
    ratios: Sequence[float] = field(default=(), repr=False)
    """exp(log-probability of the trainer at the update - that of the sampler); of trained rollouts."""
    versions: Sequence[tuple[int, int]] = ()
    """(first token, policy version) of each stretch, as in `Completion.versions`; kept where there are several."""
    stage: str = ""
    step: int = -1
    text_dropped: bool = False


class RolloutWriter:
    """Writes the rollouts of one stage. One writer at a time; readers may come and go."""

    def __init__(
        self,
        path: Path,
        stage: str,
        cap_mib: float = StoreSettings().rollouts_mib,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`warn` is told, once each, what is dropped when the file outgrows `cap_mib`. No file is made before `add`."""
        self.path = path
        self.stage = stage
        self._cap = cap_mib * 2**20
        self._warn = warn
        self._warned: set[str] = set()
        self._open_connection: sqlite3.Connection | None = None

    def add(self, step: int, rows: Iterable[RolloutRow]) -> None:
        """Insert the rollouts of a step in one transaction: all of them are kept, or (on an error) none.

        When this returns the rows are on disk; neither `kill -9` nor a power cut loses them.
        """
        with disk_errors(self.path), self._connection as db:
            for row in rows:
                self._insert(db, step, row)
        self._prune(step)

    def rewind(self, step: int) -> None:
        """Drop this stage's rollouts after `step`, so that a resume writes them anew; -1 drops all."""
        if not self.path.exists():
            return
        with disk_errors(self.path), self._connection as db:
            db.execute("DELETE FROM rollouts WHERE stage = ? AND step > ?", (self.stage, step))

    def rename_stage(self, new_name: str) -> None:
        """Give all rollouts of this stage another stage name."""
        if not self.path.exists():
            return
        with disk_errors(self.path), self._connection as db:
            db.execute("UPDATE rollouts SET stage = ? WHERE stage = ?", (new_name, self.stage))

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it; the next call opens it again."""
        if self._open_connection is not None:
            self._open_connection.close()
            self._open_connection = None

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._open_connection is None:
            with disk_errors(self.path, "open"):
                self._open_connection = _connect_writer(self.path)
        return self._open_connection

    def _insert(self, db: sqlite3.Connection, step: int, row: RolloutRow) -> None:
        small = (
            self.stage, step, row.split, row.model, row.problem_id, row.task, row.language, row.difficulty, row.sample,
            json.dumps(row.reference, ensure_ascii=False), json.dumps(row.rewards, ensure_ascii=False),
            row.advantage, int(row.correct), row.length, row.finish_reason, row.version,
        )  # fmt: skip
        key = db.execute(f"INSERT INTO rollouts ({', '.join(_SMALL)}) VALUES ({_marks(_SMALL)})", small).lastrowid
        db.execute("INSERT INTO texts VALUES (?, ?, ?, ?, ?)", (key, row.prompt, row.text, row.thinking, row.answer))
        if len(row.token_ids):
            entropies, ratios = (_pack(x, "<f4") if len(x) else None for x in (row.entropies, row.ratios))
            versions = json.dumps(row.versions) if len(row.versions) > 1 else None
            tokens = (key, _pack(row.token_ids, "<u4"), _pack(row.logprobs, "<f4"), entropies, ratios, versions)
            db.execute(f"INSERT INTO tokens (id, {', '.join(_TOKENS)}) VALUES ({_marks(tokens)})", tokens)

    def _prune(self, current_step: int) -> None:
        """Below the cap again: token ids first, then texts, at last rows, of the oldest steps."""
        if self._used_bytes() <= self._cap:
            return
        for table, split in _DROPPED_IN_TURN:
            while self._used_bytes() > self._cap * _CAP_TARGET:
                oldest = self._oldest(table, split, current_step)
                if oldest is None:
                    break
                with disk_errors(self.path), self._connection as db:
                    db.execute(
                        f"DELETE FROM {table} WHERE id IN "
                        "(SELECT id FROM rollouts WHERE stage = ? AND step = ? AND split LIKE ?)",
                        (*oldest, split),
                    )
                self._warn_once(table)

    def _warn_once(self, table: str) -> None:
        """The first time that anything of a table is dropped."""
        if table not in self._warned:
            self._warned.add(table)
            what = {"tokens": "token ids", "texts": "texts", "rollouts": "rows"}[table]
            self._warn(
                f"{self.path.name} reached its cap of {self._cap / 2**20:g} MiB (store.rollouts_mib): from here on the "
                f"oldest steps lose their {what}"
            )

    def _oldest(self, table: str, split: str, current_step: int) -> tuple[str, int] | None:
        """(stage, step) written longest ago that still has rows in `table`; never the step just written."""
        found = self._connection.execute(
            f"SELECT row.stage, row.step FROM {table} AS held JOIN rollouts AS row USING (id) "
            "WHERE row.split LIKE ? AND NOT (row.stage = ? AND row.step = ?) ORDER BY held.id LIMIT 1",
            (split, self.stage, current_step),
        ).fetchone()
        return None if found is None else (str(found[0]), int(found[1]))

    def _used_bytes(self) -> int:
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])


class RolloutStore:
    """Reads a run's rollouts, also while the run writes them. Every method is one query; nothing is kept open.

    A missing file holds no rollouts. Raises `BrokenInputError` when the file is no such database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def stages(self) -> list[str]:
        """Names of the stages with rollouts, without those that were set aside (a dot in the name)."""
        return [row[0] for row in self._query("SELECT DISTINCT stage FROM rollouts WHERE stage NOT LIKE '%.%'")]

    def steps(self, stage: str, split: str = "train") -> list[int]:
        """Steps of a stage with rollouts, ascending."""
        sql = "SELECT DISTINCT step FROM rollouts WHERE stage = ? AND split = ? ORDER BY step"
        return [int(row[0]) for row in self._query(sql, (stage, split))]

    def count(self, stage: str | None = None) -> int:
        """Number of rollouts of a stage, or of the whole file."""
        sql = "SELECT COUNT(*) FROM rollouts WHERE ? IS NULL OR stage = ?"
        return next((int(row[0]) for row in self._query(sql, (stage, stage))), 0)

    def get(self, number: int) -> RolloutRow | None:
        """The rollout of that id with its tokens; None where there is none."""
        return next(self._rollouts("WHERE rollouts.id = ?", (number,), tokens=True), None)

    def iter_rollouts(
        self,
        stage: str | None = None,
        step: int | None = None,
        split: str | None = None,
        problem_id: str | None = None,
        tokens: bool = False,
    ) -> Iterator[RolloutRow]:
        """Rollouts in the order in which they were written; None does not filter, `tokens` also loads the ids."""
        wanted = {"stage": stage, "step": step, "split": split, "problem_id": problem_id}
        filters = {name: value for name, value in wanted.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in filters) or "1"
        yield from self._rollouts(f"WHERE {where} ORDER BY rollouts.id", tuple(filters.values()), tokens)

    def sample_problem_history(
        self, stage: str, num_problems: int = 8, split: str = "test", samples: int = 1
    ) -> dict[str, list[RolloutRow]]:
        """The same problems through a stage: for each, its first `samples` rollouts at every step, by step.

        Problems seen at the most steps come first, ties by id, so that the choice never depends on the outcome.
        """
        chosen = self._query(
            "SELECT problem_id FROM rollouts WHERE stage = ? AND split = ? GROUP BY problem_id "
            "ORDER BY COUNT(DISTINCT step) DESC, problem_id LIMIT ?",
            (stage, split, num_problems),
        )
        where = "WHERE stage = ? AND split = ? AND problem_id = ? AND sample < ? ORDER BY step, sample"
        return {
            problem: list(self._rollouts(where, (stage, split, problem, samples), tokens=False))
            for (problem,) in chosen
        }

    def search(
        self, text: str, stage: str | None = None, correct: bool | None = None, limit: int = 100
    ) -> list[RolloutRow]:
        """Rollouts whose completion contains `text` (ASCII letters match in either case), newest first."""
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        where = (
            "WHERE texts.text LIKE ? ESCAPE '\\' AND (? IS NULL OR stage = ?) AND (? IS NULL OR correct = ?) "
            "ORDER BY rollouts.id DESC LIMIT ?"
        )
        return list(self._rollouts(where, (pattern, stage, stage, correct, correct, limit), tokens=False))

    def _rollouts(self, where: str, values: Sequence[Any], tokens: bool) -> Iterator[RolloutRow]:
        columns = [*_SMALL, *_TEXTS, *(_TOKENS if tokens else [])]
        join = "LEFT JOIN tokens USING (id)" if tokens else ""
        sql = f"SELECT {', '.join(columns)} FROM rollouts LEFT JOIN texts USING (id) {join} {where}"
        for row in self._query(sql, values):
            yield _read_row(dict(zip(columns, row, strict=True)))

    def _query(self, sql: str, values: Sequence[Any] = ()) -> Iterator[tuple[Any, ...]]:
        if not self.path.exists():
            return
        with disk_errors(self.path, "read"), closing(connect_reader(self.path)) as db:
            yield from db.execute(sql, values)


def _connect_writer(path: Path) -> sqlite3.Connection:
    if not path.exists():
        # a reader that comes at this moment finds the tables, or no file
        unborn = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        with closing(sqlite3.connect(unborn)) as db:
            db.executescript(_SCHEMA)
        unborn.replace(path)
    db = sqlite3.connect(path, timeout=30.0)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")  # one sync a step: a power cut loses nothing that was acknowledged
    db.execute("PRAGMA foreign_keys = ON")
    db.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
    db.executescript(_SCHEMA)
    for table in _LATER_COLUMNS:
        for name, kind in _missing_columns(db, table):
            db.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, for queries of one's own; what a file of an earlier version lacks reads as null.

    Raises `BrokenInputError` where there is no file.
    """
    # a WAL database wants to write its index beside the file; on read-only storage nobody writes, so it may be skipped
    immutable = "" if os.access(path.parent, os.W_OK) else "&immutable=1"
    try:
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{immutable}", uri=True, timeout=30.0)
    except sqlite3.OperationalError as error:
        raise BrokenInputError(f"cannot open {path}: {error}") from error
    try:
        for table in _LATER_COLUMNS:
            if missing := "".join(f", NULL AS {name}" for name, _ in _missing_columns(db, table)):
                # a temporary view hides the table of its name
                db.execute(f"CREATE TEMP VIEW {table} AS SELECT *{missing} FROM main.{table}")
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def _missing_columns(db: sqlite3.Connection, table: str) -> list[tuple[str, str]]:
    present = {name for (name,) in db.execute("SELECT name FROM pragma_table_info(?)", (table,))}
    return [(name, kind) for name, kind in _LATER_COLUMNS[table].items() if name not in present]


def _read_row(row: dict[str, Any]) -> RolloutRow:
    row["reference"] = json.loads(row["reference"])
    row["rewards"] = json.loads(row["rewards"])
    row["correct"] = bool(row["correct"])
    row["text_dropped"] = row["text"] is None
    if row["text_dropped"]:
        row |= {"prompt": "", "text": "", "thinking": "", "answer": None}
    row["token_ids"] = _unpack(row.pop("ids", None), "<u4")
    row |= {name: _unpack(row.get(name), "<f4") for name in ("logprobs", "entropies", "ratios")}
    row["versions"] = [tuple(stretch) for stretch in json.loads(row.get("versions") or "[]")]
    return RolloutRow(**row)


def _unpack(blob: bytes | None, dtype: str) -> list[Any]:
    return [] if blob is None else list(np.frombuffer(zlib.decompress(blob), dtype).tolist())


def _pack(values: Sequence[float], dtype: str) -> bytes:
    return zlib.compress(np.asarray(values, dtype=dtype).tobytes(), level=1)


def _marks(columns: Sequence[Any]) -> str:
    return ", ".join("?" * len(columns))
