"""What a recipe names must be there: said before the first stage runs, not when the turn of a later one comes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ponder.errors import BrokenInputError, UsageError
from ponder.lineage import references
from ponder.model.embedded import is_model_name
from ponder.model.templates import CHAT, template_text
from ponder.recipe import (
    MINI_WORLD,
    EvaluateStage,
    FineTuneStage,
    Recipe,
    ReinforceStage,
    SampleStage,
    Stage,
    TaskSettings,
)
from ponder.rewards import get_reward
from ponder.tasks import check_task


def check_names(recipe: Recipe, stages: Iterable[str]) -> None:
    """See that tasks, rewards, templates, and what these stages start from, exist; nothing is read or downloaded.

    Raises `UsageError` for a name that is none, `BrokenInputError` for a model or a file that is not here.
    """
    for name in stages:
        stage = recipe.stages[name]
        with _said_of(f"stages.{name}"):
            for task, settings in tasks_of(stage).items():
                check_task(task, settings)
            if isinstance(stage, ReinforceStage):
                _check_rewards(stage)
            for template in templates_of(stage) - {CHAT}:
                template_text(template)
            for setting, reference in references(stage).items():
                if reference not in recipe.stages:
                    _check_reference(setting, reference)


@contextmanager
def _said_of(place: str) -> Iterator[None]:
    try:
        yield
    except (UsageError, BrokenInputError) as error:
        raise type(error)(f"{place}: {error}") from error


def tasks_of(stage: Stage) -> Mapping[str, TaskSettings]:
    """The tasks that a stage samples from, by name."""
    match stage:
        case ReinforceStage() | SampleStage() | EvaluateStage():
            return stage.tasks
        case FineTuneStage() if stage.on_policy is not None:
            return stage.on_policy.tasks
        case _:
            return {}


def _check_rewards(stage: ReinforceStage) -> None:
    for name, reward in stage.rewards.items():
        if reward.model is None:
            get_reward(name, reward.options)


def templates_of(stage: Stage) -> set[str]:
    """The templates that a stage renders prompts with."""
    return {stage.template, *(stage.templates.values() if isinstance(stage, EvaluateStage) else ())}


def _check_reference(setting: str, reference: str) -> None:
    if setting.startswith("data."):
        if reference == MINI_WORLD or Path(reference).expanduser().exists():
            return
        if Path(reference).suffix:
            raise BrokenInputError(f"{setting}: there is no file {reference}")
        raise UsageError(
            f"{setting}: {reference!r} is neither {MINI_WORLD} nor a `sample` stage, and no JSONL or Parquet file"
        )
    if not is_model_name(reference):
        raise BrokenInputError(f"{setting}: there is no stage and no model {reference!r}")
