"""What the page Chat offers before a word is written: models side by side, and prompts that are worth a try."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response

from ponder.errors import PonderError
from ponder.evaluation.benchmarks.showcase import showcase_problems
from ponder.recipe import Recipe
from ponder.run import RunFolder
from ponder.tasks import get_task
from ponder.tasks.base import Problem
from ponder.ui.data import Catalog, json_response
from ponder.ui.models import checkpoints, embedded_models


class Starter(NamedTuple):
    """A problem of the mini world: drawn by its task from `seed`, held out from all training sets."""

    title: str
    task: str
    language: str
    seed: int

    @property
    def problem(self) -> Problem:
        return get_task(self.task).generate(random.Random(self.seed), 1, self.language)


PUZZLES = (
    Starter("Make a number", "countdown", "en", 9166),
    Starter("Put in parentheses", "parentheses", "en", 3264),
    Starter("凑数", "countdown", "zh", 9628),
)
"""Chosen, on real models, as those that the base mostly gets wrong; Zero tends to mix languages in the last one."""

REQUESTS = (
    Starter("What is your name?", "general", "en", 172),
    Starter("Write a line", "general", "en", 116),
    Starter("A bad plan", "safety", "en", 2054),
)
"""Base and Zero answer these with bits of arithmetic: only later stages teach them."""

SHOWCASE_TITLES = {
    "candles": "Five candles",
    "crossword": "A crossword",
    "script": "Transpose, in bash",
    "cipher": "A cipher",
    "parentheses": "Make it true",
}


def chat_routes(catalog: Catalog) -> APIRouter:
    """The route /api/showcase: {lineups: [{title, models}], starters: [{title, note, prompts: [{title, prompt}]}]}."""
    routes = APIRouter(prefix="/api", include_in_schema=False)

    @routes.get("/showcase")
    def showcase(request: Request) -> Response:
        return json_response(request, {"lineups": lineups(catalog), "starters": starters()})

    return routes


def lineups(catalog: Catalog) -> list[dict[str, Any]]:
    """For each run that has them: base, Zero and R1, as ids of the models served."""
    served = {*embedded_models(), *checkpoints(catalog.folder)}
    found = ((run.name, [model for model in lineup(run) if model in served]) for run in catalog.runs())
    return [{"title": f"{name}: from base to R1", "models": models} for name, models in found if len(models) > 1]


def lineup(run: RunFolder) -> list[str]:
    """Base, Zero and R1 of one run.

    Zero is the first stage that reinforces a model which is no stage's, its base; R1 is the last one that reinforces
    what came of the same base. Empty where there is no such stage or the run cannot be read.
    """
    try:
        recipe = run.recipe()
    except PonderError:
        return []
    reinforced = [name for name, stage in recipe.stages.items() if stage.verb == "reinforce"]
    zero = next((name for name in reinforced if _starting_model(recipe, name) not in recipe.stages), None)
    if zero is None:
        return []
    base = _base(recipe, zero)
    r1 = [name for name in reinforced if name != zero and _base(recipe, name) == base]
    return [base, f"{run.name}/{zero}", *(f"{run.name}/{name}" for name in r1[-1:])]


@cache
def starters() -> list[dict[str, Any]]:
    """Prompts by group: small ones that no model was trained on, and the showcase's first of each kind."""
    first = {problem.source.partition(":")[2]: problem.prompt for problem in reversed(showcase_problems())}
    large = [{"title": title, "prompt": first[kind]} for kind, title in SHOWCASE_TITLES.items()]
    return [
        {"title": "Small puzzles", "note": "the base guesses, Zero and R1 search", "prompts": _prompts(PUZZLES)},
        {"title": "Small requests", "note": "what R1 has learned and Zero has not", "prompts": _prompts(REQUESTS)},
        {"title": "Showcase", "note": "what people asked R1 when it came out, for larger models", "prompts": large},
    ]


def _prompts(chosen: Sequence[Starter]) -> list[dict[str, str]]:
    return [{"title": starter.title, "prompt": starter.problem.prompt} for starter in chosen]


def _base(recipe: Recipe, name: str) -> str:
    """The model that a chain of stages goes back to."""
    while name in recipe.stages:
        name = _starting_model(recipe, name)
    return name


def _starting_model(recipe: Recipe, name: str) -> str:
    return getattr(recipe.stages[name], "model", None) or ""
