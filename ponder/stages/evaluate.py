"""`evaluate`: pass@1 over k samples, pass@k, cons@k, lengths and stop rate, for each model on each task's test split.

Every model answers the same problems from the same random streams. A number's row in evaluations.json says how it was
made and where the samples behind it lie: a JSONL file from which it can be computed again. Each model on each task is a
unit: once its rows are written it is not evaluated again when a stopped stage goes on.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ponder.evaluation.heldout import HeldOutResult, engine_sampling, evaluate_problems
from ponder.evaluation.metrics import Estimate
from ponder.model.folder import LoadedModel
from ponder.model.load import load_model
from ponder.model.templates import template_hash
from ponder.recipe import EvaluateStage
from ponder.rollout.native import NativeEngine
from ponder.run import StageContext
from ponder.store.files import atomic_write, make_folder
from ponder.store.rollouts import RolloutRow
from ponder.tasks import held_out
from ponder.tasks.base import Problem

_SHOWN = re.compile(r"accuracy/|length/")
"""Metrics that the table on the terminal shows; all of them are in evaluations.json."""


@dataclass(frozen=True)
class _Unit:
    """One model on one task; `number` counts from 1."""

    number: int
    model: str
    task: str


def run_stage(stage: EvaluateStage, context: StageContext) -> None:
    """Evaluate, leave rows in evaluations.json and the samples below the stage's folder, and print the table.

    Raises `UsageError` when a task has too few test problems, `BrokenInputError` when a model cannot be read.
    """
    Evaluation(stage, context).run()


class Evaluation:
    """One stage's units and what they share."""

    def __init__(self, stage: EvaluateStage, context: StageContext) -> None:
        self.stage = stage
        self.context = context
        self.units = [
            _Unit(number, model, task)
            for number, (model, task) in enumerate(((m, t) for m in stage.models for t in stage.tasks), start=1)
        ]
        # the same problems for every model
        self.problems: dict[str, list[Problem]] = {
            task: held_out({task: settings}, stage.problems, context.seed) for task, settings in stage.tasks.items()
        }

    def run(self) -> None:
        """Every unit that is not done yet, in order."""
        rows = self._rows()
        done = len({(row["model"], row["benchmark"]) for row in rows})
        self.context.metrics.rewind(done)
        self.context.reporter.begin(len(self.units), done=done)
        model: tuple[str, LoadedModel] | None = None
        for unit in self.units[done:]:
            if model is None or model[0] != unit.model:
                model = unit.model, load_model(self.context.model_source(unit.model))
            self._evaluate(unit, model[1])
        self.context.reporter.note(f"results\n{_as_text(results_table(self._rows()))}")

    def _evaluate(self, unit: _Unit, model: LoadedModel) -> None:
        stage, problems = self.stage, self.problems[unit.task]
        started = time.monotonic()
        total, done = len(problems) * stage.samples, 0

        def on_progress(count: int) -> None:
            nonlocal done
            done += count
            self.context.reporter.within(done, total)

        result = evaluate_problems(
            NativeEngine(model.decoder, model.tokenizer.decode),
            model.tokenizer,
            problems,
            stage.template,
            stage.samples,
            engine_sampling(stage.sampling, model.tokenizer),
            self.context.seed,
            key=self.context.stage_name,
            on_progress=on_progress,
        )
        seconds = time.monotonic() - started
        samples = self._save_samples(unit, result)
        # the rows come last: they are what says that the unit is done
        tokens = sum(row.length for row in result.rows)
        self.context.metrics.write(unit.number, {**result.metrics, "speed/rollout_tokens_per_s": tokens / seconds})
        self.context.evaluations.add(self._described(unit, model, result, samples))
        shown = {name: result.metrics[name] for name in ("accuracy/pass@1", f"accuracy/cons@{stage.samples}")}
        self.context.reporter.note(f"{unit.model} on {unit.task}: pass@1 {_text(result.estimates['accuracy/pass@1'])}")
        self.context.reporter.step(unit.number, shown)

    def _described(
        self, unit: _Unit, model: LoadedModel, result: HeldOutResult, samples: Path
    ) -> Iterator[dict[str, Any]]:
        """A row a metric, with all that is needed to read the number rightly."""
        stage = self.stage
        for metric, estimate in result.estimates.items():
            yield {
                "model": unit.model,
                "benchmark": unit.task,
                "metric": metric,
                "value": estimate.value,
                "interval": _finite_interval(estimate),
                "k": stage.samples,
                "problems": len(result.problems),
                "temperature": stage.sampling.temperature,
                "top_p": stage.sampling.top_p,
                "top_k": stage.sampling.top_k,
                "max_tokens": stage.sampling.max_tokens,
                "template": stage.template,
                "template_hash": template_hash(stage.template, model.tokenizer),
                "engine": NativeEngine.name,
                "seed": self.context.seed,
                "samples": samples.relative_to(self.context.run.path).as_posix(),
            }

    def _save_samples(self, unit: _Unit, result: HeldOutResult) -> Path:
        folder = self.context.folder / "samples"
        make_folder(folder)
        path = folder / f"{unit.number:02d}-{_slug(unit.model)}-{_slug(unit.task)}.jsonl"
        lines = [
            _sample(judged.problem, row, vote)
            for judged in result.problems
            for row, vote in zip(judged.rollouts, judged.votes, strict=True)
        ]
        atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return path

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in self.context.run.evaluations() if row["stage"] == self.context.stage_name]


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of evaluations.json for a person: a line a model and benchmark, a column a metric with its interval."""
    metrics = [name for name in dict.fromkeys(row["metric"] for row in rows) if _SHOWN.match(name)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "benchmark", "problems x k", *metrics):
        table.add_column(column.removeprefix("accuracy/"))
    cells: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["benchmark"]), {})[row["metric"]] = row
    for (model, benchmark), found in cells.items():
        first = next(iter(found.values()))
        texts = [_row_text(found[metric]) if metric in found else "" for metric in metrics]
        table.add_row(model, benchmark, f"{first['problems']} x {first['k']}", *texts)
    return table


def _sample(problem: Problem, row: RolloutRow, vote: str | None) -> dict[str, Any]:
    """One line of the samples' file: enough to judge the answer again."""
    return {
        "problem_id": problem.id,
        "task": problem.task,
        "problem": problem.prompt,
        "reference": problem.reference,
        "language": problem.language,
        "difficulty": problem.difficulty,
        "prompt": row.prompt,
        "sample": row.sample,
        "text": row.text,
        "thinking": row.thinking,
        "answer": row.answer,
        "vote": vote,
        "correct": row.correct,
        "finish_reason": row.finish_reason,
        "length": row.length,
    }


def _as_text(table: Table) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def _finite_interval(estimate: Estimate) -> list[float] | None:
    """JSON has no infinity: an interval without bounds, as a mean over one problem has, is none."""
    return [estimate.low, estimate.high] if math.isfinite(estimate.high) else None


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _row_text(row: Mapping[str, Any]) -> str:
    value = float(row["value"])
    return f"{value:.4g}" if row["interval"] is None else _text(Estimate(value, *row["interval"]))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "model"
