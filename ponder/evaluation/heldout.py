"""Held-out evaluation: k samples a problem, split by the one parser, judged by the task, summed up in metrics.

Used by the reinforce loop every few steps and by the `evaluate` stage. The same problems, seed and key draw from the
same random streams, so that two evaluations differ by the model alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Protocol

from ponder.evaluation.metrics import (
    Estimate,
    cons_at_k,
    group_answers,
    mean_over_problems,
    pass_at_1,
    pass_at_k,
    proportion_interval,
)
from ponder.evaluation.reflection import count_reflection_words
from ponder.model.parser import Split
from ponder.model.templates import render
from ponder.rewards import IN_PROCESS, Judges, RolloutJudge, is_finished, status_shares
from ponder.rollout.base import Completion, Engine, FinishReason, Progress, Request, Sampling
from ponder.store.rollouts import RolloutRow
from ponder.tasks import vote_key
from ponder.tasks.base import Problem
from ponder.text.languages import LANGUAGES, base_language, consistency
from ponder.verifiers import get_verifier
from ponder.verifiers.base import Verdict

if TYPE_CHECKING:
    from ponder.model.tokenizer import Tokenizer
    from ponder.recipe import SamplingSettings


class JudgedText(Protocol):
    """One completion, taken apart and judged, from whatever engine."""

    @property
    def text(self) -> str: ...
    @property
    def split(self) -> Split: ...
    @property
    def verdict(self) -> Verdict: ...
    @property
    def finish_reason(self) -> FinishReason: ...
    @property
    def length(self) -> int:
        """In tokens."""
        ...


@dataclass(frozen=True)
class JudgedProblem:
    """One problem with its k rollouts, each judged; `votes` are the canonical answers, None where unreadable."""

    problem: Problem
    rollouts: list[RolloutRow]
    votes: list[str | None]
    verdicts: list[Verdict] = field(default_factory=list)
    """What was said of each rollout."""

    @property
    def correct(self) -> list[bool]:
        return [rollout.correct for rollout in self.rollouts]

    @property
    def truncated(self) -> list[bool]:
        return [rollout.finish_reason == "length" for rollout in self.rollouts]

    @cached_property
    def consistencies(self) -> list[float]:
        """Language consistency of the replies that have words in their thinking."""
        found = [thinking_consistency(rollout.thinking, self.problem.language) for rollout in self.rollouts]
        return [share for share in found if share is not None]


@dataclass(frozen=True)
class HeldOutResult:
    """What an evaluation found: the judged problems, in the order in which they were asked."""

    problems: list[JudgedProblem]

    @property
    def samples(self) -> int:
        """k."""
        return len(self.problems[0].rollouts)

    @property
    def rows(self) -> list[RolloutRow]:
        """Every rollout, problem by problem, as the stores keep them."""
        return [row for judged in self.problems for row in judged.rollouts]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """By metric name (docs/metrics.md); NaN where there is nothing to average, as for the length of no replies."""
        estimates = self.estimates
        named = {name: estimate.value for name, estimate in estimates.items()}
        named.setdefault("language/consistency", math.nan)
        named["accuracy/pass@1_low"] = estimates["accuracy/pass@1"].low
        named["accuracy/pass@1_high"] = estimates["accuracy/pass@1"].high
        named["length/correct"] = _mean(row.length for row in self.rows if row.correct)
        named["length/wrong"] = _mean(row.length for row in self.rows if not row.correct)
        for task in sorted({judged.problem.task for judged in self.problems}):
            one = [judged.correct for judged in self.problems if judged.problem.task == task]
            named[f"accuracy/pass@1/{task}"] = pass_at_1(one).value
        named |= status_shares([verdict for judged in self.problems for verdict in judged.verdicts])
        return named

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """What has an interval over problems, by metric name; what there is nothing to say of is left out."""
        correct = [judged.correct for judged in self.problems]
        truncated = [judged.truncated for judged in self.problems]
        k = self.samples
        # pass@k comes first: with one sample it is pass@1
        found = {f"accuracy/pass@{k}": pass_at_k(correct, k), "accuracy/pass@1": pass_at_1(correct)}
        found[f"accuracy/cons@{k}"] = cons_at_k([judged.votes for judged in self.problems], correct)
        found["length/mean"] = self._mean_of(lambda row: row.length)
        found["length/truncated_share"] = pass_at_1(truncated)
        found["length/stop_rate"] = pass_at_1([[not cut for cut in row] for row in truncated])
        found["reflection/words_per_response"] = self._mean_of(lambda row: count_reflection_words(row.text))
        shares = [judged.consistencies for judged in self.problems if judged.consistencies]
        if shares:
            per_problem = sum(map(len, shares)) // len(shares)
            found["language/consistency"] = proportion_interval([fmean(row) for row in shares], per_problem)
        return found

    def _mean_of(self, measure: Callable[[RolloutRow], float]) -> Estimate:
        return mean_over_problems([[measure(row) for row in judged.rollouts] for judged in self.problems])


def evaluate_problems(
    engine: Engine,
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    template: str,
    samples: int,
    sampling: Sampling,
    seed: int,
    key: str = "held-out",
    on_progress: Progress | None = None,
    judges: Judges = IN_PROCESS,
) -> HeldOutResult:
    """Ask every problem `samples` times and judge the answers.

    `key` and the problem's id name the random streams; `on_progress` is told how many completions have just ended.
    Raises `ValueError` without problems, `UsageError` and `BrokenInputError` as the template does.
    """
    if not problems:
        raise ValueError("there must be a problem to evaluate on")
    prompts = [render(template, problem.prompt, tokenizer) for problem in problems]
    requests = [
        Request(tuple(tokenizer.encode_prompt(prompt)), f"{key}/{problem.id}", samples)
        for prompt, problem in zip(prompts, problems, strict=True)
    ]
    judge = RolloutJudge(judges, tokenizer, problems, prompts, on_progress)
    sampled = engine.generate(requests, sampling, seed, judge.on_finished)
    parts = zip(problems, prompts, judge.judged(sampled), strict=True)
    return HeldOutResult([_with_tokens(judged_problem(*part), own) for part, own in zip(parts, sampled, strict=True)])


def _with_tokens(judged: JudgedProblem, completions: Sequence[Completion]) -> JudgedProblem:
    """The same with what is known of each token."""
    rollouts = [
        replace(
            row,
            version=completion.oldest_version if completion.versions else None,
            versions=completion.versions,
            token_ids=completion.ids,
            logprobs=completion.logprobs,
            entropies=completion.entropies,
        )
        for row, completion in zip(judged.rollouts, completions, strict=True)
    ]
    return replace(judged, rollouts=rollouts)


def judged_problem(problem: Problem, prompt: str, completions: Sequence[JudgedText]) -> JudgedProblem:
    """The completions of one problem as rows, with their votes. What is unfinished casts no vote."""
    rollouts: list[RolloutRow] = []
    votes: list[str | None] = []
    for sample, judged in enumerate(completions):
        split, correct = judged.split, judged.verdict.correct
        finished = split.answer is not None and is_finished(split, judged.finish_reason)
        votes.append(vote_key(split.answer or "", problem) if finished else None)
        rollouts.append(
            RolloutRow(
                problem_id=problem.id,
                task=problem.task,
                prompt=prompt,
                sample=sample,
                text=judged.text,
                thinking=split.thinking,
                answer=split.answer,
                rewards={"accuracy": float(correct)},
                correct=correct,
                finish_reason=judged.finish_reason,
                length=judged.length,
                language=problem.language,
                difficulty=problem.difficulty,
                reference=problem.reference,
                split="test",
            )
        )
    verdicts = [judged.verdict for judged in completions]
    return JudgedProblem(problem, rollouts, _grouped(problem, votes, rollouts), verdicts)


def thinking_consistency(thinking: str, language: str) -> float | None:
    """Words of the thinking in the problem's language / all its words [R1 2.3.2].

    None where there is no word, or where the language is none that can be told from others.
    """
    return consistency(thinking, language) if base_language(language) in LANGUAGES else None


def engine_sampling(settings: SamplingSettings, tokenizer: Tokenizer) -> Sampling:
    """A recipe's sampling settings as the engine takes them: a completion ends with the tokenizer's end token."""
    return Sampling(
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        stop=settings.stop,
        stop_ids=tokenizer.eos_ids,
    )


def _grouped(problem: Problem, votes: list[str | None], rollouts: Sequence[RolloutRow]) -> list[str | None]:
    """The votes with one name for all that the verifier finds equal, though their canonical forms differ."""
    if problem.verifier != "math":
        return votes
    verify = get_verifier(problem.verifier).verify
    answers = {vote: row.answer or "" for vote, row in zip(votes, rollouts, strict=True) if vote is not None}

    def equal(vote: str, name: str) -> bool:
        # a unit may be left out in an answer, but not in a reference
        return verify(answers[vote], answers[name]).correct or verify(answers[name], answers[vote]).correct

    return group_answers(votes, equal)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else math.nan
