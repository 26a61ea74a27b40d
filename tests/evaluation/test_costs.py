"""What a run cost: sums by hand, and tokens that were not counted."""

from typing import Any

import pytest

from ponder.evaluation.costs import cost_grid, count_tokens, holds, stage_costs, total
from ponder.recipe import Recipe, load_recipe
from ponder.run import StageRecord


def test_tokens_add_up_over_the_lines_that_count_them() -> None:
    lines = [
        {"step": 0, "heldout/length/mean": 5.0},
        {"step": 0, "tokens/sampled": 200.0},
        {"step": 1, "tokens/sampled": 30, "speed/train_tokens_per_s": 50.0},
        {"step": 3, "tokens/sampled": None},
    ]
    assert count_tokens(lines, "tokens/sampled") == 230
    assert count_tokens(lines, "tokens/trained") is None  # a speed alone says nothing


def test_core_hours_of_one_process_are_time_by_threads_and_the_sum_comes_last() -> None:
    records = {
        "zero": StageRecord(verb="reinforce", seconds=1800, threads=2, sampled_tokens=1_200_000, trained_tokens=10),
        "data": StageRecord(verb="sample", seconds=90, threads=4, sampled_tokens=5),
        "zero.old-1234": StageRecord(verb="reinforce", seconds=999, threads=2),
    }
    costs = stage_costs(records)
    assert total(costs).core_hours == pytest.approx((1800 * 2 + 90 * 4) / 3600)
    assert cost_grid(costs) == [
        ["stage", "wall time", "tokens sampled", "tokens trained on", "core-hours"],
        ["zero", "30 min 00 s", "1,200,000", "10", "1.00"],
        ["data", "1 min 30 s", "5", "-", "0.10"],
        ["in all", "31 min 30 s", "1,200,005", "10", "1.10"],
    ]
    assert len(cost_grid(costs[:1])) == 2  # one stage is its own sum


def test_gpu_hours_have_a_column_where_there_are_any() -> None:
    records = {
        "zero": StageRecord(verb="reinforce", seconds=1800, threads=2, core_seconds=18000, gpu_seconds=7200),
        "data": StageRecord(verb="sample", seconds=90, threads=4),
    }
    grid = cost_grid(stage_costs(records))
    assert [row[-2:] for row in grid] == [
        ["core-hours", "GPU-hours"],
        ["5.00", "2.00"],
        ["0.10", "0.00"],
        ["5.10", "2.00"],
    ]


STAGES: dict[str, Any] = {
    "data": {"verb": "sample", "model": "mini", "tasks": {"countdown": {}}},
    "files": {"verb": "sample", "sources": {"mini-world": {}}},
    "cold": {"verb": "fine_tune", "model": "mini", "data": ["data"], "steps": 1},
    "helpful": {"verb": "train_reward", "data": ["mini-world"]},
    "zero": {"verb": "reinforce", "tasks": {"countdown": {}}},
    "last": {
        "verb": "reinforce",
        "tasks": {"countdown": {}},
        "rewards": {"accuracy": 1, "h": "helpful", "i": "helpful"},
    },
    "table": {"verb": "evaluate", "models": ["last"], "tasks": {"countdown": {}}},
}


def held(gpu_here: bool = False, **cluster: Any) -> dict[str, tuple[float, float]]:
    recipe: Recipe = load_recipe({"name": "r", "stages": STAGES, "cluster": cluster or "local"})
    return {name: tuple(holds(stage, recipe, 3, gpu_here)) for name, stage in recipe.stages.items()}


def test_one_process_holds_its_threads_and_the_gpu_that_it_computes_on() -> None:
    assert set(held().values()) == {(3, 0)}
    assert held(gpu_here=True) == dict.fromkeys(STAGES, (3, 1)) | {"files": (3, 0)}


def test_a_cluster_holds_what_each_of_its_processes_has() -> None:
    """Workers: 2 of 4 cores (2 threads) and 1 GPU; ranks: 2 of 5 threads (1 core) and 0.75 GPUs; a judge: 2 and 0.5."""
    parts: dict[str, Any] = {
        "kind": "ray",
        "rollout": {"workers": 2, "cpus": 4, "threads": 2, "gpus": 1},
        "trainer": {"ranks": 2, "threads": 5, "gpus": 0.75},
    }
    separate = {"place": "separate", "cpus": 2, "gpus": 0.5}
    expected = {
        "data": (3 + 8, 2),
        "files": (3, 0),
        "cold": (3 + 10, 1.5),
        "helpful": (3 + 10, 1.5),
        "zero": (3 + 8 + 10, 2 + 1.5),
        "table": (3 + 8, 2),
    }
    assert held(**parts, reward_models=separate) == expected | {"last": (3 + 8 + 10 + 2, 2 + 1.5 + 0.5)}
    # shared ones are in the driver, on its GPU
    assert held(gpu_here=True, **parts) == expected | {"last": (3 + 8 + 10, 2 + 1.5 + 1)}
