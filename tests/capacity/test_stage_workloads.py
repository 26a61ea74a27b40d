"""What stages amount to as jobs: sequences, steps, models beside the trained one."""

import pytest

from ponder.capacity.assumptions import Assumptions
from ponder.capacity.workload import Workload, judge_place, workload
from ponder.recipe import load_recipe

MODEL = "Qwen/Qwen2.5-1.5B"


def work_of(stage: dict[str, object], another_engine: bool = False, **others: dict[str, object]) -> Workload:
    recipe = load_recipe({"name": "x", "stages": {"stage": stage, **others}})
    found = workload(recipe, "stage", Assumptions(rows=1000, prompt_tokens=100), another_engine)
    assert found is not None
    return found


def reinforce(**more: object) -> dict[str, object]:
    return {"verb": "reinforce", "model": MODEL, "tasks": {"countdown": {}}, "steps": 10, **more}


def test_a_reinforce_stage() -> None:
    found = work_of(reinforce(prompts_per_step=8, group_size=4, updates_per_step=2, sampling={"max_tokens": 1000}))
    assert found.rollouts is not None and found.training is not None
    assert (found.rollouts.completions, found.steps, found.training.updates) == (32, 10, 2)
    assert found.training.sequences == 32
    assert found.training.tokens == 32 * (100 + 250)
    assert found.evaluation_count == 2  # before the first step and after the last
    assert found.evaluations is not None and found.evaluations.completions == 64 * 16
    assert found.training.references == () and found.training.own_scores == 0


def test_a_reference_exists_only_with_a_kl_term() -> None:
    found = work_of(reinforce(algorithm={"kl": {"beta": 0.001}}))
    assert found.training is not None
    assert found.training.references == (found.model,)


@pytest.mark.parametrize(
    ("mode", "another_engine", "passes"),
    [("auto", False, 0), ("auto", True, 1), ("none", True, 0), ("token_truncate", False, 1)],
)
def test_the_policy_scores_what_another_engine_drew(mode: str, another_engine: bool, passes: int) -> None:
    found = work_of(reinforce(algorithm={"importance": {"mode": mode}}), another_engine)
    assert found.training is not None
    assert found.training.own_scores == passes


def test_a_reward_model_scores_its_tasks_in_its_steps() -> None:
    reward = {"verb": "train_reward", "model": MODEL, "data": ["pairs.jsonl"], "rows": 10}
    tasks = {"countdown": {"weight": 3}, "arithmetic": {"weight": 1}}
    rewards = {"accuracy": 1, "helpful": {"model": "rm", "tasks": ["arithmetic"], "from_step": 6}}
    found = work_of(reinforce(tasks=tasks, rewards=rewards), rm=reward)
    assert found.training is not None
    (judge,) = found.training.judges
    assert judge.shape.parameters == 1_543_714_304 + 1536  # and a scalar head
    assert judge.share == pytest.approx(1 / 4 * 5 / 10)


def test_a_reward_model_behind_two_rewards_is_one_with_the_work_of_both() -> None:
    reward = {"verb": "train_reward", "model": MODEL, "data": ["pairs.jsonl"], "rows": 10}
    found = work_of(reinforce(rewards={"helpful": "rm", "late": {"model": "rm", "from_step": 6}}), rm=reward).training
    assert found is not None
    (judge,) = found.judges
    assert judge.share == pytest.approx(1 + 5 / 10)


@pytest.mark.parametrize(
    ("cluster", "device", "place"),
    [
        ({"kind": "local", "reward_models": "separate"}, "auto", "beside"),  # one process holds all
        ({"kind": "ray"}, "cpu", "beside"),  # planned as if with GPUs
        ({"kind": "ray", "rollout": {"gpus": 1}}, "auto", "beside"),
        ({"kind": "ray", "rollout": {"gpus": 1}}, "cpu", "cpu"),
        ({"kind": "ray", "reward_models": "separate"}, "auto", "own"),
        ({"kind": "ray", "rollout": {"gpus": 1}, "reward_models": "separate"}, "auto", "cpu"),
        ({"kind": "ray", "rollout": {"gpus": 1}, "reward_models": {"place": "separate", "gpus": 1}}, "auto", "own"),
    ],
)
def test_where_reward_models_score(cluster: dict[str, object], device: str, place: str) -> None:
    recipe = load_recipe({"name": "x", "device": device, "cluster": cluster, "stages": {"stage": reinforce()}})
    assert judge_place(recipe) == place


def test_steps_follow_from_rows() -> None:
    pairs = {"verb": "train_reward", "model": MODEL, "data": ["pairs.jsonl"], "heldout_share": 0.2, "rows_per_step": 8}
    assert work_of(pairs).steps == pytest.approx(0.8 * 1000 / 8)
    assert work_of({**pairs, "rows": 400, "epochs": 2}).steps == pytest.approx(2 * 0.8 * 400 / 8)
    both = work_of(pairs).training
    one = work_of({**pairs, "kind": "pointwise"}).training
    assert both is not None and one is not None
    assert (both.sequences, one.sequences) == (16, 8)


def test_examples_that_a_sample_stage_keeps() -> None:
    sample = {"verb": "sample", "model": MODEL, "tasks": {"countdown": {}}, "problems": 100, "samples": 8}
    tuned = {
        "verb": "fine_tune",
        "model": MODEL,
        "data": ["sample"],
        "epochs": 2,
        "tokens_per_step": 1000,
        "context": 500,
    }
    assert work_of(tuned, sample=sample).steps == pytest.approx(2 * 500 * 400 / 1000)  # half of 800 are kept
    capped = {**sample, "keep": {"per_problem": 1}}
    assert work_of(tuned, sample=capped).steps == pytest.approx(2 * 500 * 100 / 1000)
    read = {"verb": "sample", "sources": {"file:a": {"path": "a.jsonl", "rows": 30}, "file:b": {"path": "b.jsonl"}}}
    assert work_of(tuned, sample=read).steps == pytest.approx(2 * 500 * 1030 / 1000)


def test_a_stage_that_only_reads_runs_no_model() -> None:
    recipe = load_recipe(
        {"name": "x", "stages": {"read": {"verb": "sample", "sources": {"file": {"path": "a.jsonl"}}}}}
    )
    assert workload(recipe, "read", Assumptions()) is None


def test_an_evaluation_asks_the_largest_of_its_models_once_for_each() -> None:
    stage = {"verb": "evaluate", "models": ["mini", MODEL], "tasks": {"countdown": {}}, "problems": 10, "samples": 4}
    found = work_of(stage)
    assert found.model.parameters == 1_543_714_304
    assert found.steps == 2
    assert found.rollouts is not None and found.rollouts.completions == 40


def test_distilling_on_policy_scores_with_the_teacher() -> None:
    on_policy = {"teacher": "Qwen/Qwen2.5-7B", "tasks": {"countdown": {}}, "prompts_per_step": 4, "samples": 2}
    found = work_of({"verb": "fine_tune", "model": MODEL, "on_policy": on_policy, "steps": 5})
    assert found.training is not None
    assert [teacher.name for teacher in found.training.references] == ["Qwen/Qwen2.5-7B"]
    assert (found.training.sequences, found.steps) == (8, 5)
