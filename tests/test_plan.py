"""`ponder plan`: the arithmetic by hand, the lineage, and parameters against the decoder itself."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from ponder.errors import BrokenInputError
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
        "│   └── base (fine-tuned, data: mini-world)",
        "│       └── zero (reinforced)",
        "└── base, zero",
        "    └── table (evaluated)",
    ]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_those_of_the_decoder(family: str, tied: bool) -> None:
    from ponder.model.config import DecoderConfig
    from ponder.model.decoder import Decoder

    shape = ModelShape(family=family, vocab_size=500, hidden_size=64, num_layers=2, tied_embeddings=tied)  # type: ignore[arg-type]
    config = DecoderConfig(**shape.model_dump(exclude={"seed"}), qk_norm=family == "qwen3")
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
