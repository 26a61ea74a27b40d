"""`ponder plan`: the arithmetic by hand, the lineage, and parameters against the decoder itself."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ponder.errors import BrokenInputError
from ponder.model.embedded import FOLDERS
from ponder.pipeline import stage_hashes
from ponder.plan import evaluation_steps, lineage, parameters_of_shape, plan_recipe
from ponder.recipe import EvaluationSettings, ModelShape, load_recipe
from ponder.run import RunFolder, StageRecord
from ponder.store.metrics import MetricsLog

RECIPE = {
    "name": "r",
    "stages": {
        "base": {"verb": "fine_tune", "shape": {}, "data": ["mini-world"], "steps": 10, "tokens_per_step": 1000},
        "zero": {
            "verb": "reinforce",
            "model": "base",
            "tasks": {"countdown": {}},
            "steps": 50,
            "prompts_per_step": 8,
            "group_size": 4,
            "updates_per_step": 2,
            "sampling": {"max_tokens": 100},
            "evaluation": {"every": 20, "problems": 5, "samples": 2, "sampling": {"max_tokens": 30}},
            "algorithm": {"kl": {"beta": 0.001}},
        },
        "table": {
            "verb": "evaluate",
            "models": ["base", "zero"],
            "tasks": {"countdown": {}, "arithmetic": {}, "transpose": {}},
            "problems": 7,
            "samples": 4,
        },
    },
}


def test_counts_by_hand(tmp_path: Path) -> None:
    base, zero, table = plan_recipe(load_recipe(RECIPE), tmp_path / "none")
    evaluations = 4 * 5 * 2  # before the first step, after 20 and 40, after the last; problems; samples
    assert (zero.rollouts, zero.heldout_rollouts, zero.updates) == (50 * 8 * 4, evaluations, 100)
    assert zero.formula == "50 steps x 8 prompts x 4 samples"
    assert zero.max_tokens == 50 * 8 * 4 * 100 + evaluations * 30
    assert (base.rollouts, base.updates, base.max_tokens) == (0, 10, 10_000)
    assert (table.rollouts, table.heldout_rollouts, table.updates) == (0, 2 * 3 * 7 * 4, 0)
    assert table.formula == "2 models x 3 tasks x 7 problems x 4 samples"
    assert zero.starts_from == ("base",)


def test_parameters_and_memory_follow_the_lineage(tmp_path: Path) -> None:
    base, zero, table = plan_recipe(load_recipe(RECIPE), tmp_path / "none")
    count = parameters_of_shape(ModelShape())
    assert base.parameters == zero.parameters == table.parameters == count
    # weights, gradients and two moments; the same and a reference model; weights alone; four bytes each
    assert (base.memory_bytes, zero.memory_bytes, table.memory_bytes) == (16 * count, 20 * count, 4 * count)


@pytest.mark.parametrize(
    ("every", "steps", "expected"),
    [(20, 50, [0, 20, 40, 50]), (25, 50, [0, 25, 50]), (100, 50, [0, 50]), (0, 50, [])],
)
def test_evaluations_come_first_last_and_between(every: int, steps: int, expected: list[int]) -> None:
    assert evaluation_steps(EvaluationSettings(every=every), steps) == expected


def test_time_comes_from_measured_speeds(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    run = RunFolder(tmp_path / "r")
    with run.lock():
        run.prepare(recipe)
        for stage, speeds in {
            "base": {"speed/train_tokens_per_s": 500.0},
            "zero": {"speed/rollout_tokens_per_s": 200.0, "speed/train_tokens_per_s": 400.0, "length/mean": 50.0},
            "table": {"speed/rollout_tokens_per_s": 100.0},
        }.items():
            log = MetricsLog(run.metrics_path, stage)
            log.write(1, speeds)
            log.close()
    base, zero, table = plan_recipe(recipe, run.path)
    assert base.seconds == pytest.approx(10_000 / 500)
    assert zero.seconds == pytest.approx((1600 + 40) * 50 / 200 + 1600 * 50 / 400)
    assert table.seconds is None  # no length was measured
    assert all(plan.seconds is None for plan in plan_recipe(recipe, tmp_path / "none"))


def test_states_come_from_the_manifest(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    run = RunFolder(tmp_path / "r")
    with run.lock():
        run.prepare(recipe)
    hashes = stage_hashes(recipe)
    run.stage_folder("base").mkdir(parents=True)
    run.set_record("base", StageRecord(verb="fine_tune", state="done", hash=hashes["base"]))
    run.set_record("zero", StageRecord(verb="reinforce", state="interrupted", hash=hashes["zero"]))
    run.set_record("table", StageRecord(verb="evaluate", state="done", hash="of other settings"))
    plans = plan_recipe(recipe, run.path)
    assert [plan.state for plan in plans] == ["done", "goes on", "to run"]
    assert plans[0].seconds == 0.0


def test_the_lineage_hangs_each_stage_below_its_model() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(lineage(load_recipe(RECIPE)))
    file = console.file
    assert isinstance(file, io.StringIO)
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "r",
        "├── random weights",
        "│   └── base (fine-tuned; data: mini-world)",
        "│       └── zero (reinforced)",
        "└── table (evaluated; models: base, zero)",
    ]


PIPELINE = {
    "name": "pipeline",
    "stages": {  # in an order in which they cannot run
        "r1": {
            "verb": "reinforce",
            "model": "dev",
            "tasks": {"countdown": {}},
            "rewards": {"accuracy": 1, "helpful": "helpful_rm", "kind": "helpful_rm"},
        },
        "dev": {"verb": "fine_tune", "shape": {}, "data": ["reasoning", "general"], "epochs": 3},
        "reasoning": {
            "verb": "sample",
            "model": "base",
            "tasks": {"countdown": {}},
            "problems": 800,
            "samples": 4,
            "sampling": {"max_tokens": 100},
            "sources": {"file:cold": {"path": "cold.jsonl"}},
        },
        "general": {"verb": "sample", "sources": {"mini-world": {"rows": 50, "tasks": {"general": {}}}}},
        "helpful_rm": {"verb": "train_reward", "model": "base", "data": ["mini-world"], "rows": 2000},
        "student": {
            "verb": "fine_tune",
            "shape": {"tokenizer": "r1", "vocab_size": 452},
            "on_policy": {"teacher": "r1", "tasks": {"countdown": {}}, "prompts_per_step": 5, "samples": 2},
            "steps": 20,
        },
        "base": {"verb": "fine_tune", "shape": {"vocab_size": 900}, "data": ["mini-world"], "steps": 10},
    },
}


def test_a_lineage_with_many_branches_names_what_else_flows_in() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(lineage(load_recipe(PIPELINE)))
    file = console.file
    assert isinstance(file, io.StringIO)
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        "pipeline",
        "├── general (sampled; sources: mini-world)",
        "└── random weights",
        "    ├── base (fine-tuned; data: mini-world)",
        "    │   ├── reasoning (sampled; sources: file:cold)",
        "    │   └── helpful_rm (reward model; data: mini-world)",
        "    ├── dev (fine-tuned; data: reasoning, general)",
        "    │   └── r1 (reinforced; rewards: helpful_rm)",
        "    └── student (fine-tuned; teacher: r1; tokenizer: r1)",
    ]


def test_counts_of_every_verb_by_hand(tmp_path: Path) -> None:
    plans = {plan.name: plan for plan in plan_recipe(load_recipe(PIPELINE), tmp_path / "none")}
    assert list(plans)[:3] == ["general", "base", "reasoning"]
    formulas = {name: plan.formula for name, plan in plans.items()}
    assert formulas["general"] == "50 rows of mini-world"
    assert formulas["reasoning"] == "800 problems x 4 samples + all of file:cold"
    assert formulas["dev"] == "3 epochs x data of reasoning, general"
    assert formulas["helpful_rm"] == "1 epoch x 85% of 2,000 rows of mini-world"
    assert formulas["student"] == "20 steps x 5 prompts x 2 samples"
    counts = {name: (plan.rollouts, plan.updates, plan.max_tokens) for name, plan in plans.items()}
    assert counts["general"] == (0, 0, 0)
    assert counts["reasoning"] == (3200, 0, 320_000)
    assert counts["dev"] == counts["helpful_rm"] == (0, None, None)  # known once the data exist
    assert counts["student"] == (200, 20, 200 * 512)


def test_memory_counts_reward_models_and_teachers(tmp_path: Path) -> None:
    plans = {plan.name: plan for plan in plan_recipe(load_recipe(PIPELINE), tmp_path / "none")}
    base, dev = (parameters_of_shape(ModelShape(vocab_size=size)) for size in (900, 1024))
    assert plans["helpful_rm"].memory_bytes == 16 * base
    assert plans["reasoning"].memory_bytes == 4 * base
    assert plans["r1"].memory_bytes == 16 * dev + 4 * base  # one reward model behind two rewards is held once
    half = plan_recipe(load_recipe(PIPELINE, ["precision=bf16"]), tmp_path / "none")
    assert {p.name: p for p in half}["r1"].memory_bytes == 16 * dev + 2 * base
    assert plans["student"].parameters == dev  # the teacher's vocabulary, not the one written there
    assert plans["student"].memory_bytes == 16 * dev + 4 * dev


def test_what_a_hub_model_weighs_is_not_known_before(tmp_path: Path) -> None:
    recipe = load_recipe(PIPELINE, ["stages.helpful_rm.model=Qwen/Qwen2.5-0.5B"])
    plans = {plan.name: plan for plan in plan_recipe(recipe, tmp_path / "none")}
    assert (plans["helpful_rm"].parameters, plans["helpful_rm"].memory_bytes) == (None, None)
    assert plans["r1"].memory_bytes is None


@pytest.mark.parametrize("name", [name for name, folder in FOLDERS.items() if folder.is_dir()])
def test_embedded_models_are_weighed(tmp_path: Path, name: str) -> None:
    stage = {"verb": "reinforce", "model": name, "tasks": {"countdown": {}}}
    (plan,) = plan_recipe(load_recipe({"name": "r", "stages": {"zero": stage}}), tmp_path)
    assert plan.parameters is not None
    assert 100_000 < plan.parameters < 10_000_000


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_decoder(family: str, tied: bool) -> None:
    from ponder.model.config import DecoderConfig
    from ponder.model.decoder import Decoder

    shape = ModelShape(family=family, vocab_size=500, hidden_size=64, num_layers=2, tied_embeddings=tied)  # type: ignore[arg-type]
    config = DecoderConfig(**shape.model_dump(exclude={"seed", "tokenizer"}), qk_norm=family == "qwen3")
    unique = {parameter.data_ptr(): parameter.numel() for parameter in Decoder(config).parameters()}
    assert parameters_of_shape(shape) == sum(unique.values())


def test_parameters_of_a_folder_come_from_its_headers(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    for shard in range(2):
        save_file({"w": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.float32)}, tmp_path / f"{shard}.safetensors")
    recipe = load_recipe(RECIPE, [f"stages.zero.model={tmp_path}"])
    assert plan_recipe(recipe, tmp_path / "none")[1].parameters == 2 * (15 + 7)
    (tmp_path / "0.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(BrokenInputError, match="is not a safetensors file"):
        plan_recipe(recipe, tmp_path / "none")
