"""Rewards for the tasks they are meant for, from the step they are meant for, by rule and by reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import UsageError
from ponder.model.load import load_model
from ponder.model.reward_model import RewardModel, load_reward_model, save_reward_model
from ponder.pipeline import run_pipeline
from ponder.recipe import Recipe, RewardSettings, load_recipe
from ponder.rewards import applies
from ponder.run import RunFolder
from ponder.stages import reinforce
from ponder.stages.reinforce import Reinforcement
from ponder.store.rollouts import RolloutRow


class LikesLength:
    """A reward model that likes long replies, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def score_replies(self, prompts: list[str], replies: list[str]) -> list[float]:
        self.asked += zip(prompts, replies, strict=True)
        return [float(len(reply)) for reply in replies]


def make_recipe(model: Path, **changes: Any) -> Recipe:
    stage: dict[str, Any] = {
        "verb": "reinforce",
        "model": str(model),
        "template": "mini",
        "tasks": {"arithmetic": {}, "transpose": {"from_step": 3}},
        "rewards": {
            "random": {"tasks": ["arithmetic"]},
            "helpful": {"model": "mini", "tasks": ["transpose"], "from_step": 4, "weight": 0.5},
            "second": {"model": "mini", "weight": 0, "from_step": 2},
        },
        "steps": 5,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling": {"max_tokens": 12},
        "evaluation": {"every": 0},
        "watchdog": {"enabled": False, "preflight_prompts": 2},
    }
    return load_recipe({"name": "tiny", "threads": 1, "stages": {"r1": {**stage, **changes}}})


@pytest.fixture
def rollouts(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> list[RolloutRow]:
    judge = LikesLength()
    monkeypatch.setattr(Reinforcement, "_load_reward_models", lambda self: {"helpful": judge, "second": judge})
    run_pipeline(make_recipe(tiny_model), tmp_path / "run", quiet=True)
    return list(RunFolder(tmp_path / "run").rollouts().iter_rollouts("r1", split="train"))


def test_problems_come_from_the_tasks_that_have_begun(rollouts: list[RolloutRow]) -> None:
    by_step = {step: {row.task for row in rollouts if row.step == step} for step in range(1, 6)}
    assert by_step[1] == by_step[2] == {"arithmetic"}
    assert {"arithmetic", "transpose"} == by_step[3] | by_step[4] | by_step[5]


def test_each_rollout_has_the_rewards_of_its_task_and_step(rollouts: list[RolloutRow]) -> None:
    for row in rollouts:
        wanted = {"random"} if row.task == "arithmetic" else set()
        if row.step >= 2:
            wanted.add("second")
        if row.step >= 4 and row.task == "transpose":
            wanted.add("helpful")
        assert set(row.rewards) == wanted, (row.step, row.task)
        for name in wanted - {"random"}:
            assert row.rewards[name] == len(row.text)


def test_what_is_only_watched_and_what_is_not_for_a_task_moves_nothing(rollouts: list[RolloutRow]) -> None:
    silent = [row for row in rollouts if row.task == "transpose" and row.step == 3]
    assert silent and all(row.advantage == 0 for row in silent)
    rewarded = [row for row in rollouts if row.task == "transpose" and row.step >= 4]
    groups: dict[tuple[int, str], list[RolloutRow]] = {}
    for row in rewarded:
        groups.setdefault((row.step, row.problem_id), []).append(row)
    assert any(row.advantage for row in rewarded)
    for group in groups.values():
        longest = max(group, key=lambda row: len(row.text))
        assert longest.advantage is not None and longest.advantage >= 0


def test_a_reward_model_sees_the_block_that_the_prompt_opened(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = LikesLength()
    monkeypatch.setattr(Reinforcement, "_load_reward_models", lambda self: {"helpful": judge, "second": judge})
    run_pipeline(make_recipe(tiny_model, template="Q: {prompt} A: <think>"), tmp_path / "run", quiet=True)
    assert judge.asked
    assert all(reply.startswith("<think>") for _, reply in judge.asked)
    assert not any("Q: " in prompt for prompt, _ in judge.asked)


def test_a_model_behind_two_rewards_is_loaded_once_in_the_recipes_precision(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = RewardModel.on(load_model(tiny_model), 0, kind="pairwise", score="reply", template="mini")
    save_reward_model(tmp_path / "judge", model)
    loaded: list[RewardModel] = []

    def load(folder: str, dtype: torch.dtype) -> RewardModel:
        loaded.append(load_reward_model(folder, dtype))
        return loaded[-1]

    monkeypatch.setattr(reinforce, "load_reward_model", load)
    judge = {"model": str(tmp_path / "judge")}
    recipe = make_recipe(tiny_model, rewards={"helpful": judge, "second": {**judge, "weight": 0.5}}, steps=1)
    run_pipeline(recipe.model_copy(update={"precision": "bf16"}), tmp_path / "run", quiet=True)
    (only,) = loaded
    assert only.decoder.embedding.weight.dtype == torch.bfloat16
    row = next(RunFolder(tmp_path / "run").rollouts().iter_rollouts("r1", split="train"))
    assert row.rewards["helpful"] == row.rewards["second"] != 0


def test_metrics_average_a_reward_over_those_that_get_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Reinforcement, "_load_reward_models", lambda self: dict.fromkeys(("helpful", "second"), LikesLength())
    )
    run_pipeline(make_recipe(tiny_model), tmp_path / "run", quiet=True)
    run = RunFolder(tmp_path / "run")
    last = run.metrics("r1")[-1]
    rows = [
        row for row in run.rollouts().iter_rollouts("r1", split="train") if row.step == 5 and row.task == "transpose"
    ]
    assert last["reward/helpful"] == pytest.approx(sum(len(row.text) for row in rows) / len(rows))
    assert "reward/helpful" not in run.metrics("r1")[0]


@given(step=st.integers(1, 9), begin=st.integers(1, 9), task=st.sampled_from(["countdown", "general", "general:zh"]))
def test_a_reward_applies_from_its_step_on_and_to_its_tasks(step: int, begin: int, task: str) -> None:
    everywhere = RewardSettings(from_step=begin)
    only_general = RewardSettings(from_step=begin, tasks=("general:zh",))
    assert applies(everywhere, task, step) == (step >= begin)
    assert applies(only_general, task, step) == (step >= begin and task == "general:zh")


def test_the_recipe_refuses_rewards_for_unknown_tasks_and_no_task_at_first(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="'nothing', which is none of the tasks"):
        make_recipe(tiny_model, rewards={"random": {"tasks": ["nothing"]}})
    with pytest.raises(UsageError, match="from_step"):
        make_recipe(tiny_model, tasks={"arithmetic": {"from_step": 2}})


def test_a_text_stands_for_a_reward_model(tiny_model: Path) -> None:
    stage = make_recipe(tiny_model, rewards={"helpful": "judge", "random": 0.5}).stages["r1"]
    assert stage.rewards == {"helpful": RewardSettings(model="judge"), "random": RewardSettings(weight=0.5)}  # type: ignore[union-attr]
