"""What the page Rollouts reads: filtered pages of rollouts, one rollout with its tokens, one problem across a run.

Pages are cut by key (the id of the last row), never by offset, so that the thousandth costs what the first does. No
index is added to a run's database and nothing is kept open: each query is short, and one that takes too long is ended.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel

from ponder.evaluation.reflection import TurnRound, find_reflections, turn_round
from ponder.run import RunFolder
from ponder.serving.errors import ApiError
from ponder.store.files import disk_errors
from ponder.store.rollouts import RolloutRow, connect_reader
from ponder.ui.data import Catalog, json_response
from ponder.ui.judging import Judge
from ponder.ui.tokens import token_pieces
from ponder.verifiers import verifier_names

PAGE = 40
"""Rollouts of a page."""

QUERY_S = 15.0
"""Longest query. A search in the texts of a large run may take long; the answer then says so."""

COUNT_S = 1.0
"""Longest count of what a filter finds."""

TURNS_S = 1.5
"""One request looks so long for rollouts that turn round, then hands over what it has found."""

STEPS_BETWEEN_LOOKS = 20_000
"""Of SQLite's machine: so often a query looks at the clock, which is every millisecond or so."""

_FACET_STEPS = 6
_PREVIEW = 280  # characters of a rollout in a list
_BEFORE_TURN = 36  # of them before the word at which it turns

_SMALL = ["id", "stage", "step", "split", "model", "problem_id", "task", "language", "difficulty", "sample"]
_SMALL += ["rewards", "advantage", "correct", "length", "finish_reason", "version"]

_OF_TOKENS = {"token_ids", "logprobs", "entropies", "ratios", "versions"}


@dataclass(frozen=True)
class Filter:
    """What a page is filtered by; None and empty do not filter."""

    stage: str = ""
    split: str = ""
    task: str = ""
    language: str = ""
    verdict: Literal["", "right", "wrong", "cut", "unanswered"] = ""
    """`cut`: ended by the length limit; `unanswered`: without an answer that the parser found."""
    step_from: int | None = None
    step_to: int | None = None
    version_from: int | None = None
    version_to: int | None = None
    """Of the policy that sampled the first token."""
    length_from: int | None = None
    length_to: int | None = None
    reward: str = ""
    """Name of the reward that the two bounds hold for."""
    reward_from: float | None = None
    reward_to: float | None = None
    text: str = ""
    """Searched for in prompt and completion; ASCII letters match in either case."""
    problem: str = ""
    turns: Literal["", "any", "correction", "new course"] = ""
    """Only rollouts that turn round, in this way."""

    @property
    def in_texts(self) -> bool:
        return bool(self.text) or self.verdict == "unanswered"

    @property
    def has_few_steps(self) -> bool:
        return self.step_from is not None and self.step_to is not None and self.step_to - self.step_from < 10

    def where(self) -> tuple[str, list[Any]]:
        """The SQL condition and its values."""
        parts: list[str] = []
        values: list[Any] = []

        def add(condition: str, *more: Any) -> None:
            parts.append(condition)
            values.extend(more)

        # rows are wanted in the order of their ids, so the index by stage and step is of use where steps are few; the
        # plus keeps SQLite from taking it otherwise, and from sorting a whole stage for one page
        column = "stage" if self.has_few_steps else "+stage"
        # stages that were set aside have a dot in their name
        add(f"{column} = ?", self.stage) if self.stage else add("stage NOT LIKE '%.%'")
        for column in ("split", "task", "language"):
            if getattr(self, column):
                add(f"{column} = ?", getattr(self, column))
        if self.problem:
            add("problem_id = ?", self.problem)
        for column in ("step", "version", "length"):
            for sign, bound in ((">=", getattr(self, f"{column}_from")), ("<=", getattr(self, f"{column}_to"))):
                if bound is not None:
                    add(f"{column} {sign} ?", bound)
        for sign, limit in ((">=", self.reward_from), ("<=", self.reward_to)):
            if self.reward and limit is not None:
                add(f"json_extract(rewards, ?) {sign} ?", f"$.{json.dumps(self.reward)}", limit)
        if self.verdict:
            add(_VERDICTS[self.verdict])
        if self.text:
            pattern = "%" + self.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            add("(texts.text LIKE ? ESCAPE '\\' OR texts.prompt LIKE ? ESCAPE '\\')", pattern, pattern)
        return " AND ".join(parts), values


_VERDICTS = {
    "right": "correct = 1",
    "wrong": "correct = 0",
    "cut": "finish_reason = 'length'",
    "unanswered": "texts.text IS NOT NULL AND texts.answer IS NULL",
}


class Rejudge(BaseModel):
    """The body of a request to judge again; an empty verifier is the task's own rule."""

    verifier: str = ""


def rollout_routes(catalog: Catalog) -> APIRouter:
    """The routes below /api/runs/NAME/rollouts."""
    routes = APIRouter(prefix="/api/runs/{name}", include_in_schema=False)
    judge = Judge()

    @routes.get("/rollouts")
    def list_rollouts(
        name: str, request: Request, wanted: Annotated[Filter, Depends()], before: int | None = None
    ) -> Response:
        browser = RolloutBrowser(catalog.open(name))
        page = browser.turns(wanted, before) if wanted.turns else browser.page(wanted, before)
        return json_response(request, page)

    @routes.get("/rollouts/count")
    def count_rollouts(name: str, request: Request, wanted: Annotated[Filter, Depends()]) -> Response:
        return json_response(request, {"count": RolloutBrowser(catalog.open(name)).count(wanted)})

    @routes.get("/rollouts/facets")
    def facets(name: str, request: Request) -> Response:
        found = RolloutBrowser(catalog.open(name)).facets()
        return json_response(request, {**found, "verifiers": verifier_names()})

    @routes.get("/rollouts/{number}")
    def show_rollout(name: str, number: int, request: Request) -> Response:
        return json_response(request, RolloutBrowser(catalog.open(name)).details(number))

    @routes.post("/rollouts/{number}/judge")
    def judge_again(name: str, number: int, body: Rejudge, request: Request) -> Response:
        row = RolloutBrowser(catalog.open(name)).row(number)
        return json_response(request, judge.verdict(row, body.verifier))

    @routes.get("/problems/{problem:path}")
    def show_problem(name: str, problem: str, request: Request) -> Response:
        return json_response(request, RolloutBrowser(catalog.open(name)).problem(problem))

    return routes


class RolloutBrowser:
    """Queries of one run's rollouts. A missing file holds none."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.path = run.rollouts_path

    def facets(self) -> dict[str, Any]:
        """What can be filtered by: a row for each stage, split, task and language that its steps hold.

        Stages and steps come from an index alone; tasks and languages from a few steps of each stage, since a look at
        every row would read a large file through.
        """
        stages = "SELECT DISTINCT stage FROM rollouts WHERE stage NOT LIKE '%.%' ORDER BY stage"
        latest = "SELECT rewards FROM rollouts ORDER BY id DESC LIMIT 200"
        with self._database() as db:
            groups = [group for (stage,) in db.execute(stages).fetchall() for group in _groups(db, stage)]
            rewards = sorted({name for (text,) in db.execute(latest) for name in json.loads(text)})
        return {"groups": groups, "rewards": rewards}

    def page(self, wanted: Filter, before: int | None) -> dict[str, Any]:
        """The next rows, the newest first. `next` is what `before` must be for the rows after them; None at the end."""
        rows = list(self._scan(wanted, before, PAGE + 1))
        return {"rows": rows[:PAGE], "next": rows[PAGE - 1]["id"] if len(rows) > PAGE else None}

    def count(self, wanted: Filter) -> int | None:
        """How many rollouts there are; None where counting takes too long."""
        where, values = wanted.where()
        join = "LEFT JOIN texts USING (id)" if wanted.in_texts else ""
        try:
            with self._database(COUNT_S) as db:
                found = db.execute(f"SELECT COUNT(*) FROM rollouts {join} WHERE {where}", values).fetchone()
        except TooLongError:
            return None
        return 0 if found is None else int(found[0])

    def turns(self, wanted: Filter, before: int | None) -> dict[str, Any]:
        """The next rollouts that turn round, the newest first: see `ponder.evaluation.reflection.turn_round`.

        As in `page`; `next` may be set although nothing was found in the time that a request has.
        """
        deadline = time.monotonic() + TURNS_S
        found: list[dict[str, Any]] = []
        for row in self._scan(replace(wanted, verdict="right"), before, limit=-1, preview=None):
            before = row["id"]
            turn = _turn(row)
            if turn is not None and wanted.turns in ("any", turn.kind):
                found.append({**row, **_around(turn)})
            if len(found) == PAGE or time.monotonic() > deadline:
                break
        else:
            before = None
        return {"rows": found, "next": before}

    def row(self, number: int) -> RolloutRow:
        """One rollout with its tokens. Raises `ApiError` 404."""
        row = self.run.rollouts().get(number)
        if row is None:
            raise ApiError(404, f"there is no rollout {number} in this run", "rollout_not_found", "number")
        return row

    def details(self, number: int) -> dict[str, Any]:
        """All that was stored of a rollout, its reflection words, how it turned round, and its tokens as text."""
        row = self.row(number)
        turn = turn_round(row)
        shown = asdict(row)
        return {
            "id": number,
            **{name: value for name, value in shown.items() if name not in _OF_TOKENS},
            "reflections": find_reflections(row.text),
            "turn": None if turn is None else {"start": turn.start, "end": turn.end, "kind": turn.kind},
            "tokens": asdict(token_pieces(self.run, row)),
        }

    def problem(self, problem_id: str) -> dict[str, Any]:
        """One problem's rollouts through the whole run, group by group, in the order in which they were written.

        Raises `ApiError` 404 when the run has none of it.
        """
        sql = (
            "SELECT id, stage, step, split, model, sample, correct, length, advantage, finish_reason FROM rollouts "
            "WHERE problem_id = ? AND stage NOT LIKE '%.%' ORDER BY id"
        )
        columns = ["id", "stage", "step", "split", "model", "sample", "correct", "length", "advantage", "finish_reason"]
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        with self._database() as db:
            for values in db.execute(sql, (problem_id,)):
                row = dict(zip(columns, values, strict=True))
                key = tuple(row.pop(name) for name in ("stage", "step", "split", "model"))
                named = dict(zip(("stage", "step", "split", "model"), key, strict=True))
                groups.setdefault(key, {**named, "rollouts": []})["rollouts"].append(row)
        if not groups:
            raise ApiError(404, f"there is no problem {problem_id!r} in this run", "problem_not_found", "problem")
        first = self.row(next(iter(groups.values()))["rollouts"][0]["id"])
        return {
            "problem_id": problem_id,
            "task": first.task,
            "language": first.language,
            "prompt": first.prompt,
            "reference": first.reference,
            "groups": list(groups.values()),
        }

    def _scan(
        self, wanted: Filter, before: int | None, limit: int, preview: int | None = _PREVIEW
    ) -> Iterator[dict[str, Any]]:
        """Rows of a list, the newest first, with so many characters of their text (None: all of it)."""
        where, values = wanted.where()
        if before is not None:
            where, values = f"{where} AND rollouts.id < ?", [*values, before]
        join = "LEFT JOIN texts USING (id)" if wanted.in_texts else ""
        columns = ", ".join(f"rollouts.{name}" for name in _SMALL)
        sql = f"SELECT {columns} FROM rollouts {join} WHERE {where} ORDER BY rollouts.id DESC LIMIT ?"
        texts = f"SELECT answer, {'text' if preview is None else f'substr(text, 1, {preview})'} FROM texts WHERE id = ?"
        with self._database() as db:
            for found in db.execute(sql, [*values, limit]):
                row = dict(zip(_SMALL, found, strict=True))
                # one by one: where rows have to be sorted, their texts need not be
                answer, text = db.execute(texts, [row["id"]]).fetchone() or (None, None)
                own = {"rewards": json.loads(row["rewards"]), "correct": bool(row["correct"])}
                yield {**row, **own, "answer": answer, "text": text}

    @contextmanager
    def _database(self, seconds: float | None = None) -> Iterator[sqlite3.Connection]:
        """A connection whose queries end after so many seconds (`QUERY_S`).

        Raises `ApiError` 404 where no rollouts have been stored yet, `TooLongError` when the time is up.
        """
        if not self.path.exists():
            raise ApiError(404, f"the run {self.run.path.name!r} has stored no rollouts yet", "no_rollouts")
        seconds = QUERY_S if seconds is None else seconds
        deadline = time.monotonic() + seconds
        with disk_errors(self.path, "read"), closing(connect_reader(self.path)) as db:
            db.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_LOOKS)
            try:
                yield db
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
                    raise
                raise TooLongError(seconds) from error


class TooLongError(ApiError):
    """A query did not end in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(504, f"the search takes more than {seconds:g} s: narrow it by stage or step", "query_timeout")


def _groups(db: sqlite3.Connection, stage: str) -> list[dict[str, Any]]:
    """A stage's splits, tasks and languages, as far as its first, its last and a few steps between show them.

    `versions` are those of its policy, if it learns from older ones: else they say no more than the steps do.
    """
    steps = [
        step for (step,) in db.execute("SELECT DISTINCT step FROM rollouts WHERE stage = ? ORDER BY step", [stage])
    ]
    looked = sorted({steps[place * (len(steps) - 1) // (_FACET_STEPS - 1)] for place in range(_FACET_STEPS)})
    marks = ", ".join("?" * len(looked))
    of_looked = f"FROM rollouts WHERE stage = ? AND step IN ({marks})"
    ages = f"SELECT MIN(version), MAX(version), MAX(step - 1 - version) {of_looked} AND split = 'train'"
    oldest, newest, behind = db.execute(ages, [stage, *looked]).fetchone()
    known = {"stage": stage, "first": steps[0], "last": steps[-1], "versions": [oldest, newest] if behind else None}
    found = db.execute(f"SELECT DISTINCT split, task, language {of_looked} ORDER BY 1, 2, 3", [stage, *looked])
    return [{**known, "split": split, "task": task, "language": language} for split, task, language in found]


def _turn(row: dict[str, Any]) -> TurnRound | None:
    """How a row of `_scan` turned round."""
    if row["text"] is None:
        return None
    return turn_round(
        RolloutRow(
            row["problem_id"], row["task"], "", row["sample"], row["text"], "", row["answer"], row["rewards"],
            row["correct"], row["finish_reason"], row["length"], stage=row["stage"], step=row["step"],
        )
    )  # fmt: skip


def _around(turn: TurnRound) -> dict[str, Any]:
    """A row's `text` about the place where it turns, `turn`: where in it the word stands, and `kind`."""
    begin = max(0, turn.start - _BEFORE_TURN)
    opening = "…" if begin else ""
    text = opening + turn.rollout.text[begin : begin + _PREVIEW]
    moved = len(opening) - begin
    return {"text": text, "turn": [turn.start + moved, turn.end + moved], "kind": turn.kind}
