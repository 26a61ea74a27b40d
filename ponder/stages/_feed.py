"""Where the groups of a step come from: problems drawn, asked of an engine, judged; and three schedules of asking.

    Synchronous      sample under the newest weights, then update
    OneStepBehind    while a batch trains, the next one is sampled under the weights from before
    Asynchronous     rollouts are always under way and go on under new weights; a step takes those that are done

The cursor names the next problem, so that a state of a few numbers is all that a resume needs. `OneStepBehind` asks for
nothing ahead where a step is followed by a pause (an evaluation, a checkpoint): a run that goes on from there samples
what an unbroken one does, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ponder.errors import UsageError
from ponder.evaluation.heldout import engine_sampling
from ponder.model.templates import render
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import ReinforceStage
from ponder.rewards import RolloutJudge
from ponder.rollout.base import Completion, Engine, PoolEngine, Request, Sampling, Ticket
from ponder.run import StageContext
from ponder.stages._groups import Group
from ponder.tasks import MAX_REPEATS, ProblemStream
from ponder.tasks.base import Problem, content_hash


@dataclass(frozen=True)
class Asked:
    """Problems as an engine is asked for them, and the judge that takes the completions as they end."""

    problems: list[Problem]
    prompts: list[str]
    requests: list[Request]
    judge: RolloutJudge


class Asker:
    """Turns problems into requests, and completions into judged groups."""

    def __init__(self, stage: ReinforceStage, context: StageContext, tokenizer: Tokenizer) -> None:
        self.stage = stage
        self.context = context
        self.tokenizer = tokenizer
        self.sampling: Sampling = engine_sampling(stage.sampling, tokenizer)
        self.waited = 0.0
        """Seconds in which generation was done and verdicts were not; whoever reads it sets it back."""
        self._done = 0
        self._expected = 0
        self._streams: dict[frozenset[str], ProblemStream] = {}

    def problems(self, step: int, cursor: int, count: int) -> tuple[list[Problem], int]:
        """The next problems of the tasks that have begun by this step, and the cursor after them."""
        begun = {name: task for name, task in self.stage.tasks.items() if task.from_step <= step}
        names = frozenset(begun)
        if names not in self._streams:  # which reads the tasks' files
            self._streams[names] = ProblemStream(begun, "train", self.context.seed)
        return self._streams[names].take(cursor, count)

    def ask(self, step: int, problems: Sequence[Problem]) -> Asked:
        """Requests for `group_size` completions of each problem, for step number `step` (from 1)."""
        prompts = [render(self.stage.template, p.prompt, self.tokenizer) for p in problems]
        requests = [
            Request(
                tuple(self.tokenizer.encode_prompt(prompt)),
                f"{self.context.stage_name}/{step - 1}/{problem.id}",
                self.stage.group_size,
            )
            for prompt, problem in zip(prompts, problems, strict=True)
        ]
        judge = RolloutJudge(self.context.judges, self.tokenizer, problems, prompts, self._on_progress)
        return Asked(list(problems), prompts, requests, judge)

    def generate(self, engine: Engine, asked: Asked) -> list[Group]:
        """Ask, and wait for the groups."""
        self.expect(len(asked.problems))
        seed = self.context.seed
        return self.groups(asked, engine.generate(asked.requests, self.sampling, seed, asked.judge.on_finished))

    def begin(self, engine: PoolEngine, asked: Asked) -> Ticket:
        """Ask without waiting."""
        return engine.begin(asked.requests, self.sampling, self.context.seed, asked.judge.on_finished)

    def expect(self, groups: int) -> None:
        """Start the display of a step's progress anew."""
        self._done, self._expected = 0, groups * self.stage.group_size

    def groups(self, asked: Asked, sampled: Sequence[Sequence[Completion]]) -> list[Group]:
        """What an engine returned, judged."""
        generated = time.monotonic()
        judged = asked.judge.judged(sampled)
        self.waited += time.monotonic() - generated
        return [
            Group(
                problem=problem,
                prompt=prompt,
                prompt_ids=request.prompt_ids,
                completions=[one.completion for one in group],
                texts=[one.text for one in group],
                splits=[one.split for one in group],
                verdicts=[one.verdict for one in group],
            )
            for problem, prompt, request, group in zip(
                asked.problems, asked.prompts, asked.requests, judged, strict=True
            )
        ]

    def _on_progress(self, count: int) -> None:
        self._done += count
        self.context.reporter.within(min(self._done, self._expected), self._expected)


Publish = Callable[[], None]
"""Hands the trainer's newest weights to the engine; nothing where it has them."""


class Feed(Protocol):
    """Gives a step its groups."""

    cursor: int

    def take(self, step: int, pause_follows: bool) -> list[Group]:
        """`prompts_per_step` groups of different problems for step number `step` (from 1)."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resume needs."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there; what is under way is forgotten."""
        ...


class Synchronous:
    """Sample, then update: every rollout is of the newest policy."""

    def __init__(self, asker: Asker, engine: Engine, publish: Publish) -> None:
        self.asker = asker
        self.engine = engine
        self.publish = publish
        self.cursor = 0

    def take(self, step: int, pause_follows: bool) -> list[Group]:
        return self.sample(step, self.draw(step, self.asker.stage.prompts_per_step))

    def draw(self, step: int, count: int) -> list[Problem]:
        """The next problems."""
        problems, self.cursor = self.asker.problems(step, self.cursor, count)
        return problems

    def sample(self, step: int, problems: Sequence[Problem]) -> list[Group]:
        """Their groups, under the newest weights."""
        self.publish()
        return self.asker.generate(self.engine, self.asker.ask(step, problems))

    def state(self) -> dict[str, Any]:
        return {"cursor": self.cursor}

    def load_state(self, state: dict[str, Any]) -> None:
        self.cursor = state["cursor"]


class OneStepBehind(Synchronous):
    """The next batch is sampled while this one trains, under the weights from before the update."""

    engine: PoolEngine

    def __init__(self, asker: Asker, engine: PoolEngine, publish: Publish) -> None:
        super().__init__(asker, engine, publish)
        self._ahead: tuple[Asked, Ticket] | None = None
        self._ahead_from = 0
        """The cursor before what was asked ahead."""

    def take(self, step: int, pause_follows: bool) -> list[Group]:
        asked, ticket = self._ahead or self._begin(step)
        self.asker.expect(len(asked.problems))
        completions = self.engine.finish(ticket)
        self._ahead = None if pause_follows else self._begin(step + 1)
        return self.asker.groups(asked, completions)

    def _begin(self, step: int) -> tuple[Asked, Ticket]:
        self.publish()
        self._ahead_from = self.cursor
        asked = self.asker.ask(step, self.draw(step, self.asker.stage.prompts_per_step))
        return asked, self.asker.begin(self.engine, asked)

    def state(self) -> dict[str, Any]:
        """A stop between two pauses finds a batch under way: it is asked for again, under newer weights."""
        return {"cursor": self.cursor if self._ahead is None else self._ahead_from}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        self.engine.forget()
        self._ahead = None


@dataclass(frozen=True)
class _UnderWay:
    """A group that was asked for, and the step before which that was."""

    cursor: int
    step: int
    asked: Asked
    ticket: Ticket


class Asynchronous:
    """Rollouts are under way at all times; each step takes the groups that are done first.

    At most `max_staleness` updates lie between the policy of a rollout's oldest token and the one that learns from it:
    no more than (max_staleness + 1) batches are under way [AReaL, Eq. 3], and a group that would grow too old is waited
    for. Every step has as many groups. New weights reach what is under way between two tokens.
    """

    def __init__(self, asker: Asker, engine: PoolEngine, publish: Publish, max_staleness: int) -> None:
        self.asker = asker
        self.engine = engine
        self.publish = publish
        self.max_staleness = max_staleness
        self.cursor = 0
        self._under_way: list[_UnderWay] = []

    def take(self, step: int, pause_follows: bool) -> list[Group]:
        self.publish()
        count = self.asker.stage.prompts_per_step
        while len(self._under_way) < count * (1 + self.max_staleness):
            self._ask_another(step)
        self.asker.expect(count)
        first = self._first(step, count)
        taken = [one for one in self._under_way if one.ticket in first]
        self._under_way = [one for one in self._under_way if one.ticket not in first]
        return [group for one in taken for group in self.asker.groups(one.asked, self.engine.finish(one.ticket))]

    def _first(self, step: int, count: int) -> set[Ticket]:
        """The `count` groups that are done first, so far as the others can all be taken, `count` a step, in time."""
        first: set[Ticket] = set()
        for slack in range(self.max_staleness + 1):
            # asked for before step s, so sampled under version s - 1 or later, and step - 1 is the policy that learns
            # now: these may wait for `slack` steps more
            due = [one.ticket for one in self._under_way if one.step + self.max_staleness <= step + slack]
            due = [ticket for ticket in due if ticket not in first]
            if (too_many := len(due) - slack * count) > 0:
                first |= self.engine.finish_any(due, too_many)
        return first

    def _ask_another(self, step: int) -> None:
        """The next problem that is not under way: two groups of one problem would be two baselines for it."""
        busy = {content_hash(one.asked.problems[0]) for one in self._under_way}
        for _ in range(MAX_REPEATS):
            cursor = self.cursor
            (problem,), self.cursor = self.asker.problems(step, cursor, 1)
            if content_hash(problem) not in busy:
                self._begin(cursor, step, problem)
                return
        raise UsageError(
            f"tasks: only {len(busy)} different problems turned up, and (1 + max_staleness) x prompts_per_step are "
            "under way at once: raise `difficulty`, or lower `prompts_per_step` or cluster.max_staleness"
        )

    def _begin(self, cursor: int, step: int, problem: Problem) -> None:
        asked = self.asker.ask(step, [problem])
        ticket = self.asker.begin(self.engine, asked)
        self._under_way.append(_UnderWay(cursor, step, asked, ticket))

    def state(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "under_way": [(one.cursor, one.step) for one in self._under_way]}

    def load_state(self, state: dict[str, Any]) -> None:
        """What was under way is asked for again, by its own name, under the newest weights."""
        self.engine.forget()
        self.cursor, self._under_way = state["cursor"], []
        self.publish()
        for cursor, step in state["under_way"]:
            (problem,), _ = self.asker.problems(step, cursor, 1)
            self._begin(cursor, step, problem)
