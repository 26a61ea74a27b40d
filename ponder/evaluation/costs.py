"""What a run cost: time, tokens and core-hours, a stage at a time and in all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ponder.progress import duration
from ponder.run import StageRecord
from ponder.store.metrics import Line


@dataclass(frozen=True)
class Cost:
    """Of one stage, or of all. Tokens are None where none were counted."""

    name: str
    seconds: float
    """Wall time over all starts."""
    core_seconds: float
    """Wall time x threads."""
    sampled: int | None
    trained: int | None


def count_tokens(lines: Iterable[Line], name: str) -> int | None:
    """Sum of `tokens/sampled` or `tokens/trained` (`name`) over a stage's metrics; None where nothing counts them."""
    found = [line[name] for line in lines if line.get(name) is not None]
    return round(sum(found)) if found else None


def stage_costs(records: Mapping[str, StageRecord]) -> list[Cost]:
    """The costs of the stages in a manifest that have been started; results set aside are left out."""
    return [
        Cost(name, record.seconds, record.seconds * record.threads, record.sampled_tokens, record.trained_tokens)
        for name, record in records.items()
        if "." not in name
    ]


def total(costs: Sequence[Cost]) -> Cost:
    """All stages together."""
    return Cost(
        "in all",
        sum(cost.seconds for cost in costs),
        sum(cost.core_seconds for cost in costs),
        _sum(cost.sampled for cost in costs),
        _sum(cost.trained for cost in costs),
    )


def cost_grid(costs: Sequence[Cost]) -> list[list[str]]:
    """The costs as rows of text, their head first and, where there are several, their sum last."""
    head = ["stage", "wall time", "tokens sampled", "tokens trained on", "core-hours"]
    shown = [*costs, total(costs)] if len(costs) > 1 else costs
    return [head, *map(_texts, shown)]


def _texts(cost: Cost) -> list[str]:
    return [
        cost.name,
        duration(cost.seconds),
        _amount(cost.sampled),
        _amount(cost.trained),
        f"{cost.core_seconds / 3600:.2f}",
    ]


def _amount(tokens: int | None) -> str:
    return "-" if tokens is None else f"{tokens:,}"


def _sum(amounts: Iterable[int | None]) -> int | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None
