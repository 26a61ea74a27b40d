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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.errors import UsageError
from ponder.evaluation.heldout import HeldOutResult, engine_sampling, evaluate_problems
from ponder.evaluation.metrics import Estimate, pass_at_k
from ponder.evaluation.tables import as_text, result_tables, settings_text
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


@dataclass(frozen=True)
class _Unit:
    """One model on one task; `number` counts from 1."""

    number: int
    model: str
    task: str


def run_stage(stage: EvaluateStage, context: StageContext) -> None:
    """Evaluate, leave rows in evaluations.json and the samples below the stage's folder, and print the tables.

    Raises `UsageError` when a task has too few test problems or a template is for none of the models,
    `BrokenInputError` when a model cannot be read.
    """
    Evaluation(stage, context).run()


class Evaluation:
    """One stage's units and what they share."""

    def __init__(self, stage: EvaluateStage, context: StageContext) -> None:
        unknown = sorted(set(stage.templates) - set(stage.models))
        if unknown:
            raise UsageError(f"stages.{context.stage_name}.templates names {unknown[0]!r}, which is none of `models`")
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
        self.context.reporter.note(f"results\n{self._results()}")

    def _results(self) -> str:
        """The tables for a terminal."""
        rows = self._rows()
        tables = [as_text(table) for table in result_tables(rows, self.stage.models)]
        return "\n\n".join([settings_text(rows), *tables])

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
            self._template(unit.model),
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
        costs = {"tokens/sampled": tokens, "time/rollout": seconds, "speed/rollout_tokens_per_s": tokens / seconds}
        self.context.metrics.write(unit.number, {**result.metrics, **costs})
        self.context.evaluations.add(self._described(unit, model, result, samples))
        shown = {name: result.metrics[name] for name in ("accuracy/pass@1", f"accuracy/cons@{stage.samples}")}
        self.context.reporter.note(f"{unit.model} on {unit.task}: pass@1 {_text(result.estimates['accuracy/pass@1'])}")
        self.context.reporter.step(unit.number, shown)

    def _described(
        self, unit: _Unit, model: LoadedModel, result: HeldOutResult, samples: Path
    ) -> Iterator[dict[str, Any]]:
        """A row a metric, with all that is needed to read the number rightly."""
        stage = self.stage
        template = self._template(unit.model)
        for metric, estimate in (pass_at_powers(result) | result.estimates).items():
            yield {
                "model": unit.model,
                "benchmark": unit.task,
                "metric": metric,
                "value": estimate.value if math.isfinite(estimate.value) else None,
                "interval": _finite_interval(estimate),
                "k": stage.samples,
                "problems": len(result.problems),
                "temperature": stage.sampling.temperature,
                "top_p": stage.sampling.top_p,
                "top_k": stage.sampling.top_k,
                "max_tokens": stage.sampling.max_tokens,
                "template": template,
                "template_hash": template_hash(template, model.tokenizer),
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

    def _template(self, model: str) -> str:
        return self.stage.templates.get(model, self.stage.template)

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in self.context.run.evaluations() if row["stage"] == self.context.stage_name]


def pass_at_powers(result: HeldOutResult) -> dict[str, Estimate]:
    """pass@k for k = 1, 2, 4, ... up to the samples a problem, by metric name, from the same samples [Codex Eq. 1]."""
    correct = [judged.correct for judged in result.problems]
    powers = (2**i for i in range(result.samples.bit_length()))
    return {f"accuracy/pass@{k}": pass_at_k(correct, k) for k in powers}


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


def _finite_interval(estimate: Estimate) -> list[float] | None:
    """JSON has no infinity: an interval without bounds, as a mean over one problem has, is none."""
    return [estimate.low, estimate.high] if math.isfinite(estimate.high) else None


def _text(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "model"
