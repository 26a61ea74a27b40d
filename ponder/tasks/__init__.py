"""Where problems come from: tasks by name, streams that mix them, and the held-out problems.

A task is found by the name of its module in this folder (see `ponder/tasks/base.py`). In a recipe a name may carry a
label, `countdown:hard`, so that one task can be used twice with different settings.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, runtime_checkable

from ponder.errors import UsageError
from ponder.recipe import TaskSettings
from ponder.tasks.base import Problem, Split, Task, content_hash, split_of
from ponder.verifiers import get_verifier
from ponder.verifiers.base import Verdict

__all__ = [
    "FiniteTask",
    "ProblemStream",
    "SettableTask",
    "check_task",
    "get_task",
    "held_out",
    "task_names",
    "verify_answer",
    "vote_key",
]

MAX_DRAWS = 20_000
"""Draws in a row outside the wanted split after which there is none in it: the test split is a tenth of all."""

MAX_REPEATS = 1_000
"""Problems in a row that were all seen before, after which there are no others."""


@runtime_checkable
class SettableTask(Protocol):
    """A task that cannot generate before it knows its settings; it can verify without them."""

    def configured(self, settings: TaskSettings) -> Task:
        """The same task, ready to generate. Raises `UsageError` or `BrokenInputError`."""
        ...


@runtime_checkable
class FiniteTask(Protocol):
    """A task that holds a list of problems, and knows which split each belongs to."""

    def problems(self, split: Split) -> Sequence[Problem]:
        """All problems of one split, in a fixed order."""
        ...


@cache
def task_names() -> tuple[str, ...]:
    """The names of all tasks, sorted: the modules of this folder but `base` and those that begin with `_`."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in modules if name != "base" and not name.startswith("_")))


def get_task(name: str, settings: TaskSettings | None = None) -> Task:
    """The task of that name; a label after a colon (`countdown:hard`) is ignored.

    Without `settings` the task can verify and, unless it is a `SettableTask`, generate. Raises `UsageError` for an
    unknown name and for settings that the task does not have.
    """
    module_name = name.partition(":")[0]
    if module_name not in task_names():
        near = difflib.get_close_matches(module_name, task_names(), n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(task_names())}"
        raise UsageError(f"tasks: there is no task `{module_name}`: {hint}")
    task: Task = importlib.import_module(f"{__name__}.{module_name}").TASK
    if settings is None:
        return task
    if isinstance(task, SettableTask):
        task = task.configured(settings)
    elif settings.path is not None or settings.options:
        raise UsageError(f"tasks.{name}: the task `{module_name}` makes its own problems and takes no path or options")
    _check_settings(name, task, settings)
    return task


def check_task(name: str, settings: TaskSettings) -> None:
    """Raises `UsageError` as `get_task` does, but reads no file: a `SettableTask` is looked at when it is used."""
    if not isinstance(get_task(name), SettableTask):
        get_task(name, settings)


def verify_answer(answer: str, problem: Problem) -> Verdict:
    """Judge the answer part of a reply, by the problem's verifier or by its task's own rule. Never raises on a text."""
    if problem.verifier:
        return get_verifier(problem.verifier).verify(answer, problem.reference)
    return get_task(problem.task).verify(answer, problem)


def vote_key(answer: str, problem: Problem) -> str | None:
    """The form under which equivalent answers to a problem vote together for cons@k; None if unreadable."""
    if problem.verifier:
        return get_verifier(problem.verifier).vote_key(answer, problem.reference)
    return get_task(problem.task).vote_key(answer, problem)


def difficulty_range(settings: TaskSettings) -> tuple[int, int]:
    """The dial's inclusive range."""
    dial = settings.difficulty
    return (dial, dial) if isinstance(dial, int) else dial


def _check_settings(name: str, task: Task, settings: TaskSettings) -> None:
    low, high = difficulty_range(settings)
    if not 1 <= low <= high <= task.max_difficulty:
        raise UsageError(
            f"tasks.{name}.difficulty must lie in 1..{task.max_difficulty}, lower end first (got {settings.difficulty})"
        )
    unknown = [language for language in settings.languages if language not in task.languages]
    if unknown or not settings.languages:
        raise UsageError(
            f"tasks.{name}.languages must name some of {', '.join(task.languages)} (got {list(settings.languages)})"
        )


@dataclass(frozen=True)
class _Source:
    """One entry of a recipe's `tasks`."""

    name: str
    task: Task
    settings: TaskSettings

    def draw(self, rng: random.Random, split: Split) -> Problem:
        """A problem of the split. Raises `UsageError` when there is none to be found."""
        if isinstance(self.task, FiniteTask):
            problems = self.task.problems(split)
            if problems:
                return self._named(rng.choice(problems))
        else:
            for _ in range(MAX_DRAWS):
                difficulty = rng.randint(*difficulty_range(self.settings))
                problem = self.task.generate(rng, difficulty, rng.choice(self.settings.languages))
                if split_of(problem) == split:
                    return self._named(problem)
        raise UsageError(f"tasks.{self.name}: its settings leave no problem in the {split} split")

    def draw_new(self, rng: random.Random, split: Split, seen: set[str]) -> Problem | None:
        """A problem of the split whose content hash is not in `seen`, to which it is added; None when exhausted."""
        if isinstance(self.task, FiniteTask):
            fresh = [problem for problem in self.task.problems(split) if content_hash(problem) not in seen]
            problem = self._named(rng.choice(fresh)) if fresh else None
        else:
            draws = (self.draw(rng, split) for _ in range(MAX_REPEATS))
            problem = next((drawn for drawn in draws if content_hash(drawn) not in seen), None)
        if problem is not None:
            seen.add(content_hash(problem))
        return problem

    def _named(self, problem: Problem) -> Problem:
        return replace(problem, source=self.name)


def _sources(tasks: Mapping[str, TaskSettings]) -> list[_Source]:
    if not tasks:
        raise UsageError("tasks must name at least one source of problems")
    return [_Source(name, get_task(name, settings), settings) for name, settings in sorted(tasks.items())]


class ProblemStream:
    """An endless stream of problems of one split, mixed by weight, difficulty and language.

    Problem number i depends only on (tasks, split, seed, i), so the position is all that an exact resume needs.
    Raises `UsageError` for unknown tasks and wrong settings.
    """

    def __init__(self, tasks: Mapping[str, TaskSettings], split: Split, seed: int) -> None:
        self._sources = _sources(tasks)
        self._weights = [source.settings.weight for source in self._sources]
        self._split: Split = split
        self._seed = seed

    def __getitem__(self, number: int) -> Problem:
        rng = random.Random(f"{self._split} problem {number} of stream {self._seed}")
        source = rng.choices(self._sources, self._weights)[0]
        return source.draw(rng, self._split)

    def take(self, cursor: int, num_problems: int) -> tuple[list[Problem], int]:
        """`num_problems` different problems (by content) from number `cursor` on, and the cursor after them.

        A step of GRPO must not hold a problem twice: two groups of one problem would be two baselines for it.
        Raises `UsageError` when the tasks have too few different problems.
        """
        taken: dict[str, Problem] = {}
        repeats = 0
        while len(taken) < num_problems:
            problem = self[cursor]
            cursor += 1
            repeats = repeats + 1 if content_hash(problem) in taken else 0
            taken.setdefault(content_hash(problem), problem)
            if repeats == MAX_REPEATS:
                raise UsageError(
                    f"tasks: only {len(taken)} different problems turned up where {num_problems} are needed at once; "
                    "raise `difficulty` or lower `prompts_per_step`"
                )
        return list(taken.values()), cursor


def held_out(tasks: Mapping[str, TaskSettings], num_problems: int, seed: int) -> list[Problem]:
    """`num_problems` different problems of the test split, spread evenly over the tasks (weights do not matter).

    Tasks whose prompts no rule can judge are left out. The same arguments give the same problems. None of them is ever
    in a training stream. Raises `UsageError` when a task has too few, or when no task can be judged.
    """
    judged = {name: settings for name, settings in tasks.items() if settings.answer_field}
    if tasks and not judged:
        raise UsageError(
            f"tasks.{min(tasks)}: no rule judges these prompts, so there is nothing to measure: add a task with an "
            "`answer_field`, or evaluate `every` 0 steps"
        )
    sources = _sources(judged)
    seen: set[str] = set()
    drawn: list[Problem] = []
    for position, source in enumerate(sources):
        share = num_problems // len(sources) + (position < num_problems % len(sources))
        rng = random.Random(f"held-out problems of {source.name}, seed {seed}")
        for found in range(share):
            problem = source.draw_new(rng, "test", seen)
            if problem is None:
                raise UsageError(
                    f"tasks.{source.name}: only {found} different test problems are to be found, and {share} are "
                    "needed; raise `difficulty` or lower the number of held-out `problems`"
                )
            drawn.append(problem)
    return drawn
