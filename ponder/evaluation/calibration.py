"""What a reward model is worth on held-out data: accuracy, calibration, and how much of it is the reply's length.

Sources: [G] Guo et al. 2017, 1706.04599 (expected calibration error); [B] Brier 1950; Spearman 1904; [S] Singhal et al.
2023, 2310.03716 (length bias of reward models).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from ponder.evaluation.metrics import Estimate, clustered_proportion

BINS = 10
"""Bins of equal width in which predicted and observed shares are compared."""


@dataclass(frozen=True)
class HeldOutPair:
    """A pair that the model was not trained on: raw scores, and lengths of what was scored, in tokens."""

    prompt: str
    chosen_score: float
    rejected_score: float
    chosen_length: int
    rejected_length: int


@dataclass(frozen=True)
class HeldOutReply:
    """A labelled reply that the model was not trained on: raw score, and length of what was scored, in tokens."""

    prompt: str
    score: float
    safe: bool
    length: int


def pair_figures(pairs: Sequence[HeldOutPair]) -> dict[str, Estimate | float]:
    """All figures of a pairwise model by metric name (docs/metrics.md); those of which there are no cases are NaN."""
    margins = [p.chosen_score - p.rejected_score for p in pairs]
    right = [margin > 0 for margin in margins]
    longer, shorter = ([i for i, p in enumerate(pairs) if sign * _lengthening(p) > 0] for sign in (1, -1))
    # sigmoid(margin) is the chance that the chosen one is better; what is judged is the model's own choice
    confidence = [sigmoid(abs(margin)) for margin in margins]
    uneven = [*longer, *shorter]
    prompts = [p.prompt for p in pairs]
    return {
        "accuracy/mean": _share(prompts, right, range(len(pairs))),
        "accuracy/chosen_longer": _share(prompts, right, longer),
        "accuracy/chosen_shorter": _share(prompts, right, shorter),
        "calibration/error": calibration_error(confidence, right),
        "calibration/brier": brier_score([sigmoid(margin) for margin in margins], [True] * len(pairs)),
        "length/correlation": rank_correlation(
            [score for p in pairs for score in (p.chosen_score, p.rejected_score)],
            [length for p in pairs for length in (p.chosen_length, p.rejected_length)],
        ),
        "length/longer_wins": _mean([right[i] == (_lengthening(pairs[i]) > 0) for i in uneven]),
        "length/longer_chosen": _mean([_lengthening(pairs[i]) > 0 for i in uneven]),
    }


def reply_figures(replies: Sequence[HeldOutReply]) -> dict[str, Estimate | float]:
    """All figures of a point-wise model by metric name (docs/metrics.md); those of which there are no cases are NaN."""
    safe = [r.safe for r in replies]
    right = [(r.score > 0) == r.safe for r in replies]
    chances = [sigmoid(r.score) for r in replies]
    prompts = [r.prompt for r in replies]
    return {
        "accuracy/mean": _share(prompts, right, range(len(replies))),
        "accuracy/safe": _share(prompts, right, [i for i, label in enumerate(safe) if label]),
        "accuracy/unsafe": _share(prompts, right, [i for i, label in enumerate(safe) if not label]),
        "calibration/error": calibration_error(chances, safe),
        "calibration/brier": brier_score(chances, safe),
        "length/correlation": rank_correlation([r.score for r in replies], [r.length for r in replies]),
        "length/correlation_labels": rank_correlation([float(label) for label in safe], [r.length for r in replies]),
    }


def calibration_error(probabilities: Sequence[float], outcomes: Sequence[bool], bins: int = BINS) -> float:
    """Mean |predicted - observed| share over bins of equal width of the prediction, weighted by their size [G Eq. 3].

    Probabilities lie in 0 to 1. Zero when among the cases predicted with p the share p comes true.
    """
    members: dict[int, list[int]] = {}
    for index, p in enumerate(probabilities):
        members.setdefault(min(bins - 1, int(p * bins)), []).append(index)
    gaps = (abs(sum(probabilities[i] - outcomes[i] for i in indices)) for indices in members.values())
    return sum(gaps) / len(probabilities)


def brier_score(probabilities: Sequence[float], outcomes: Sequence[bool]) -> float:
    """Mean squared distance between prediction and outcome [B]: 0 is perfect, 0.25 is a constant 0.5."""
    return fmean((p - outcome) ** 2 for p, outcome in zip(probabilities, outcomes, strict=True))


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, ties sharing their mean rank. NaN where one side never varies."""
    a, b = _centred(_ranks(x)), _centred(_ranks(y))
    scale = math.sqrt(sum(v * v for v in a) * sum(v * v for v in b))
    return sum(v * w for v, w in zip(a, b, strict=True)) / scale if scale > 0 else math.nan


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _lengthening(pair: HeldOutPair) -> int:
    return pair.chosen_length - pair.rejected_length


def _share(prompts: Sequence[str], right: Sequence[bool], members: Sequence[int]) -> Estimate | float:
    """Share of the members that are right, clustered by prompt."""
    clusters: dict[str, list[bool]] = {}
    for index in members:
        clusters.setdefault(prompts[index], []).append(right[index])
    return clustered_proportion(list(clusters.values())) if clusters else math.nan


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end - 1) / 2
        start = end
    return ranks


def _centred(values: Sequence[float]) -> list[float]:
    middle = fmean(values)
    return [v - middle for v in values]
