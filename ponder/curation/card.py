"""The data card: what was asked for, where the examples come from, what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ponder.curation.keep import RULES, SELECTION
from ponder.curation.rewrite import FAULTS
from ponder.recipe import SampleStage
from ponder.store.datasets import Example
from ponder.text.overlap import words

CONTAMINATED = "contaminated"
REASONS = (*RULES, *SELECTION, *FAULTS, CONTAMINATED)
"""Why an example is dropped, in the order in which that is looked at."""


def data_card(
    stage: SampleStage,
    name: str,
    seed: int,
    examples: Sequence[Example],
    *,
    sampled: int,
    read: Mapping[str, int],
    broken: Mapping[str, int],
    dropped: Mapping[str, int],
    decontamination: Mapping[str, Any],
) -> dict[str, Any]:
    """The card of a data set. `sampled` and `read` (by source) less all that was `dropped` is what was kept."""
    return {
        "stage": name,
        "model": stage.model,
        "seed": seed,
        "sampled": sampled,
        "kept": len(examples),
        "without thinking": sum(not example.thinking for example in examples),
        "rewriter": _rewriter(stage),
        "read": dict(read),
        "rows that could not be used": dict(broken),
        "dropped": {reason: dropped.get(reason, 0) for reason in REASONS},
        "kept by source": _counts(example.source for example in examples),
        "kept by domain": _counts(example.domain for example in examples),
        "kept by language": _counts(example.language for example in examples),
        "mean words": {
            part: round(fmean(len(words(getattr(example, part))) for example in examples), 1)
            for part in ("prompt", "thinking", "answer")
        },
        "decontamination": dict(decontamination),
        "settings": stage.model_dump(mode="json"),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _rewriter(stage: SampleStage) -> str | None:
    if stage.rewrite is None:
        return None
    return stage.rewrite.by if stage.rewrite.endpoint is None else stage.rewrite.endpoint.model
