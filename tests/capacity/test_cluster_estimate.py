"""`ponder plan --cluster`: every recipe plans, advice is true, errors name what to change, 80 columns."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from ponder.capacity.assumptions import Assumptions
from ponder.capacity.estimate import StageEstimate, estimate_recipe
from ponder.capacity.hardware import parse_cluster
from ponder.capacity.jobs import Layout
from ponder.capacity.render import estimate_text
from ponder.cli import app
from ponder.errors import UsageError
from ponder.recipe import Recipe, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").rglob("*.yaml"))


def ponder_plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def small(**more: object) -> Recipe:
    stage = {"verb": "reinforce", "model": "Qwen/Qwen2.5-7B", "tasks": {"countdown": {}}, "evaluation": {"every": 0}}
    return load_recipe({"name": "small", "precision": "bf16", "stages": {"zero": stage}, **more})


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
@pytest.mark.parametrize("cluster", ["64xH800", "1xRTX4090"])
def test_every_recipe_plans(path: Path, cluster: str, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository)
    alone = ["cluster=local"] if cluster.startswith("1x") else []  # else its own workers and ranks count
    estimate = estimate_recipe(load_recipe(path, alone), parse_cluster(cluster), Assumptions(rows=1000))
    assert estimate.stages
    for stage in estimate.stages:
        assert stage.step.step_s > 0
        assert stage.gpu_hours is not None and stage.gpu_hours > 0
        assert bool(stage.step.problems) <= bool(stage.advice), "what does not fit comes with what to change"
    assert max(map(len, estimate_text(estimate).splitlines())) <= 80


def test_the_advice_is_true() -> None:
    recipe = Path(RECIPES[0]).parent / "r1-zero-qwen2.5-32b.yaml"
    cluster = parse_cluster("64xH800")
    wasteful = ["cluster=local", "precision=fp32", "activation_checkpointing=false"]
    before = estimate_recipe(load_recipe(recipe, wasteful), cluster, Assumptions()).stages[0]
    assert before.step.problems
    (advice,) = [a for a in before.advice if a.startswith("training fits with ")]
    settings = advice.removeprefix("training fits with ").split(" and ")
    after = estimate_recipe(load_recipe(recipe, [*wasteful, *settings]), cluster, Assumptions()).stages[0]
    assert after.step.problems == ()
    assert after.step.step_s < before.step.step_s


def test_more_devices_are_named_when_no_setting_helps() -> None:
    recipe = small(activation_checkpointing=True)
    (stage,) = estimate_recipe(recipe, parse_cluster("2xRTX4090"), Assumptions()).stages
    assert any("training fits on" in advice for advice in stage.advice)


def test_the_split_that_is_found_is_the_best() -> None:
    recipe = small(activation_checkpointing=True)
    (found,) = estimate_recipe(recipe, parse_cluster("16xH100"), Assumptions()).stages
    assert found.step.problems == ()
    for rollout in range(1, 16):
        given = parse_cluster(f"16xH100:rollout={rollout},train={16 - rollout}")
        (other,) = estimate_recipe(recipe, given, Assumptions()).stages
        assert other.step.problems or other.step.step_s >= found.step.step_s


def test_the_recipes_own_workers_and_ranks_are_taken() -> None:
    workers = {"engine": "vllm", "workers": 3, "gpus": 2, "vllm": {"tensor_parallel": 2}}
    cluster = {"kind": "ray", "rollout": workers, "trainer": {"ranks": 8, "gpus": 1}, "schedule": "one_step_behind"}
    (stage,) = estimate_recipe(small(cluster=cluster), parse_cluster("16xH100"), Assumptions()).stages
    layout = stage.step.layout
    assert (layout.replicas, layout.tensor_parallel, layout.train_devices) == (3, 2, 8)
    with pytest.raises(UsageError, match=r"need 14 devices, --cluster has 8: lower cluster\.rollout\.workers"):
        estimate_recipe(small(cluster=cluster), parse_cluster("8xH100"), Assumptions())


R1 = Path(RECIPES[0]).parent / "r1.yaml"


def r1(*overrides: str) -> dict[str, StageEstimate]:
    estimate = estimate_recipe(load_recipe(R1, overrides), parse_cluster("64xH800"), Assumptions(rows=40_000))
    return {stage.name: stage for stage in estimate.stages}


def test_r1_fits_on_64_devices_of_80_gb_with_two_of_them_for_its_reward_models() -> None:
    stages = r1()
    assert all(stage.step.problems == () for stage in stages.values())
    where = {name: (s.step.layout.replicas, s.step.layout.train_devices) for name, s in stages.items()}
    assert where["zero"] == where["r1"] == (8, 30)
    # one half waits while only the other has work
    assert where["cold_data"] == where["aime"] == (8, 0)
    assert where["dev1"] == where["helpful_rm"] == where["safety_rm"] == (0, 30)
    assert {name: s.step.layout.judge_devices for name, s in stages.items() if s.step.layout.judge_devices} == {"r1": 2}
    judging = stages["r1"].step.judge_bytes
    assert judging is not None and 2 * 32e9 < judging < 72e9


def test_reward_models_that_do_not_fit_come_with_what_mends_it() -> None:
    shared = r1("cluster.reward_models=shared")["r1"]
    assert any(problem.startswith("training needs") for problem in shared.step.problems)
    assert shared.advice == ("reward models are apart with cluster.reward_models={place: separate, gpus: 1} on Ray",)
    halves = r1("cluster.reward_models.gpus=0.5")["r1"]
    assert halves.step.layout.judge_devices == 1
    assert halves.advice == ("reward models fit with cluster.reward_models.gpus=1",)
    whole = r1("precision=fp32")["r1"]
    assert any(problem.startswith("scoring by reward models needs") for problem in whole.step.problems)
    assert "reward models fit with precision=bf16" in whole.advice
    larger = r1("precision=bf16", "stages.helpful_rm.model=Qwen/Qwen2.5-72B")["r1"]
    assert larger.advice == ("reward models of at most 33B parameters fit (the base of their train_reward stages)",)


def test_reward_models_on_cpus_take_no_device_and_no_known_time() -> None:
    devices, host = r1()["r1"], r1("cluster.reward_models.gpus=0")["r1"]
    assert host.step.layout.judge_devices == 0 and host.step.judge_bytes is None
    assert host.step.update is not None and devices.step.update is not None
    assert host.step.update.score_s < devices.step.update.score_s
    assert any("on CPUs, is not counted" in advice for advice in host.advice)


def test_reward_models_take_their_devices_from_those_that_a_cluster_has() -> None:
    rewards = {"accuracy": 1, "helpful": "rm"}
    stage = {"verb": "reinforce", "model": "Qwen/Qwen2.5-7B", "tasks": {"countdown": {}}, "rewards": rewards}
    judge = {"verb": "train_reward", "model": "Qwen/Qwen2.5-1.5B", "data": ["pairs.jsonl"], "rows": 10}
    written = {"name": "x", "precision": "bf16", "stages": {"zero": stage, "rm": judge}}
    apart = load_recipe({**written, "cluster": {"kind": "ray", "reward_models": "separate"}})

    def layout(cluster: str) -> Layout:
        stages = estimate_recipe(apart, parse_cluster(cluster), Assumptions()).stages
        return next(stage.step.layout for stage in stages if stage.name == "zero")

    assert (layout("8xH100").devices, layout("8xH100").judge_devices) == (7, 1)
    assert (layout("8xH100:shared").devices, layout("8xH100:shared").judge_devices) == (7, 1)
    split = layout("8xH100:rollout=5,train=3")
    assert (split.rollout_devices, split.train_devices, split.judge_devices) == (5, 2, 1)
    with pytest.raises(UsageError, match=r"cluster\.reward_models: .* \(1\) leave none of --cluster's 1"):
        layout("1xH100")
    with pytest.raises(UsageError, match=r"and reward models on 2 need 64 devices, --cluster has 63"):
        estimate_recipe(load_recipe(R1), parse_cluster("63xH800"), Assumptions())


def test_shared_devices_cannot_do_both_at_once() -> None:
    recipe = small(cluster={"kind": "ray", "schedule": "one_step_behind"})
    with pytest.raises(UsageError, match=r"cluster\.schedule=synchronous"):
        estimate_recipe(recipe, parse_cluster("8xH100:shared"), Assumptions())


def test_hours_are_steps_times_step_and_evaluations() -> None:
    recipe = small(activation_checkpointing=True)
    (stage,) = estimate_recipe(recipe, parse_cluster("8xH100"), Assumptions()).stages
    assert stage.evaluation_s == 0
    assert stage.gpu_hours == pytest.approx(8 * 100 * stage.step.step_s / 3600)
    evaluated = {"verb": "reinforce", "model": "Qwen/Qwen2.5-7B", "tasks": {"countdown": {}}}
    other = load_recipe(
        {"name": "x", "precision": "bf16", "activation_checkpointing": True, "stages": {"a": evaluated}}
    )
    (stage,) = estimate_recipe(other, parse_cluster("8xH100"), Assumptions()).stages
    assert stage.evaluation_s > 0
    assert stage.hours == pytest.approx((100 * stage.step.step_s + stage.evaluation_s) / 3600)


def test_data_of_unknown_size_leave_the_hours_open() -> None:
    stage = {"verb": "fine_tune", "model": "Qwen/Qwen2.5-7B", "data": ["some.jsonl"], "epochs": 2}
    recipe = load_recipe({"name": "x", "stages": {"student": stage}})
    (unknown,) = estimate_recipe(recipe, parse_cluster("8xH100"), Assumptions()).stages
    assert unknown.gpu_hours is None and any("--assume rows" in advice for advice in unknown.advice)
    (known,) = estimate_recipe(recipe, parse_cluster("8xH100"), Assumptions(rows=3200, example_tokens=500)).stages
    assert known.steps == pytest.approx(2 * 3200 * 500 / 16_384)


def test_a_model_of_unknown_size() -> None:
    stage = {"verb": "reinforce", "model": "someone/unknown", "tasks": {"countdown": {}}}
    with pytest.raises(UsageError, match=r"someone/unknown.*stages\.zero\.model.*config\.json"):
        estimate_recipe(load_recipe({"name": "x", "stages": {"zero": stage}}), parse_cluster("8xH100"), Assumptions())


def test_the_command_prints_text_and_json() -> None:
    text = ponder_plan("r1-zero-mini", "--cluster", "2xL40S", "--assume", "mfu=0.3")
    assert text.exit_code == 0
    assert "2 x L40S" in text.stdout and "mfu 0.3" in text.stdout
    shown = json.loads(ponder_plan("r1-zero-mini", "--cluster", "2xL40S", "--json").stdout)
    assert shown["recipe"] == "r1-zero-mini"
    assert shown["cluster"]["device"]["name"] == "L40S"
    assert shown["stages"][0]["step"]["step_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cluster", "8xH101"), "did you mean H100"),
        (("--cluster", "8xH100", "--assume", "mfu"), "mfu must be a number"),
        (("--assume", "mfu=0.3"), "--assume needs --cluster"),
    ],
)
def test_the_commands_errors(arguments: tuple[str, ...], said: str) -> None:
    result = ponder_plan("r1-zero-mini", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


@pytest.fixture(scope="module")
def published(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("published", repository / "benchmarks/plan_against_published.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repository / "benchmarks")
        patch.setitem(__import__("sys").modules, "published", module)
        spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_errors_that_the_benchmark_computes(published: ModuleType, repository: Path) -> None:
    page = (repository / "docs" / "capacity.md").read_text(encoding="utf-8")
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in page.splitlines() if "|" in line]
    for run, quantity, predicted, figure, error in published.rows(Assumptions()):
        assert (run, quantity, predicted, figure, error) in rows
