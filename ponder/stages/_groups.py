"""The groups of a step, each the completions of one problem: what they show, and what is kept of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ponder.evaluation.heldout import thinking_consistency
from ponder.evaluation.reflection import count_reflection_words
from ponder.model.parser import Split
from ponder.rewards import status_shares
from ponder.rollout.base import Completion
from ponder.store.rollouts import RolloutRow
from ponder.tasks.base import Problem
from ponder.training.packing import Example
from ponder.training.update import Trajectory, UpdateStatistics
from ponder.verifiers.base import Verdict


@dataclass
class Group:
    """The completions of one problem, judged and rewarded."""

    problem: Problem
    prompt: str
    prompt_ids: tuple[int, ...]
    completions: list[Completion]
    texts: list[str]
    splits: list[Split]
    verdicts: list[Verdict]
    rewards: dict[str, list[float]] = field(default_factory=dict)
    """By name, those that this problem's task gets at this step, before weights."""
    advantages: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    ratios: dict[int, list[float]] = field(default_factory=dict)
    """pi of the trainer / pi of the sampler for each token of the completions that were trained on, by their number."""

    def trajectories(self) -> list[Trajectory]:
        """What the update learns from; the advantages must be there."""
        return [
            Trajectory(Example(self.prompt_ids, tuple(c.ids)), c.logprobs, advantage, c.finish_reason == "length")
            for c, advantage in zip(self.completions, self.advantages, strict=True)
        ]

    def rows(self) -> list[RolloutRow]:
        """What the run folder keeps."""
        return [
            RolloutRow(
                problem_id=self.problem.id,
                task=self.problem.task,
                prompt=self.prompt,
                sample=sample,
                text=self.texts[sample],
                thinking=self.splits[sample].thinking,
                answer=self.splits[sample].answer,
                rewards={name: values[sample] for name, values in self.rewards.items()},
                correct=self.verdicts[sample].correct,
                finish_reason=completion.finish_reason,
                length=len(completion.ids),
                advantage=self.advantages[sample],
                language=self.problem.language,
                difficulty=self.problem.difficulty,
                reference=self.problem.reference,
                token_ids=completion.ids,
                logprobs=completion.logprobs,
                entropies=completion.entropies,
                ratios=self.ratios.get(sample, ()),
                version=completion.oldest_version,
                versions=completion.versions,
            )
            for sample, completion in enumerate(self.completions)
        ]


def rollout_metrics(groups: Sequence[Group], version: int) -> dict[str, float]:
    """What the rollouts of a step show, of which policy `version` learns: see docs/metrics.md."""
    completions = [c for g in groups for c in g.completions]
    correct = [v.correct for g in groups for v in g.verdicts]
    lengths = [len(c.ids) for c in completions]
    logprobs = [x for c in completions for x in c.logprobs]
    entropies = [x for c in completions for x in c.entropies]
    texts = [text for g in groups for text in g.texts]
    shares = [thinking_consistency(s.thinking, g.problem.language) for g in groups for s in g.splits]
    metrics = {
        "reward/mean": _mean([x for g in groups for x in g.total]),
        "accuracy/pass@1": _mean(correct),
        "length/mean": _mean(lengths),
        "length/correct": _mean([n for n, right in zip(lengths, correct, strict=True) if right]),
        "length/wrong": _mean([n for n, right in zip(lengths, correct, strict=True) if not right]),
        "length/truncated_share": _mean([c.finish_reason == "length" for c in completions]),
        "reflection/words_per_response": _mean([count_reflection_words(text) for text in texts]),
        "language/consistency": _mean([share for share in shares if share is not None]),
        # where an engine does not tell: the mean surprise of what was sampled, unbiased without top-p and top-k
        "policy/entropy": _mean(entropies) if entropies else -_mean(logprobs),
        "policy/staleness": _mean([version - c.oldest_version for c in completions]),
        "groups/dead_share": _mean([not any(g.advantages) for g in groups]),
    }
    metrics |= status_shares([v for g in groups for v in g.verdicts])
    names = dict.fromkeys(name for g in groups for name in g.rewards)
    return metrics | {f"reward/{name}": _mean([x for g in groups for x in g.rewards.get(name, ())]) for name in names}


def update_metrics(updates: Sequence[UpdateStatistics]) -> dict[str, float]:
    """What the updates of a step did: means over the updates, and how sampler and trainer differ at the first one."""
    norms = [u.grad_norm for u in updates if u.grad_norm is not None]
    first = updates[0]
    return {
        "loss/policy": _mean([u.loss for u in updates]),
        "grad/norm": _mean(norms),
        "policy/kl": _mean([u.kl for u in updates]),
        "policy/clip_share": _mean([u.clip_share for u in updates]),
        "policy/importance_bounded_share": _mean([u.bounded_share for u in updates]),
        # later updates are off policy by design; the first one shows how well sampler and trainer agree
        "policy/logprob_gap": first.logprob_gap,
        "policy/logprob_gap_mean": first.logprob_gap_mean,
        "policy/sampler_kl": first.sampler_kl,
        "grad/skipped_updates": float(len(updates) - len(norms)),
    }


def _mean(values: Sequence[float]) -> float:
    """NaN for nothing, which metrics.jsonl writes as null."""
    return sum(values) / len(values) if values else math.nan
