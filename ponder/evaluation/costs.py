"""What a run cost: time, tokens, core-hours and GPU-hours, a stage at a time and in all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ponder.progress import duration
from ponder.recipe import (
    EvaluateStage,
    FineTuneStage,
    Recipe,
    ReinforceStage,
    RewardModelsSettings,
    RolloutWorkersSettings,
    SampleStage,
    Stage,
    TrainerRanksSettings,
    TrainRewardStage,
)
from ponder.run import StageRecord
from ponder.store.metrics import Line


class Held(NamedTuple):
    """What a stage keeps to itself while it runs."""

    cores: float
    gpus: float


def holds(stage: Stage, recipe: Recipe, threads: int, gpu_here: bool) -> Held:
    """The driver's threads, and its GPU if it computes on one; of every worker and rank what the recipe gives it.

    A worker's cores are those that Ray reserves for it, or its threads where they are more. The processes that judge
    answers count for nothing. `gpu_here`: whether the driver has a GPU.
    """
    cluster, judges = recipe.cluster, len(stage.reward_models) if isinstance(stage, ReinforceStage) else 0
    samples = isinstance(stage, ReinforceStage | EvaluateStage) or (
        isinstance(stage, SampleStage) and stage.model is not None
    )
    trains = isinstance(stage, ReinforceStage | FineTuneStage | TrainRewardStage)
    if cluster.kind == "local":
        return Held(threads, float(gpu_here and (samples or trains)))
    separate = cluster.reward_models.place == "separate"
    others: list[tuple[int, RolloutWorkersSettings | TrainerRanksSettings | RewardModelsSettings]] = [
        (samples * cluster.rollout.workers, cluster.rollout),
        (trains * cluster.trainer.ranks, cluster.trainer),
        (separate * judges, cluster.reward_models),
    ]
    return Held(
        threads + sum(count * max(each.cpus, each.threads) for count, each in others),
        float(gpu_here and judges > 0 and not separate) + sum(count * each.gpus for count, each in others),
    )


@dataclass(frozen=True)
class Cost:
    """Of one stage, or of all. Tokens are None where none were counted."""

    name: str
    seconds: float
    """Wall time over all starts."""
    core_hours: float
    gpu_hours: float
    sampled: int | None
    trained: int | None


def count_tokens(lines: Iterable[Line], name: str) -> int | None:
    """Sum of `tokens/sampled` or `tokens/trained` (`name`) over a stage's metrics; None where nothing counts them."""
    found = [line[name] for line in lines if line.get(name) is not None]
    return round(sum(found)) if found else None


def stage_costs(records: Mapping[str, StageRecord]) -> list[Cost]:
    """The costs of the stages in a manifest that have been started; results set aside are left out."""
    return [
        Cost(name, record.seconds, record.core_hours, record.gpu_hours, record.sampled_tokens, record.trained_tokens)
        for name, record in records.items()
        if "." not in name
    ]


def total(costs: Sequence[Cost]) -> Cost:
    """All stages together."""
    return Cost(
        "in all",
        sum(cost.seconds for cost in costs),
        sum(cost.core_hours for cost in costs),
        sum(cost.gpu_hours for cost in costs),
        _sum(cost.sampled for cost in costs),
        _sum(cost.trained for cost in costs),
    )


def cost_grid(costs: Sequence[Cost]) -> list[list[str]]:
    """The costs as rows of text, their head first and, where there are several, their sum last.

    The last column, GPU-hours, is there where a stage had a GPU.
    """
    head = ["stage", "wall time", "tokens sampled", "tokens trained on", *hours_head(costs)]
    shown = [*costs, total(costs)] if len(costs) > 1 else costs
    return [head, *([*_texts(cost), *hours(cost, costs)] for cost in shown)]


class Counted(Protocol):
    """What has used cores and GPUs: a stage's record, or its cost."""

    @property
    def core_hours(self) -> float: ...

    @property
    def gpu_hours(self) -> float: ...


def hours_head(of: Iterable[Counted]) -> list[str]:
    """The columns of `hours`."""
    return ["core-hours", "GPU-hours"] if any(one.gpu_hours for one in of) else ["core-hours"]


def hours(one: Counted, among: Iterable[Counted]) -> list[str]:
    """Core-hours, and GPU-hours where any of those that stand in the same table has some."""
    return [f"{one.core_hours:.2f}", f"{one.gpu_hours:.2f}"][: len(hours_head(among))]


def _texts(cost: Cost) -> list[str]:
    return [
        cost.name,
        duration(cost.seconds),
        _amount(cost.sampled),
        _amount(cost.trained),
    ]


def _amount(tokens: int | None) -> str:
    return "-" if tokens is None else f"{tokens:,}"


def _sum(amounts: Iterable[int | None]) -> int | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None
