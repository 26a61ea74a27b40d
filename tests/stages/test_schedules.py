"""Synchronous, one step behind, asynchronous: what each samples under which weights, and what a resume makes of it."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import Done, make_recipe, same_weights, timeless

from ponder.cluster.backend import LocalBackend
from ponder.errors import InterruptedRunError, LostWorkersError, UsageError
from ponder.model.folder import LoadedModel
from ponder.pipeline import run_pipeline
from ponder.recipe import AlgorithmSettings, ClusterSettings, ImportanceSettings, Recipe, load_recipe
from ponder.rollout.base import Completion, OnFinished, Request, Sampling, Ticket
from ponder.rollout.native import NativeSession
from ponder.stages._feed import Asked, Asynchronous
from ponder.stages.reinforce import Reinforcement, resolve_algorithm
from ponder.tasks import file
from ponder.tasks._table import load_table
from ponder.tasks.base import Problem
from ponder.training.trainer import LocalTrainer, TrainerSettings


class InlinePool:
    """A `PoolEngine` in this process: one session over a copy of the model, which goes on whenever it is waited for."""

    def __init__(self, model: LoadedModel) -> None:
        self.decoder = copy.deepcopy(model.decoder)
        self.decode = model.tokenizer.decode
        self.version = 0
        self.forget()

    def load_weights(self, version: int, weights: Mapping[str, torch.Tensor]) -> None:
        self.version = version
        self.session.load_weights(version, weights)

    def forget(self) -> None:
        """The next session keeps the weights, as a worker's replacement gets them."""
        self.session = NativeSession(self.decoder, self.decode, version=self.version)
        self.open: set[Ticket] = set()
        self.batches: dict[Ticket, tuple[int, Sequence[Request], OnFinished | None]] = {}
        self.results: dict[int, dict[int, Completion]] = {}
        self.count = 0

    def begin(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> Ticket:
        ticket = len(self.batches)
        self.open.add(ticket)
        self.batches[ticket] = (self.count, requests, on_finished)
        self.results |= {self.count + i: {} for i in range(len(requests))}
        self.count += len(requests)
        self.session.add(requests, sampling, seed)
        return ticket

    def is_done(self, ticket: Ticket) -> bool:
        first, requests, _ = self.batches[ticket]
        return all(len(self.results[first + i]) == r.num_samples for i, r in enumerate(requests))

    def go_on(self) -> None:
        for number, sample, completion in self.session.step():
            self.results[number][sample] = completion
            for first, requests, on_finished in self.batches.values():
                if first <= number < first + len(requests) and on_finished is not None:
                    on_finished([(number - first, sample, completion)])

    def finish(self, ticket: Ticket) -> list[list[Completion]]:
        while not self.is_done(ticket):
            self.go_on()
        self.open.remove(ticket)
        first, requests, _ = self.batches[ticket]
        return [[self.results[first + i][s] for s in range(r.num_samples)] for i, r in enumerate(requests)]

    def finish_any(self, tickets: Sequence[Ticket], count: int) -> set[Ticket]:
        while sum(map(self.is_done, tickets)) < count:
            self.go_on()
        return set([ticket for ticket in tickets if self.is_done(ticket)][:count])

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, seed: int, on_finished: OnFinished | None = None
    ) -> list[list[Completion]]:
        return self.finish(self.begin(requests, sampling, seed, on_finished))


class InlineBackend(LocalBackend):
    """Trains in this process, samples from an `InlinePool`."""

    def __init__(self, model: LoadedModel, settings: TrainerSettings) -> None:
        self.trainer = LocalTrainer(model.decoder, settings)
        self.engine: Any = InlinePool(model)
        self.published = -1

    def publish(self) -> None:
        if self.published != self.trainer.version:
            self.engine.load_weights(self.trainer.version, copy.deepcopy(self.trainer.model.state_dict()))
            self.published = self.trainer.version

    def recover(self) -> None:
        self.engine.forget()
        self.published = -1


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the tiny recipe under a schedule, over an `InlineBackend`; `folder` names the run."""

    def open_backend(self: Reinforcement) -> Any:
        stage = self.stage
        return InlineBackend(
            self.model,
            TrainerSettings(
                stage.optimizer,
                stage.steps,
                8192,
                self.algorithm,
                stage.sampling.temperature,
                stage.sampling.max_tokens,
            ),
        )

    monkeypatch.setattr(Reinforcement, "_open_backend", open_backend)

    def run(folder: str, schedule: str, max_staleness: int = 1, **changes: Any) -> Done:
        cluster = {"kind": "ray", "schedule": schedule, "max_staleness": max_staleness, "max_restarts": 2}
        recipe = make_recipe(model_folder, **({"steps": 8, "checkpoint_every": 4} | changes))
        run_pipeline(Recipe.model_validate(recipe.model_dump() | {"cluster": cluster}), tmp_path / folder, quiet=True)
        return Done(tmp_path / folder)

    return run


def stalenesses(done: Done) -> list[list[int]]:
    """For each step, how many updates lie between each rollout's oldest token and the policy that learns from it."""
    found: dict[int, list[int]] = {}
    for row in done.rollouts():
        assert row.version is not None
        found.setdefault(row.step, []).append(row.step - 1 - row.version)
    return [found[step] for step in sorted(found)]


def assert_whole(done: Done) -> None:
    """Every step has its two problems, each sampled four times, and no problem is trained on twice."""
    for step in range(1, 9):
        rows = [row for row in done.rollouts() if row.step == step]
        assert Counter(row.sample for row in rows) == dict.fromkeys(range(4), 2)
        assert set(Counter(row.problem_id for row in rows).values()) == {4}
    assert len({row.problem_id for row in done.rollouts()}) == 16


def test_synchronous_rollouts_are_of_the_newest_policy(run: Run) -> None:
    done = run("run", "synchronous")
    assert_whole(done)
    assert stalenesses(done) == [[0] * 8] * 8


def test_one_step_behind_is_one_step_behind_but_after_a_pause(run: Run) -> None:
    """Checkpoints after steps 4 and 8: steps 1 and 5 sample under the newest weights."""
    done = run("run", "one_step_behind")
    assert_whole(done)
    assert stalenesses(done) == [[behind] * 8 for behind in (0, 1, 1, 1, 0, 1, 1, 1)]
    assert done.series("policy/staleness") == [0, 1, 1, 1, 0, 1, 1, 1]


def test_the_trainer_sees_how_far_the_sampler_is(run: Run) -> None:
    done = run("run", "one_step_behind")
    gaps = done.series("policy/logprob_gap")
    assert max(gaps[0], gaps[4]) < 1e-5
    assert min(gaps[1:4]) > 1e-4


@pytest.mark.parametrize("limit", [1, 3])
def test_asynchronous_rollouts_are_never_staler_than_the_limit(run: Run, limit: int) -> None:
    done = run("run", "asynchronous", limit, sampling={"max_tokens": 40})
    assert_whole(done)
    found = stalenesses(done)
    assert found[0] == [0] * 8
    assert max(max(step) for step in found) == limit
    mixed = [row for row in done.rollouts() if row.versions and len(row.versions) > 1]
    assert mixed, "no rollout went on under new weights"
    for row in mixed:
        starts, versions = zip(*row.versions, strict=True)
        assert starts[0] == 0
        assert list(starts) == sorted(set(starts))
        assert list(versions) == sorted(set(versions))
        assert versions[0] == row.version
        assert versions[-1] <= row.step - 1
        assert starts[-1] < row.length


class CountingAsker:
    """Asks for groups that are no more than a number, two a step."""

    stage = SimpleNamespace(prompts_per_step=2)

    def problems(self, step: int, cursor: int, count: int) -> tuple[list[Problem], int]:
        return [Problem(task="count", prompt="", reference=None, content=str(cursor))], cursor + 1

    def ask(self, step: int, problems: list[Problem]) -> Asked:
        return Asked(problems, [], [], None)  # type: ignore[arg-type]

    def begin(self, engine: Any, asked: Asked) -> Ticket:
        return int(asked.problems[0].content)

    def expect(self, groups: int) -> None:
        pass

    def groups(self, asked: Asked, sampled: Any) -> list[int]:
        return [int(asked.problems[0].content)]


@given(limit=st.integers(1, 4), random=st.randoms(use_true_random=False))
def test_whoever_is_done_first_every_step_is_whole_and_nothing_grows_too_old(limit: int, random: Random) -> None:
    engine = SimpleNamespace(
        finish=lambda ticket: [], finish_any=lambda tickets, count: set(random.sample(tickets, count))
    )
    feed: Any = Asynchronous(CountingAsker(), engine, lambda: None, limit)  # type: ignore[arg-type]
    asked: dict[int, int] = {}  # before which step, by number
    waiting: set[int] = set()
    for step in range(1, 30):
        taken = set(feed.take(step, False))
        new = range(len(asked), feed.cursor)
        asked |= dict.fromkeys(new, step)
        waiting |= set(new)
        assert len(taken) == 2
        assert taken <= waiting
        waiting -= taken
        assert all(step - asked[number] <= limit for number in taken)
    assert all(29 - asked[number] < limit for number in waiting)


@pytest.mark.parametrize("schedule", ["synchronous", "one_step_behind", "asynchronous"])
def test_what_is_lost_is_done_again(run: Run, monkeypatch: pytest.MonkeyPatch, schedule: str) -> None:
    """The trainers are lost in step 7, after the checkpoint of step 4: no rollout is missing, none is there twice."""
    whole = run("whole", schedule)
    original, calls = LocalTrainer.policy_updates, [0]

    def updates(self: LocalTrainer, parts: Any) -> Any:
        calls[0] += 1
        if calls[0] == 7:
            raise LostWorkersError("trainer rank 0 of 1 died")
        return original(self, parts)

    monkeypatch.setattr(LocalTrainer, "policy_updates", updates)
    broken = run("broken", schedule)
    assert calls[0] == 8 + 3
    assert_whole(broken)
    assert [line["step"] for line in broken.training] == list(range(1, 9))
    if schedule != "asynchronous":
        assert same_weights(broken.weights, whole.weights)
        assert timeless(broken.lines) == timeless(whole.lines)
        assert broken.rollouts() == whole.rollouts()


@pytest.mark.parametrize(("schedule", "under_way_at_the_end"), [("one_step_behind", 0), ("asynchronous", 2)])
def test_going_back_after_a_bad_update_drops_what_is_under_way(
    run: Run, monkeypatch: pytest.MonkeyPatch, schedule: str, under_way_at_the_end: int
) -> None:
    """Step 6 is not finite, and the run goes back to step 4: the workers are not left at rollouts that nobody takes."""
    whole = run("whole", schedule)
    original, calls, left = LocalTrainer.policy_updates, [0], [-1]

    def updates(self: LocalTrainer, parts: Any) -> Any:
        calls[0] += 1
        return [
            dataclasses.replace(update, grad_norm=None if calls[0] == 6 else update.grad_norm)
            for update in original(self, parts)
        ]

    def close(self: InlineBackend) -> None:
        left[0] = len(self.engine.open)

    monkeypatch.setattr(LocalTrainer, "policy_updates", updates)
    monkeypatch.setattr(InlineBackend, "close", close)
    broken = run("broken", schedule, watchdog={"max_skipped_steps": 1})
    assert calls[0] == 8 + 2
    assert_whole(broken)
    assert left[0] == under_way_at_the_end
    if schedule != "asynchronous":
        assert broken.rollouts() == whole.rollouts()


def test_what_is_lost_during_a_recovery_is_mended_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole", "synchronous")
    update, load, calls = LocalTrainer.policy_updates, LocalTrainer.load_state, Counter[str]()

    def updates(self: LocalTrainer, parts: Any) -> Any:
        calls["update"] += 1
        if calls["update"] == 7:
            raise LostWorkersError("trainer rank 0 of 1 died")
        return update(self, parts)

    def loads(self: LocalTrainer, *arguments: Any) -> None:
        calls["load"] += 1
        if calls["load"] == 1:
            raise LostWorkersError("trainer rank 0 of 1 died again")
        load(self, *arguments)

    monkeypatch.setattr(LocalTrainer, "policy_updates", updates)
    monkeypatch.setattr(LocalTrainer, "load_state", loads)
    assert same_weights(run("broken", "synchronous").weights, whole.weights)
    assert calls == {"update": 8 + 3, "load": 2}


def test_too_many_losses_end_the_run_and_the_next_start_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run("whole", "one_step_behind")
    original, broken, calls = LocalTrainer.policy_updates, [True], [0]

    def updates(self: LocalTrainer, parts: Any) -> Any:
        if broken[0] and self.version == 5:
            calls[0] += 1
            raise LostWorkersError("trainer rank 0 of 1 died")
        return original(self, parts)

    monkeypatch.setattr(LocalTrainer, "policy_updates", updates)
    with pytest.raises(InterruptedRunError, match="trainer rank 0 of 1 died"):
        run("broken", "one_step_behind")
    assert calls[0] == 3
    broken[0] = False
    assert same_weights(run("broken", "one_step_behind").weights, whole.weights)


@pytest.mark.parametrize("schedule", ["one_step_behind", "asynchronous"])
def test_a_stop_between_checkpoints_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, schedule: str) -> None:
    """What was under way is asked for again."""
    original = Reinforcement._watch

    def stop(self: Reinforcement, groups: Any) -> None:
        original(self, groups)
        self.context.stop.made = self.step == 6

    monkeypatch.setattr(Reinforcement, "_watch", stop)
    with pytest.raises(InterruptedRunError):
        run("run", schedule)
    monkeypatch.setattr(Reinforcement, "_watch", original)
    assert_whole(run("run", schedule))


def problems_file(path: Path, count: int) -> dict[str, Any]:
    """So many problems for training, and the task that reads them."""
    path.write_text("".join(json.dumps({"problem": f"{i} + 1", "answer": str(i + 1)}) + "\n" for i in range(count)))
    return {"file": {"path": str(path), "options": {"split_by": "train"}}}


@pytest.mark.parametrize("schedule", ["synchronous", "asynchronous"])
def test_a_file_of_problems_is_read_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    read: list[Path] = []

    def load(name: str, path: Path, *rest: Any) -> Any:
        read.append(path)
        return load_table(name, path, *rest)

    monkeypatch.setattr(file, "load_table", load)
    run("run", schedule, tasks=problems_file(tmp_path / "train.jsonl", 40))
    assert read == [tmp_path / "train.jsonl"]


def test_too_few_problems_to_be_under_way_are_refused(run: Run, tmp_path: Path) -> None:
    tasks = problems_file(tmp_path / "train.jsonl", 3)
    with pytest.raises(UsageError, match=r"only 3 different problems turned up.*lower `prompts_per_step`"):
        run("run", "asynchronous", tasks=tasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster.schedule": "asynchronous"}, "needs `cluster.kind: ray`"),
        (
            {"cluster.kind": "ray", "cluster.schedule": "one_step_behind"}
            | {"stages.zero.algorithm.dynamic_sampling_retries": 1},
            "needs `cluster.schedule: synchronous`",
        ),
        (
            {"cluster.kind": "ray", "cluster.rollout.engine": "vllm", "stages.zero.sampling.top_p": 0.9},
            "vLLM has no log-probabilities before top-p and top-k",
        ),
    ],
)
def test_schedules_that_do_not_fit_are_refused(model_folder: Path, changes: dict[str, Any], message: str) -> None:
    overrides = [f"{path}={value}" for path, value in changes.items()]
    with pytest.raises(UsageError, match=message):
        load_recipe(make_recipe(model_folder).model_dump(mode="json"), overrides)


def test_the_correction_is_on_wherever_the_sampler_is_not_the_trainer(model_folder: Path) -> None:
    local = make_recipe(model_folder)
    ray = local.model_copy(update={"cluster": ClusterSettings(kind="ray")})
    algorithm = AlgorithmSettings()
    assert resolve_algorithm(algorithm, local).importance.mode == "none"
    assert resolve_algorithm(algorithm, ray).importance.mode == "token_truncate"
    for precision in ("bf16", "fp16"):
        half = local.model_copy(update={"precision": precision})
        assert resolve_algorithm(algorithm, half).importance.mode == "token_truncate"
    for of_sequences in (AlgorithmSettings(loss="gspo"), AlgorithmSettings(ratio="sequence")):
        assert resolve_algorithm(of_sequences, ray).importance.mode == "sequence_truncate"
        assert resolve_algorithm(of_sequences, local).importance.mode == "none"
    cispo = AlgorithmSettings(loss="cispo", ratio="sequence")  # whose ratio is a token's all the same
    assert resolve_algorithm(cispo, ray).importance.mode == "token_truncate"
    chosen = AlgorithmSettings(importance=ImportanceSettings(mode="sequence_mask"))
    assert resolve_algorithm(chosen, ray) == resolve_algorithm(chosen, local) == chosen


def test_a_ratio_is_above_one_where_the_trainer_gives_more_than_the_sampler_did(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer is made to say that it gives every token e times the sampler's probability."""
    original = LocalTrainer.policy_updates

    def updates(self: LocalTrainer, parts: Any) -> Any:
        return [
            dataclasses.replace(
                update, logprobs={i: torch.tensor(part[i].sampler_logprobs) + 1 for i in update.logprobs}
            )
            for part, update in zip(parts, original(self, parts), strict=True)
        ]

    monkeypatch.setattr(LocalTrainer, "policy_updates", updates)
    rows = [row for row in run("run", "one_step_behind").rollouts() if row.advantage]
    assert rows
    for row in rows:
        assert list(row.ratios) == pytest.approx([math.e] * row.length, rel=1e-4)
