"""Whole stages on Ray: the same bits whoever dies, and every schedule whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Done, make_model, make_recipe, same_weights, timeless

from ponder.cluster.processes import descendants
from ponder.cluster.ray_backend import RayBackend
from ponder.cluster.runtime import Runtime
from ponder.cluster.trainer_group import RewardTrainerGroup
from ponder.errors import InterruptedRunError
from ponder.pipeline import run_pipeline
from ponder.recipe import ClusterSettings, Recipe, load_recipe, to_yaml
from ponder.run import RunFolder
from ponder.stages.reinforce import Reinforcement
from ponder.stages.train_reward import RewardTraining
from ponder.store.metrics import series

CLUSTER = {
    "kind": "ray",
    "rollout": {"workers": 2},
    "trainer": {"ranks": 2},
    "deadlines": {"update_s": 300},
}
STEPS = 6


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def ray_runs() -> Iterator[None]:
    """One Ray for all: stages find it running."""
    with Runtime(ClusterSettings.model_validate(CLUSTER)):
        yield


def recipe_on_ray(model: Path, **cluster: Any) -> Recipe:
    """Six steps with checkpoints after the third and the sixth."""
    recipe = make_recipe(
        model,
        steps=STEPS,
        prompts_per_step=4,
        checkpoint_every=3,
        algorithm={"kl": {"beta": 0.01}},
        evaluation={"every": 3, "problems": 2, "samples": 2},
    )
    return load_recipe(recipe.model_dump(mode="json") | {"cluster": CLUSTER | cluster})


Run = Callable[..., Done]


@pytest.fixture
def run(ray_runs: None, model_folder: Path, tmp_path: Path) -> Run:
    def run(folder: str, **cluster: Any) -> Done:
        run_pipeline(recipe_on_ray(model_folder, **cluster), tmp_path / folder, quiet=True)
        return Done(tmp_path / folder)

    return run


@pytest.fixture(scope="module")
def unbroken(ray_runs: None, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    run_pipeline(recipe_on_ray(model_folder), folder, quiet=True)
    return Done(folder)


def assert_same_run(found: Done, expected: Done) -> None:
    """Bit for bit, but for what was lost on the way."""
    assert same_weights(found.weights, expected.weights)
    for split in ("train", "test"):
        assert found.rollouts(split) == expected.rollouts(split)
    plain = [
        [{k: v for k, v in line.items() if k != "cluster/restarts"} for line in timeless(done.lines)]
        for done in (found, expected)
    ]
    assert plain[0] == plain[1]


def assert_whole(done: Done) -> None:
    """Every step has four problems, each sampled four times, and no problem is trained on twice."""
    for step in range(1, STEPS + 1):
        rows = [row for row in done.rollouts() if row.step == step]
        assert Counter(row.sample for row in rows) == dict.fromkeys(range(4), 4)
        assert set(Counter(row.problem_id for row in rows).values()) == {4}
    assert len({row.problem_id for row in done.rollouts()}) == 4 * STEPS


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[RayBackend], None]) -> None:
    """Do something once, before the update of a step."""
    original, done = Reinforcement._update, [False]

    def update(self: Reinforcement, groups: Any) -> Any:
        if self.step + 1 == step and not done[0]:
            done[0] = True
            assert isinstance(self.backend, RayBackend)
            act(self.backend)
        return original(self, groups)

    monkeypatch.setattr(Reinforcement, "_update", update)


def kill_a_worker(backend: RayBackend) -> None:
    pid = int(backend.engine._workers[1].where.split()[1])
    os.kill(pid, signal.SIGKILL)


def kill_a_rank(backend: RayBackend) -> None:
    where = backend.trainer._where[1]
    assert where is not None
    os.kill(where[0], signal.SIGKILL)


def test_ranks_learn_what_one_process_learns(unbroken: Done, model_folder: Path, tmp_path: Path) -> None:
    """The first step draws the same tokens; after it, rounding may part them."""
    local = recipe_on_ray(model_folder).model_copy(update={"cluster": ClusterSettings()})
    run_pipeline(local, tmp_path / "local", quiet=True)
    expected = Done(tmp_path / "local")

    def first(done: Done) -> list[tuple[str, int, tuple[int, ...]]]:
        return [(row.problem_id, row.sample, tuple(row.token_ids)) for row in done.rollouts() if row.step == 1]

    assert first(unbroken) == first(expected)
    for name in ("loss/policy", "grad/norm", "policy/kl", "reward/mean"):
        assert unbroken.series(name)[0] == pytest.approx(expected.series(name)[0], rel=1e-4, abs=1e-6), name
    assert_whole(unbroken)


def test_a_run_that_loses_processes_ends_bit_for_bit_as_the_unbroken_one(
    run: Run, unbroken: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollout worker in step 4, a rank in step 5."""
    at_step(monkeypatch, 4, kill_a_worker)
    at_step(monkeypatch, 5, kill_a_rank)
    assert_same_run(run("broken"), unbroken)


def stop_in_step_4(run: Run, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Reinforcement._watch

    def stop(self: Reinforcement, groups: Any) -> None:
        original(self, groups)
        self.context.stop.made = self.step == 4

    with monkeypatch.context() as patch:
        patch.setattr(Reinforcement, "_watch", stop)
        with pytest.raises(InterruptedRunError):
            run(folder)


def test_a_damaged_part_of_a_checkpoint_costs_the_steps_behind_the_one_before(
    run: Run, unbroken: Done, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bit of what the second rank wrote in step 4; the checkpoint of step 3 has all that a step depends on."""
    stop_in_step_4(run, "damaged", monkeypatch)
    state = tmp_path / "damaged" / "stages" / "zero" / "state"
    assert {path.name for path in state.iterdir() if path.is_dir()} == {"trainer-3", "trainer-4"}
    part = state / "trainer-4" / "part-00001-of-00002.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    done = run("damaged")
    told = " ".join(capsys.readouterr().err.split())
    assert f"{part.name} is damaged: the stage goes back to the checkpoint before it, and on from step 3" in told
    assert_same_run(done, unbroken)
    assert {path.name for path in state.iterdir() if path.is_dir()} == {"trainer-3", "trainer-6"}


def test_a_run_goes_on_with_other_numbers_of_workers_and_ranks(
    run: Run, unbroken: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in step 4; nothing is done twice, and what is learnt differs by rounding only."""
    stop_in_step_4(run, "other", monkeypatch)
    done = run("other", rollout={"workers": 1}, trainer={"ranks": 1, "sharding": "ddp"})
    assert_whole(done)
    assert [line["step"] for line in done.training] == list(range(1, STEPS + 1))
    assert done.series("loss/policy")[:4] == unbroken.series("loss/policy")[:4]
    assert done.series("grad/norm")[4] == pytest.approx(unbroken.series("grad/norm")[4], rel=1e-3)


def test_one_step_behind_is_whole(run: Run) -> None:
    done = run("behind", schedule="one_step_behind")
    assert_whole(done)
    assert done.series("policy/staleness") == [0, 1, 1, 0, 1, 1]


def test_asynchronous_runs_lose_and_double_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill_both(backend: RayBackend) -> None:
        kill_a_worker(backend)
        kill_a_rank(backend)

    at_step(monkeypatch, 5, kill_both)
    done = run("asynchronous", schedule="asynchronous", max_staleness=2)
    assert_whole(done)
    assert 0 < max(done.series("policy/staleness")) <= 2
    assert [line["step"] for line in done.training] == list(range(1, STEPS + 1))


@pytest.mark.timeout(1500)
def test_a_driver_that_is_killed_is_started_again_and_ends_bit_for_bit(
    unbroken: Done, model_folder: Path, tmp_path: Path, repository: Path
) -> None:
    """By `ponder run`, in processes of their own: the supervisor's child is killed once it has passed a checkpoint."""
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_on_ray(model_folder)), encoding="utf-8")
    command = [sys.executable, "-m", "ponder", "run", "recipe.yaml", "--run", "run"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["PYTHONPATH"] = str(repository)
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 600
        while '"step": 4' not in (metrics.read_text() if metrics.exists() else ""):
            assert process.poll() is None, process.communicate()[0].decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (driver,) = [pid for pid in descendants(process.pid) if _is_driver(pid)][:1]
        os.kill(driver, signal.SIGKILL)
        output, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 0, output.decode()
    assert_same_run(Done(tmp_path / "run"), unbroken)


def _is_driver(pid: int) -> bool:
    return b"ponder\0run" in Path(f"/proc/{pid}/cmdline").read_bytes()


# --- reward models ----------------------------------------------------------------------------------------------------


REWARD: dict[str, Any] = {
    "verb": "train_reward",
    "model": "mini-llama",
    "template": "mini",
    "data": ["mini-world"],
    "rows": 90,
    "rows_per_step": 8,
    "max_tokens": 100,
    "tokens_per_micro_batch": 300,
    "frozen_layers": 1,
    "checkpoint_every": 3,
    "optimizer": {"lr": 1e-3, "warmup_steps": 0},
}


class Judge:
    """What a finished `train_reward` has left."""

    def __init__(self, folder: Path) -> None:
        self.run, self.folder = RunFolder(folder), folder / "stages" / "rm"
        self.lines = timeless(self.run.metrics("rm"))
        self.held_out = [{n: v for n, v in line.items() if n.startswith("heldout/")} for line in self.lines][-1]
        self.weights = load_file(self.folder / "model" / "model.safetensors")

    def series(self, name: str) -> list[float]:
        return [line[name] for line in self.lines if name in line]

    def scores(self) -> list[float]:
        rows = map(json.loads, (self.folder / "samples" / "held-out.jsonl").read_text().splitlines())
        return [row[side] for row in rows for side in ("chosen_score", "rejected_score")]


def train_judge(folder: Path, cluster: Any, **settings: Any) -> Judge:
    recipe = {"name": "judge", "threads": 1, "cluster": cluster, "stages": {"rm": REWARD}, **settings}
    run_pipeline(load_recipe(recipe), folder, quiet=True)
    return Judge(folder)


@pytest.fixture(scope="module")
def judge(ray_runs: None, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Trained by two ranks, unbroken."""
    return train_judge(tmp_path_factory.mktemp("judge") / "run", CLUSTER)


def assert_alike(found: Judge, expected: Judge) -> None:
    """All that a stage leaves, to rounding."""
    for name in ("loss/train", "grad/norm"):
        assert found.series(name) == pytest.approx(expected.series(name), rel=1e-3), name
    for name in ("data/examples", "accuracy/train", "optimizer/lr", "tokens/trained"):
        assert found.series(name) == expected.series(name), name
    assert len(found.series("loss/train")) == 10
    scores = expected.scores()
    assert max(scores) - min(scores) > 0.5
    assert found.scores() == pytest.approx(scores, abs=1e-3)
    assert found.held_out == pytest.approx(expected.held_out, abs=1e-3)
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=1e-3)
    files = [{path.name for path in (done.folder / "model").iterdir()} for done in (found, expected)]
    assert files[0] == files[1]
    cards = [json.loads((done.folder / "model" / "reward.json").read_text()) for done in (found, expected)]
    assert cards[0]["norm"] == pytest.approx(cards[1]["norm"], abs=1e-3)
    assert cards[0]["figures"] == pytest.approx(cards[1]["figures"], abs=1e-3)


def test_ranks_train_the_reward_model_that_one_process_trains(judge: Judge, tmp_path: Path) -> None:
    assert_alike(judge, train_judge(tmp_path / "local", "local"))


def test_a_reward_model_whose_rank_dies_ends_bit_for_bit_as_the_unbroken_one(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the last step, behind a checkpoint, is measured."""
    measure, killed = RewardTraining._measure, [False]

    def measuring(self: RewardTraining) -> None:
        if not killed[0]:
            killed[0] = True
            assert isinstance(self.trainer, RewardTrainerGroup)
            where = self.trainer._where[1]
            assert where is not None
            os.kill(where[0], signal.SIGKILL)
        measure(self)

    monkeypatch.setattr(RewardTraining, "_measure", measuring)
    done = train_judge(tmp_path / "broken", CLUSTER)
    assert killed[0]
    assert same_weights(done.weights, judge.weights)
    assert done.lines == judge.lines
    assert done.scores() == judge.scores()
    assert done.run.evaluations() == judge.run.evaluations()


@pytest.mark.slow  # parts of a checkpoint on another number of ranks: tests/training/test_reward_ranks.py
def test_a_reward_model_goes_on_with_another_number_of_ranks(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to stop in step 5, which is saved."""
    update = RewardTraining._update

    def stopping(self: RewardTraining) -> None:
        update(self)
        self.context.stop.made = self.step == 5

    monkeypatch.setattr(RewardTraining, "_update", stopping)
    with pytest.raises(InterruptedRunError):
        train_judge(tmp_path / "other", CLUSTER)
    monkeypatch.setattr(RewardTraining, "_update", update)
    done = train_judge(tmp_path / "other", CLUSTER | {"trainer": {"ranks": 1, "sharding": "ddp"}})
    assert_alike(done, judge)
    assert done.series("grad/norm")[:5] == judge.series("grad/norm")[:5]


def test_the_other_verbs_do_on_a_cluster_what_they_do_in_one_process(ray_runs: None, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    rows = [{"problem": f"{i} + 1", "solution": f"<think>{i} and 1</think> {i + 1}"} for i in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = {"arithmetic": {"difficulty": 2}}
    sampling = {"max_tokens": 24}
    recipe = {
        "name": "verbs",
        "threads": 1,
        "judging": {"workers": 0},
        "cluster": CLUSTER,
        "stages": {
            "dev": {
                "verb": "fine_tune",
                "model": "mini-llama",
                "template": "mini",
                "data": [str(data)],
                "steps": 4,
                "context": 128,
                "tokens_per_step": 256,
                "tokens_per_micro_batch": 128,
                "lora": {"rank": 2},
                "min_stop_rate": 1e-9,
                "checkpoint_every": 2,
            },
            "kept": {
                "verb": "sample",
                "model": "dev",
                "template": "mini",
                "tasks": tasks,
                "problems": 4,
                "samples": 2,
                "sampling": sampling,
                "keep": {"correct": False, "finished": False},
            },
            "table": {
                "verb": "evaluate",
                "models": ["dev", "mini-llama"],
                "template": "mini",
                "tasks": tasks,
                "problems": 4,
                "samples": 2,
                "sampling": sampling,
            },
        },
    }
    local = recipe | {"cluster": "local"}
    found, expected = (RunFolder(tmp_path / name) for name in ("ray", "local"))
    run_pipeline(load_recipe(recipe), found.path, to="table", quiet=True)
    run_pipeline(load_recipe(local), expected.path, to="table", quiet=True)
    for name in ("loss/train", "loss/heldout", "length/stop_rate"):
        ours, theirs = (series(run.metrics("dev"), name) for run in (found, expected))
        assert len(ours) > 0
        assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-4), name
    values = [[(row["model"], row["metric"], row["value"]) for row in run.evaluations()] for run in (found, expected)]
    assert len(values[0]) > 10
    assert [v[:2] for v in values[0]] == [v[:2] for v in values[1]]
