"""`evaluate`: pass@1 over k samples, pass@k, cons@k, lengths and stop rate, for each model on each task and benchmark.

Of a task the test split is asked, of a benchmark all of it, or a part drawn by the seed. Every model answers the same
problems from the same random streams. A number's row in evaluations.json says how it was made, where it departs from
what the benchmark declares, and where the samples behind it lie: a JSONL file from which it can be computed again, and
a page for reading. Each model on each exam is a unit: once its rows are written it is not evaluated again when a
stopped stage goes on, and of the unit that was stopped, no completion is asked for twice.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ponder.cluster.engines import Engines
from ponder.errors import UsageError
from ponder.evaluation.benchmarks import get_benchmark
from ponder.evaluation.benchmarks.base import Loaded, check_references, departures, load
from ponder.evaluation.endpoints import EndpointSampler
from ponder.evaluation.heldout import HeldOutResult, judged_problem
from ponder.evaluation.items import write_item_page
from ponder.evaluation.metrics import Estimate, pass_at_k
from ponder.evaluation.replies import Reply, ReplyLog
from ponder.evaluation.samplers import LocalSampler, Sampler, Wanted
from ponder.evaluation.tables import as_text, extra_tables, result_tables, settings_text
from ponder.model.load import load_model
from ponder.model.parser import Split, prompt_tail, split_thinking
from ponder.progress import Reporter
from ponder.recipe import EvaluateStage, SamplingSettings
from ponder.rollout.base import FinishReason
from ponder.run import StageContext
from ponder.store.files import atomic_write, make_folder
from ponder.store.rollouts import RolloutRow
from ponder.tasks import held_out
from ponder.tasks.base import Problem
from ponder.verifiers.base import Verdict


@dataclass(frozen=True)
class Exam:
    """A task or benchmark: which problems are put to every model, and how."""

    name: str
    problems: tuple[Problem, ...]
    samples: int
    sampling: SamplingSettings
    loaded: Loaded | None = None
    """Where it is a benchmark."""
    departures: tuple[str, ...] = ()
    """Where the stage's settings are not the benchmark's own."""

    @property
    def caveats(self) -> list[str]:
        """What the benchmark's rows do not allow."""
        found = None if self.loaded is None else self.loaded.benchmark.caveats
        return [] if found is None else found(self.problems)

    @property
    def num_completions(self) -> int:
        return len(self.problems) * self.samples


@dataclass(frozen=True)
class _Unit:
    """One model on one exam; `number` counts from 1."""

    number: int
    model: str
    exam: Exam


@dataclass(frozen=True)
class _JudgedReply:
    """A reply, taken apart and judged."""

    text: str
    split: Split
    verdict: Verdict
    finish_reason: FinishReason
    length: int


def run_stage(stage: EvaluateStage, context: StageContext) -> None:
    """Evaluate, leave rows in evaluations.json and the samples below the stage's folder, and print the tables.

    Raises `UsageError` when a task has too few test problems, there is no such benchmark, or a template is for none of
    the models; `BrokenInputError` when a model or a benchmark cannot be read, or a reference fails as an answer to
    itself; `RefusedError` when programs must be judged and no sandbox works; `InterruptedRunError` when an endpoint
    fails.
    """
    with closing(Engines(context.recipe, context.reporter.warn)) as engines:
        Evaluation(stage, context, engines).run()


class Evaluation:
    """One stage's units and what they share."""

    def __init__(self, stage: EvaluateStage, context: StageContext, engines: Engines) -> None:
        unknown = sorted(set(stage.templates) - set(stage.models))
        if unknown:
            raise UsageError(f"stages.{context.stage_name}.templates names {unknown[0]!r}, which is none of `models`")
        self.stage = stage
        self.context = context
        self.engines = engines
        self.exams = list(exams(stage, context.seed))
        self.units = [
            _Unit(number, model, exam)
            for number, (model, exam) in enumerate(((m, e) for m in stage.models for e in self.exams), start=1)
        ]

    def run(self) -> None:
        """Every unit that is not done yet, in order."""
        rows = self._rows()
        done = len({(row["model"], row["benchmark"]) for row in rows})
        self.context.metrics.rewind(done)
        waiting = self.units[done:]
        for exam in self.exams:
            if any(unit.exam is exam for unit in waiting):
                self._check(exam)
        progress = _Progress(self.context.reporter, self.units)
        progress.begin(self.units[:done])
        sampler: tuple[str, Sampler] | None = None
        for unit in waiting:
            if sampler is None or sampler[0] != unit.model:
                sampler = unit.model, self._sampler(unit.model)
            self._evaluate(unit, sampler[1], progress)
        self.context.reporter.note(f"results\n{self._results()}")

    def _check(self, exam: Exam) -> None:
        if exam.loaded is None:
            return
        check_references(exam.loaded, exam.problems)
        for row, why in exam.loaded.left_out.items():
            self.context.reporter.note(f"{exam.name}: {row} is left out: {why}")
        for caveat in exam.caveats:
            self.context.reporter.note(f"{exam.name}: {caveat}")

    def _sampler(self, model: str) -> Sampler:
        if model in self.stage.endpoints:
            return EndpointSampler(self.stage.endpoints[model])
        loaded = load_model(self.context.model_source(model))
        template = self.stage.templates.get(model, self.stage.template)
        return LocalSampler(self.engines.open(loaded), self.engines.name, loaded.tokenizer, template)

    def _results(self) -> str:
        """The tables for a terminal."""
        rows = self._rows()
        tables = [as_text(table) for table in [*result_tables(rows, self.stage.models), *extra_tables(rows)]]
        return "\n\n".join([settings_text(rows), *tables])

    def _evaluate(self, unit: _Unit, sampler: Sampler, progress: _Progress) -> None:
        started = time.monotonic()
        replies, judged = self._answers(unit, sampler, progress)
        seconds = time.monotonic() - started
        result = HeldOutResult(
            [
                judged_problem(
                    problem, sampler.prompt(problem), [judged[problem.id, s] for s in range(unit.exam.samples)]
                )
                for problem in unit.exam.problems
            ]
        )
        self._warn(unit, replies)
        samples = self._save_samples(unit, result)
        rows = list(self._described(unit, sampler, result, replies, samples))
        write_item_page(samples.with_suffix(".html"), samples, rows)
        # the rows come last: they are what says that the unit is done
        tokens = sum(reply.length or 0 for reply in replies)
        prompt_tokens = sum(reply.prompt_tokens or 0 for reply in replies)
        costs = {
            "tokens/sampled": tokens,
            "tokens/prompts": prompt_tokens,
            "time/rollout": seconds,
            "speed/rollout_tokens_per_s": tokens / seconds,
        }
        self.context.metrics.write(unit.number, {**result.metrics, **costs})
        self.context.evaluations.add(rows)
        self.context.reporter.note(
            f"{unit.model} on {unit.exam.name}: pass@1 {_text(result.estimates['accuracy/pass@1'])}"
        )
        progress.show(result.metrics["accuracy/pass@1"])

    def _answers(
        self, unit: _Unit, sampler: Sampler, progress: _Progress
    ) -> tuple[list[Reply], dict[tuple[str, int], _JudgedReply]]:
        """All replies, from the log or asked for now, each judged while the others are still being drawn."""
        exam = unit.exam
        log = ReplyLog(self.context.state_dir / f"{unit.number:02d}.jsonl")
        replies = log.read()
        problems = {problem.id: problem for problem in exam.problems}
        begun = {key: self._begin(problems[reply.problem], sampler, reply) for key, reply in replies.items()}
        progress.add(len(replies))

        def keep(new: Sequence[Reply]) -> None:
            log.add(new)
            for reply in new:
                replies[reply.problem, reply.sample] = reply
                begun[reply.problem, reply.sample] = self._begin(problems[reply.problem], sampler, reply)
            progress.add(len(new))

        missing = {
            problem.id: tuple(s for s in range(exam.samples) if (problem.id, s) not in replies)
            for problem in exam.problems
        }
        wanted = [Wanted(problem, missing[problem.id]) for problem in exam.problems if missing[problem.id]]
        sampler.sample(wanted, exam.sampling, self.context.seed, self.context.stage_name, keep)
        return list(replies.values()), {key: finish() for key, finish in begun.items()}

    def _begin(self, problem: Problem, sampler: Sampler, reply: Reply) -> Callable[[], _JudgedReply]:
        """Have a reply judged; the function that is returned waits for it."""
        split = split_thinking(reply.text, prompt_tail(sampler.prompt(problem)))
        verdict = self.context.judges.submit(problem, split, reply.finish_reason)
        return lambda: _JudgedReply(reply.text, split, verdict(), reply.finish_reason, reply.length or 0)

    def _warn(self, unit: _Unit, replies: Sequence[Reply]) -> None:
        refusals = [reply.refusal for reply in replies if reply.refusal is not None]
        if refusals:
            self.context.reporter.warn(
                f"{unit.model} on {unit.exam.name}: the endpoint refused {len(refusals)} requests, which count as "
                f"wrong ({refusals[0]})"
            )

    def _described(
        self, unit: _Unit, sampler: Sampler, result: HeldOutResult, replies: Sequence[Reply], samples: Path
    ) -> Iterator[dict[str, Any]]:
        """A row a metric, with all that is needed to read the number rightly."""
        exam = unit.exam
        data_dir = None if self.stage.data_dir is None else Path(self.stage.data_dir)
        found = pass_at_powers(result) | result.estimates
        if exam.loaded is not None:
            if not any(vote for judged in result.problems for vote in judged.votes):
                found.pop(f"accuracy/cons@{exam.samples}")  # programs and free texts do not vote
            extras = exam.loaded.benchmark.extras
            found |= {} if extras is None else extras(result, data_dir)
        if any(reply.length is None for reply in replies):
            found.pop("length/mean")  # the endpoint does not count
        for metric, estimate in found.items():
            yield {
                "model": unit.model,
                "benchmark": exam.name,
                "metric": metric,
                "value": estimate.value if math.isfinite(estimate.value) else None,
                "interval": _finite_interval(estimate),
                "k": exam.samples,
                "problems": len(result.problems),
                "temperature": exam.sampling.temperature,
                "top_p": exam.sampling.top_p,
                "top_k": exam.sampling.top_k,
                "max_tokens": exam.sampling.max_tokens,
                **sampler.described(),
                "seed": self.context.seed,
                "samples": samples.relative_to(self.context.run.path).as_posix(),
                **_source(exam, self.stage.data_dir),
            }

    def _save_samples(self, unit: _Unit, result: HeldOutResult) -> Path:
        folder = self.context.folder / "samples"
        make_folder(folder)
        path = folder / f"{unit.number:02d}-{_slug(unit.model)}-{_slug(unit.exam.name)}.jsonl"
        lines = [
            _sample(judged.problem, row, vote, verdict)
            for judged in result.problems
            for row, vote, verdict in zip(judged.rollouts, judged.votes, judged.verdicts, strict=True)
        ]
        atomic_write(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return path

    def _rows(self) -> list[dict[str, Any]]:
        return [row for row in self.context.run.evaluations() if row["stage"] == self.context.stage_name]


def exams(stage: EvaluateStage, seed: int) -> Iterator[Exam]:
    """What a stage asks: its tasks, then its benchmarks. Raises as `held_out`, `get_benchmark` and `load` do."""
    for task, settings in stage.tasks.items():
        problems = tuple(held_out({task: settings}, stage.task_problems, seed))
        yield Exam(task, problems, stage.task_samples, stage.task_sampling)
    for name in stage.benchmarks:
        benchmark = get_benchmark(name)
        loaded = load(benchmark, None if stage.data_dir is None else Path(stage.data_dir))
        problems = loaded.take(stage.problems, seed)
        samples, sampling = stage.samples or benchmark.k, stage.sampling.up_to(benchmark.max_tokens)
        found = departures(loaded, len(problems), samples, sampling)
        yield Exam(name, problems, samples, sampling, loaded, found)


class _Progress:
    """Completions that are there, for the bar and the time left."""

    def __init__(self, reporter: Reporter, units: Sequence[_Unit]) -> None:
        self._reporter = reporter
        self._total = sum(unit.exam.num_completions for unit in units)
        self._done = 0
        self._shown = 0

    def begin(self, units: Iterable[_Unit]) -> None:
        """What was done by an earlier start."""
        self._done = self._shown = sum(unit.exam.num_completions for unit in units)
        self._reporter.begin(self._total, done=self._done)

    def add(self, count: int) -> None:
        self._done += count
        # the pace is taken from the last few steps, which single completions would make too short
        if self._done - self._shown >= max(1, self._total // 200):
            self._shown = self._done
            self._reporter.step(self._done)

    def show(self, pass_at_1: float) -> None:
        """A unit has ended."""
        self._shown = self._done
        self._reporter.step(self._done, {"accuracy/pass@1": pass_at_1})


def pass_at_powers(result: HeldOutResult) -> dict[str, Estimate]:
    """pass@k for k = 1, 2, 4, ... up to the samples a problem, by metric name, from the same samples [Codex Eq. 1]."""
    correct = [judged.correct for judged in result.problems]
    powers = (2**i for i in range(result.samples.bit_length()))
    return {f"accuracy/pass@{k}": pass_at_k(correct, k) for k in powers}


def _source(exam: Exam, data_dir: str | None) -> dict[str, Any]:
    """What a row says of a benchmark."""
    if exam.loaded is None:
        return {}
    benchmark = exam.loaded.benchmark
    hub = None if benchmark.hub is None else f"{benchmark.hub.repository}: {benchmark.hub.pattern}"
    return {
        "title": benchmark.title,
        "verifier": ", ".join(sorted({problem.verifier for problem in exam.problems})),
        "source": hub if data_dir is None else exam.loaded.files,
        "left_out": len(exam.loaded.left_out),
        "departures": list(exam.departures),
        "caveats": exam.caveats,
    }


def _sample(problem: Problem, row: RolloutRow, vote: str | None, verdict: Verdict) -> dict[str, Any]:
    """One line of the samples' file: enough to judge the answer again."""
    return {
        "problem_id": problem.id,
        "task": problem.task,
        "problem": problem.prompt,
        "reference": problem.reference,
        **({"verifier": problem.verifier} if problem.verifier else {}),
        "language": problem.language,
        "difficulty": problem.difficulty,
        "prompt": row.prompt,
        "sample": row.sample,
        "text": row.text,
        "thinking": row.thinking,
        "answer": row.answer,
        "vote": vote,
        "correct": row.correct,
        "extracted": verdict.extracted,
        "why": verdict.why,
        "status": verdict.status,
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
