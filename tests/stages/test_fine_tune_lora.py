"""Adapters in a whole `fine_tune` stage: they learn, a killed stage goes on bit for bit, and a plain model is left."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ponder.errors import InterruptedRunError, UsageError
from ponder.model.embedded import FOLDERS
from ponder.model.folder import load_folder
from ponder.pipeline import run_pipeline
from ponder.recipe import OptimizerSettings, load_recipe
from ponder.run import RunFolder
from ponder.store import datasets
from ponder.training import trainer
from ponder.training.checkpoint import NEWEST
from ponder.training.state_file import load_state
from ponder.training.supervised import hold_out, mean_loss, render_rows
from ponder.training.trainer import LocalTrainer, TrainerSettings

ROWS = [datasets.Example(f"e{i}", "test", "math", "en", f"{i}+1?", f"after {i}", str(i + 1)) for i in range(60)]
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    datasets.write_rows(tmp_path / "data", ROWS, datasets.Example, {"kept": len(ROWS)})
    return tmp_path


def recipe_of(folder: Path, **changes: Any) -> dict[str, Any]:
    stage = {
        "verb": "fine_tune",
        "model": "mini",
        "data": [str(folder / "data")],
        "template": "mini",
        "steps": 12,
        "tokens_per_step": 300,
        "context": 100,
        "checkpoint_every": 4,
        "min_stop_rate": 0,
        "optimizer": {"lr": 3e-3, "warmup_steps": 2},
        "lora": LORA,
        **changes,
    }
    return {"name": "adapted", "threads": 1, "stages": {"student": stage}}


def train(folder: Path, name: str = "run", **changes: Any) -> RunFolder:
    run_pipeline(load_recipe(recipe_of(folder, **changes)), folder / name, quiet=True)
    return RunFolder(folder / name)


def model_folder(run: RunFolder) -> Path:
    return run.stage_folder("student") / "model"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_the_loss_falls_and_the_folder_left_is_plain_and_has_what_was_learnt(folder: Path, quantise: str) -> None:
    run = train(folder, lora={**LORA, "quantise": quantise})
    losses = [line["loss/heldout"] for line in run.metrics("student") if "loss/heldout" in line]
    assert losses[-1] < losses[0] - 0.5
    before, after = weights(FOLDERS["mini"]), weights(model_folder(run))
    assert {name: w.shape for name, w in after.items()} == {name: w.shape for name, w in before.items()}
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if name.endswith("proj.weight")}
    left = load_folder(model_folder(run))
    rendered = render_rows(ROWS, "mini", left.tokenizer, 100)
    trainer = LocalTrainer(left.decoder, TrainerSettings(OptimizerSettings(), total_steps=1, budget=4096))
    assert mean_loss(trainer, hold_out(rendered.examples)[1]) == pytest.approx(losses[-1], abs=1e-4)


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_a_killed_stage_goes_on_bit_for_bit(folder: Path, quantise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"lora": {**LORA, "quantise": quantise}}
    whole = train(folder, "whole", **settings)
    step, calls = trainer.supervised_step, []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "supervised_step", interrupted)
    with contextlib.suppress(InterruptedRunError):
        train(folder, "broken", **settings)
    state = load_state(folder / "broken" / "stages" / "student" / "state" / NEWEST)
    assert all(name.endswith(("adapter_a", "adapter_b")) for name in state["trainer"]["weights"])
    broken = train(folder, "broken", **settings)
    left, expected = weights(model_folder(broken)), weights(model_folder(whole))
    assert all(torch.equal(weight, left[name]) for name, weight in expected.items())


def test_a_new_model_takes_no_adapters(folder: Path) -> None:
    recipe = recipe_of(folder, shape={"tokenizer": "mini"})
    del recipe["stages"]["student"]["model"]
    with pytest.raises(UsageError, match="`lora` goes with `model`"):
        load_recipe(recipe)
