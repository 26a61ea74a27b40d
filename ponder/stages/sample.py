"""`sample`: builds a data set. The model answers problems, rules keep the good answers, other sources add to them.

    read what comes from elsewhere         (curation/sources)
    sample, judge, keep by the rules       (a chunk of problems at a time)
    select: no near-duplicates, a cap      (curation/keep)
    rewrite for a person, check again      (curation/rewrite)
    drop what a benchmark asks             (curation/decontaminate)
    write rows and card                    (store/datasets)

What a chunk gives is a function of the seed and the problems' place in the stream, and is saved whole: a killed stage
goes on with the next chunk and ends in the same bytes. (An endpoint may answer otherwise when it is asked again; what
it said in a finished chunk is kept.)
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ponder.cluster.engines import Engines
from ponder.curation.card import CONTAMINATED, data_card
from ponder.curation.decontaminate import Decontamination, benchmarks, is_generated
from ponder.curation.endpoint import Endpoint
from ponder.curation.judge import judge_answers
from ponder.curation.keep import Candidate, keep_by_rules, select
from ponder.curation.rewrite import fault_of, open_rewriter
from ponder.curation.sources import SourceRows, read_source
from ponder.errors import RefusedError, UsageError
from ponder.evaluation.heldout import engine_sampling
from ponder.model.folder import LoadedModel
from ponder.model.load import load_model
from ponder.model.parser import Split
from ponder.model.templates import render
from ponder.recipe import SampleStage
from ponder.rewards import JudgedCompletion, RolloutJudge, is_finished, status_shares
from ponder.rollout.base import Completion, Engine, Request
from ponder.run import StageContext, stage_seed
from ponder.store.datasets import Example, write_rows
from ponder.store.files import atomic_write_json, read_json
from ponder.store.rollouts import RolloutRow
from ponder.tasks import ProblemStream
from ponder.tasks.base import Problem, content_hash
from ponder.verifiers.base import Verdict


def run_stage(stage: SampleStage, context: StageContext) -> None:
    """Build the data set, and leave rows and card in the stage's `data/`.

    Raises `UsageError` for settings that do not fit, `BrokenInputError` for what cannot be read, `InterruptedRunError`
    when an endpoint fails, `RefusedError` when nothing is left.
    """
    with closing(Engines(context.recipe, context.reporter.warn)) as engines:
        Curation(stage, context, engines).run()


@dataclass(frozen=True)
class Rollout:
    """One answer of the model, taken apart and judged."""

    problem: Problem
    prompt: str
    sample: int
    text: str
    split: Split
    completion: Completion
    correct: bool | None
    """None where nothing could judge it."""
    verdict: Verdict
    """Of the rule; it says nothing where the problem has none."""


class Curation:
    """One stage's way from problems and sources to rows."""

    def __init__(self, stage: SampleStage, context: StageContext, engines: Engines) -> None:
        self.stage = stage
        self.engines = engines
        self.context = context
        self.problems: list[Problem] = []
        if stage.tasks:
            self.problems, _ = ProblemStream(stage.tasks, "train", context.seed).take(0, stage.problems)
        self.judge = self._open_judge()
        self.rewriter = None if stage.rewrite is None else open_rewriter(stage.rewrite, context.seed)
        self.dropped: Counter[str] = Counter()

    def run(self) -> None:
        sources = self._read_sources()
        decontamination = self._benchmarks()  # before any sampling: a wrong recipe should not cost hours
        candidates = self._sampled()
        for rows in sources.values():
            candidates += keep_by_rules(rows.candidates, self.stage.keep, self.dropped)
        candidates = select(candidates, self.stage.keep, self.dropped)
        candidates = self._rewritten(candidates)
        if decontamination is not None:
            candidates = decontamination.clean(candidates)
            self.dropped[CONTAMINATED] = decontamination.dropped
        self._write([candidate.example for candidate in candidates], sources, decontamination)

    # --- one line of the box each ----------------------------------------------------------------------------------

    def _read_sources(self) -> dict[str, SourceRows]:
        return {
            label: read_source(label, settings, stage_seed(self.context.seed, label))
            for label, settings in self.stage.sources.items()
        }

    def _benchmarks(self) -> Decontamination | None:
        n = self.stage.decontaminate_ngram
        return Decontamination(n, benchmarks(self.context.recipe)) if n else None

    def _sampled(self) -> list[Candidate]:
        """What the rules leave of the model's answers, chunk by chunk; finished chunks are read, not sampled again."""
        chunks = _chunks(self.problems, self.stage.checkpoint_every)
        done = next((n for n in range(len(chunks)) if not self._part_path("chunk", n).exists()), len(chunks))
        self.context.metrics.rewind(done)
        self.context.rollouts.rewind(done)
        if chunks:
            self.context.reporter.begin(len(chunks), done=done)
        candidates: list[Candidate] = []
        for number, problems in enumerate(chunks):
            part = self._part("chunk", number, partial(self._sample_chunk, number + 1, problems))
            self.dropped.update(part["dropped"])
            candidates += [_read_candidate(saved) for saved in part["kept"]]
        return candidates

    def _sample_chunk(self, step: int, problems: Sequence[Problem]) -> dict[str, Any]:
        """Sample, judge and keep; what is returned is all that later steps need."""
        started = time.monotonic()
        rollouts = self._judged(self._rollouts(problems))
        seconds = time.monotonic() - started
        dropped: Counter[str] = Counter()
        kept = keep_by_rules([self._candidate(r) for r in rollouts], self.stage.keep, dropped)
        self._log(step, rollouts, len(kept), seconds)
        return {"dropped": dict(dropped), "kept": [dataclasses.asdict(candidate) for candidate in kept]}

    def _rewritten(self, candidates: list[Candidate]) -> list[Candidate]:
        """Rollouts in the cold-start shape, in their order; examples from elsewhere stay as they are."""
        if self.rewriter is None:
            return candidates
        problems = {problem.id: problem for problem in self.problems}
        items = [(problems[c.example.problem_id], c.example) for c in candidates if c.sampled]
        chunks = _chunks(items, self.stage.checkpoint_every)
        self.context.reporter.begin(len(chunks))
        texts: dict[str, tuple[str, str]] = {}
        for number, chunk in enumerate(chunks):
            part = self._part("rewritten", number, partial(self.rewriter, chunk, self._progress(len(chunk))))
            for (problem, example), rewritten in zip(chunk, part, strict=True):
                fault = fault_of(rewritten, problem, example)
                if fault is None:
                    texts[example.id] = rewritten
                else:
                    self.dropped[fault] += 1
            self.context.reporter.step(number + 1)
        return [
            _with_texts(candidate, texts[candidate.example.id]) if candidate.sampled else candidate
            for candidate in candidates
            if not candidate.sampled or candidate.example.id in texts
        ]

    def _write(
        self, examples: list[Example], sources: dict[str, SourceRows], decontamination: Decontamination | None
    ) -> None:
        context = self.context
        if not examples:
            most = ", ".join(f"{reason} {count}" for reason, count in (+self.dropped).most_common(3)) or "none"
            raise RefusedError(
                f"stages.{context.stage_name} kept no example (dropped: {most}): loosen `keep` or sample more"
            )
        card = data_card(
            self.stage,
            context.stage_name,
            context.seed,
            examples,
            sampled=len(self.problems) * self.stage.samples,
            read={label: len(rows.candidates) for label, rows in sources.items()},
            broken={label: rows.broken for label, rows in sources.items()},
            dropped=self.dropped,
            decontamination={} if decontamination is None else decontamination.report(),
        )
        write_rows(context.data_dir, examples, Example, card)
        dropped = ", ".join(f"{count} {reason}" for reason, count in card["dropped"].items() if count)
        context.reporter.note(f"{len(examples)} examples kept; dropped: {dropped or 'none'}")

    # --- sampling --------------------------------------------------------------------------------------------------

    @cached_property
    def _model(self) -> LoadedModel:
        """Loaded when a chunk is missing, and only then."""
        return load_model(self.context.model_source(str(self.stage.model)))

    @cached_property
    def _engine(self) -> Engine:
        return self.engines.open(self._model)

    def _rollouts(self, problems: Sequence[Problem]) -> list[Rollout]:
        stage, tokenizer, context = self.stage, self._model.tokenizer, self.context
        prompts = [render(stage.template, problem.prompt, tokenizer) for problem in problems]
        requests = [
            Request(tuple(tokenizer.encode_prompt(prompt)), f"{context.stage_name}/{problem.id}", stage.samples)
            for prompt, problem in zip(prompts, problems, strict=True)
        ]
        progress = self._progress(len(requests) * stage.samples)
        judge = RolloutJudge(context.judges, tokenizer, problems, prompts, progress)
        sampling = engine_sampling(stage.sampling, tokenizer)
        groups = judge.judged(self._engine.generate(requests, sampling, context.seed, judge.on_finished))
        return [
            Rollout(
                problem, prompt, sample, one.text, one.split, one.completion, _rule_verdict(problem, one), one.verdict
            )
            for problem, prompt, group in zip(problems, prompts, groups, strict=True)
            for sample, one in enumerate(group)
        ]

    def _open_judge(self) -> Endpoint | None:
        """Only where it will be asked. Raises `UsageError` where verdicts are needed and there is none to ask."""
        if all(problem.reference is not None for problem in self.problems):
            return None
        if self.stage.judge is None and self.stage.keep.correct:
            raise UsageError(f"stages.{self.context.stage_name} has problems that no rule judges: name a `judge`")
        return None if self.stage.judge is None else Endpoint(self.stage.judge)

    def _judged(self, rollouts: list[Rollout]) -> list[Rollout]:
        """With the judge's verdict where no rule gives one and there is an answer to judge."""
        asked = [r for r in rollouts if r.correct is None]
        if self.judge is None or not asked:
            return rollouts
        questions = [(r.problem.prompt, r.problem.reference, r.split.answer or "") for r in asked]
        verdicts = iter(judge_answers(self.judge, questions, self._progress(len(questions))))
        return [r if r.correct is not None else dataclasses.replace(r, correct=next(verdicts)) for r in rollouts]

    def _candidate(self, rollout: Rollout) -> Candidate:
        problem, split = rollout.problem, rollout.split
        example = Example(
            id=f"{self.context.stage_name}/{problem.id}/{rollout.sample}",
            source=self.context.stage_name,
            domain=problem.domain,
            language=problem.language,
            prompt=problem.prompt,
            thinking=split.thinking,
            answer=split.answer or "",
            task=problem.task,
            problem_id=problem.id,
            reference=problem.reference,
        )
        finished = split.well_formed and rollout.completion.finish_reason == "stop"
        content = content_hash(problem) if is_generated(problem.task) else ""
        return Candidate(example, rollout.correct, finished, content, sampled=True)

    def _log(self, step: int, rollouts: Sequence[Rollout], kept: int, seconds: float) -> None:
        lengths = [len(rollout.completion.ids) for rollout in rollouts]
        judged = [rollout.correct for rollout in rollouts if rollout.correct is not None]
        metrics = {
            "accuracy/pass@1": sum(judged) / len(judged) if judged else math.nan,
            "length/mean": sum(lengths) / len(lengths),
            "length/truncated_share": sum(r.completion.finish_reason == "length" for r in rollouts) / len(rollouts),
            "data/kept_share": kept / len(rollouts),
            "tokens/sampled": float(sum(lengths)),
            "time/rollout": seconds,
            "speed/rollout_tokens_per_s": sum(lengths) / seconds,
        }
        metrics |= status_shares([r.verdict for r in rollouts if r.problem.reference is not None])
        self.context.rollouts.add(step, map(_row, rollouts))
        self.context.metrics.write(step, metrics)
        shown = ("accuracy/pass@1", "data/kept_share", "length/mean")
        self.context.reporter.step(step, {name: metrics[name] for name in shown})

    def _progress(self, total: int) -> Callable[[int], None]:
        done = 0

        def on_progress(count: int) -> None:
            nonlocal done
            done += count
            self.context.reporter.within(done, total)

        return on_progress

    # --- what a killed stage finds again -----------------------------------------------------------------------------

    def _part(self, kind: str, number: int, make: Callable[[], Any]) -> Any:
        """One numbered part of the work: made and saved once, and always used as it was saved."""
        path = self._part_path(kind, number)
        if not path.exists():
            atomic_write_json(path, make())
        return read_json(path)

    def _part_path(self, kind: str, number: int) -> Path:
        return self.context.state_dir / f"{kind}-{number:05d}.json"


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _rule_verdict(problem: Problem, judged: JudgedCompletion) -> bool | None:
    """The task's verdict; None where there is a whole answer and no rule for it."""
    if problem.reference is None and is_finished(judged.split, judged.completion.finish_reason):
        return None
    return judged.verdict.correct


def _read_candidate(saved: dict[str, Any]) -> Candidate:
    example = Example(**{**saved["example"], "history": tuple(saved["example"]["history"])})
    return Candidate(**{**saved, "example": example})


def _with_texts(candidate: Candidate, rewritten: Sequence[str]) -> Candidate:
    thinking, answer = rewritten
    return dataclasses.replace(
        candidate, example=dataclasses.replace(candidate.example, thinking=thinking, answer=answer)
    )


def _row(rollout: Rollout) -> RolloutRow:
    problem, completion = rollout.problem, rollout.completion
    return RolloutRow(
        problem_id=problem.id,
        task=problem.task,
        prompt=rollout.prompt,
        sample=rollout.sample,
        text=rollout.text,
        thinking=rollout.split.thinking,
        answer=rollout.split.answer,
        rewards={"accuracy": float(rollout.correct is True)},
        correct=rollout.correct is True,
        finish_reason=completion.finish_reason,
        length=len(completion.ids),
        language=problem.language,
        difficulty=problem.difficulty,
        reference=problem.reference,
        token_ids=completion.ids,
        logprobs=completion.logprobs,
        entropies=completion.entropies,
    )
