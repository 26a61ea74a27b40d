"""Supervised training on data sets, and on the student's own samples under a teacher, as whole stages."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tear_checkpoint
from torch import Tensor

from ponder.errors import InterruptedRunError, RefusedError, UsageError
from ponder.model.folder import LoadedModel, load_folder, save_folder
from ponder.model.load import load_model
from ponder.pipeline import run_pipeline
from ponder.recipe import load_recipe
from ponder.run import RunFolder
from ponder.stages import fine_tune
from ponder.store import datasets
from ponder.training import execution, trainer
from ponder.training.packing import Example
from ponder.training.update import UpdateStatistics, supervised_step

SHAPE = {
    "tokenizer": "mini",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "max_positions": 128,
}


class Done:
    """What a stage left, whether it succeeded or not."""

    def __init__(self, folder: Path) -> None:
        self.model_folder = folder / "stages" / "student" / "model"
        self.run = RunFolder(folder)
        self.lines = self.run.metrics("student")
        self.state = json.loads((folder / "manifest.json").read_text())["stages"]["student"]["state"]

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.model_folder / "model.safetensors")

    def load(self) -> LoadedModel:
        return load_folder(self.model_folder)

    def values(self, name: str) -> list[float]:
        return [line[name] for line in self.lines if name in line]

    def timeless(self) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in line.items() if k not in ("time", "elapsed") and not k.startswith("speed/")}
            for line in self.lines
        ]


def rows(count: int = 60, **more: Any) -> list[datasets.Example]:
    return [
        datasets.Example(f"e{i}", "test", "math", "en", f"{i}+1?", f"after {i}", str(i + 1), **more)
        for i in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> str:
    datasets.write_rows(tmp_path / "data", rows(), datasets.Example, {"kept": 60})
    return str(tmp_path / "data")


Go = Callable[..., Done]


@pytest.fixture
def go(tmp_path: Path, data: str) -> Go:
    def run(folder: str = "run", **changes: Any) -> Done:
        stage = {
            "verb": "fine_tune",
            "shape": SHAPE,
            "template": "mini",
            "tokens_per_step": 300,
            "context": 100,
            "checkpoint_every": 3,
            "min_stop_rate": 0,
            "optimizer": {"lr": 1e-2, "warmup_steps": 2, "schedule": "cosine", "final_lr_share": 0},
            **({} if "on_policy" in changes else {"data": [data], "epochs": 2}),
            **changes,
        }
        if "model" in changes:
            del stage["shape"]
        if "steps" in changes:
            stage.pop("epochs", None)
        precision = {"precision": stage.pop("precision")} if "precision" in stage else {}
        recipe = load_recipe({"name": "tiny", "threads": 1, "stages": {"student": stage}, **precision})
        run_pipeline(recipe, tmp_path / folder, quiet=True)
        return Done(tmp_path / folder)

    return run


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """The examples of each supervised update."""
    seen: list[list[Example]] = []

    def step(model: Any, optimizer: Any, examples: Any, budget: int) -> UpdateStatistics:
        seen.append(list(examples))
        return supervised_step(model, optimizer, examples, budget)

    monkeypatch.setattr(trainer, "supervised_step", step)
    return seen


def interrupt(monkeypatch: pytest.MonkeyPatch, name: str, stops: list[int]) -> None:
    """Stop before the update of these calls, counted anew after each stop; an empty list stops no more."""
    owner = trainer if name == "supervised_step" else fine_tune
    original = getattr(owner, name)
    calls = [0]

    def step(*args: Any, **kwargs: Any) -> UpdateStatistics:
        calls[0] += 1
        if stops and calls[0] >= stops[0]:
            calls[0] = 0
            stops.pop(0)
            raise KeyboardInterrupt
        statistics: UpdateStatistics = original(*args, **kwargs)
        return statistics

    monkeypatch.setattr(owner, name, step)


# --- data sets -----------------------------------------------------------------------------------------------------


def test_epochs_read_every_example_and_end_the_schedule(go: Go, batches: list[list[Example]]) -> None:
    done = go()
    read = [e for batch in batches for e in batch]
    facts = done.lines[0]
    assert facts["step"] == 0
    assert facts["data/examples"] + facts["data/heldout"] == 60
    assert facts["data/left_out"] == 0
    assert len(read) == 2 * facts["data/examples"]
    assert all(read.count(example) == 2 for example in read)
    assert done.values("data/epoch")[-1] == 2
    steps = len(batches)
    # cosine to zero over the steps after two of warm-up: the last step stands one before the end
    last = 0.5 * (1 + math.cos(math.pi * (steps - 3) / (steps - 2)))
    assert done.values("optimizer/lr")[-1] == pytest.approx(1e-2 * last)
    assert [line["step"] for line in done.lines] == list(range(steps + 1))


def test_the_losses_fall_on_both_sides(go: Go) -> None:
    done = go(epochs=6)
    held_out = done.values("loss/heldout")
    assert held_out[0] == pytest.approx(math.log(1024), rel=0.05)
    assert held_out[-1] < held_out[0] - 1.5
    assert done.values("loss/train")[-1] < done.values("loss/train")[0] - 1.5


def test_held_out_loss_is_measured_at_checkpoints_and_ends_of_epochs(go: Go, batches: list[list[Example]]) -> None:
    done = go(checkpoint_every=1000, epochs=3)
    measured = [line["step"] for line in done.lines if "loss/heldout" in line]
    epochs = [0.0, *done.values("data/epoch")]
    ends = [step for step in range(1, len(epochs)) if int(epochs[step]) > int(epochs[step - 1])]
    assert measured == [0, *ends]
    assert len(ends) == 3


def test_data_sets_are_mixed_and_a_sample_stage_is_found_by_name(tmp_path: Path, go: Go, data: str) -> None:
    more = [row for row in rows(70) if row not in rows(60)]
    datasets.write_rows(tmp_path / "more", more, datasets.Example, {})
    facts = go(data=[data, str(tmp_path / "more")]).lines[0]
    assert facts["data/examples"] + facts["data/heldout"] == 70


def test_what_is_left_out_is_counted(tmp_path: Path, go: Go) -> None:
    long = datasets.Example("long", "test", "math", "en", "1?", "so " * 100, "1")
    datasets.write_rows(tmp_path / "mixed", [*rows(20), long], datasets.Example, {})
    assert go(data=[str(tmp_path / "mixed")]).lines[0]["data/left_out"] == 1


def test_files_of_examples_in_the_common_shapes(tmp_path: Path, go: Go, batches: list[list[Example]]) -> None:
    conversation = [{"role": "user", "content": "9+1?"}, {"role": "assistant", "content": "<think>so</think>10"}]
    lines = [{"messages": conversation}, {"problem": "8+1?", "solution": "9"}, {"other": "shape"}]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = go(data=[str(tmp_path / "more.jsonl")], steps=1)
    assert done.lines[0]["data/examples"] == 2
    assert done.lines[0]["data/left_out"] == 1
    decode = done.load().tokenizer.decode
    assert {decode(e.prompt_ids) + decode(e.reply_ids) for e in batches[0]} == {
        "User: 9+1?\nAssistant:<think>\nso\n</think>\n\n10",
        "User: 8+1?\nAssistant:<think>\n\n</think>\n\n9",
    }


def test_a_tokenizer_of_its_own_text(go: Go) -> None:
    tokenizer = go(shape={**SHAPE, "tokenizer": None, "vocab_size": 470}, steps=1).load().tokenizer
    assert 452 < tokenizer.vocab_size <= 470
    assert len(tokenizer.encode("after ")) < 6


@pytest.mark.parametrize("stops", [[2], [4, 2]])
def test_an_interrupted_stage_ends_bit_for_bit_as_the_unbroken_one(
    stops: list[int], go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go("whole", min_stop_rate=0.01, epochs=5)
    interrupt(monkeypatch, "supervised_step", stops)
    while stops:
        with contextlib.suppress(InterruptedRunError):
            go("broken", min_stop_rate=0.01, epochs=5)
    broken = go("broken", min_stop_rate=0.01, epochs=5)
    assert all(torch.equal(weight, broken.weights[name]) for name, weight in whole.weights.items())
    assert broken.timeless() == whole.timeless()


def test_padding_that_was_the_end_is_not_so_in_the_new_model(tmp_path: Path, go: Go) -> None:
    model = load_model("mini")
    model.tokenizer.settings["pad_token"] = "<|end|>"
    save_folder(tmp_path / "base", model.decoder, model.tokenizer, {})
    done = go(model=str(tmp_path / "base"), steps=1).load()
    assert (done.tokenizer.eos_ids, done.tokenizer.pad_id, done.config.pad_id) == ((1,), 0, 0)
    assert done.generation == {"eos_token_id": 1, "pad_token_id": 0}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data": ["nowhere"]}, UsageError, "nowhere.*mini-world.*sample.*JSONL"),
        ({"data_options": {"seed": 1}}, UsageError, "data_options.*mini-world"),
        ({"context": 129}, UsageError, r"context \(129\).*128 positions"),
        ({"context": 16}, RefusedError, r"no example of `data` is left.*60 for exceeding `context` \(16 tokens\)"),
        ({"template": "chat"}, UsageError, "chat template"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], error: Any, message: str, go: Go) -> None:
    with pytest.raises(error, match=message):
        go(**changes)


# --- the stop-rate gate ----------------------------------------------------------------------------------------------


def test_a_model_that_learnt_to_stop_passes(tmp_path: Path, go: Go) -> None:
    same = [datasets.Example(str(i), "test", "chat", "en", f"{i}?", "", "Yes.") for i in range(40)]
    datasets.write_rows(tmp_path / "yes", same, datasets.Example, {})
    done = go(data=[str(tmp_path / "yes")], steps=60, min_stop_rate=1.0)
    assert done.values("length/stop_rate") == [1.0]
    assert done.lines[-1]["step"] == 60


def test_a_model_that_does_not_stop_is_refused_and_nothing_is_lost(
    tmp_path: Path, go: Go, batches: list[list[Example]]
) -> None:
    for _ in range(2):
        with pytest.raises(
            RefusedError, match=r"end by themselves, below min_stop_rate \(0\.95\).*epochs.*optimizer\.lr"
        ):
            go(steps=2, min_stop_rate=0.95)
        done = Done(tmp_path / "run")
        assert done.state == "failed"
        assert done.load().config.hidden_size == 16
        (rate,) = done.values("length/stop_rate")
        assert 0 <= rate < 0.95
        assert len(batches) == 2  # the second time nothing is trained again


# --- on policy -------------------------------------------------------------------------------------------------------

ON_POLICY: dict[str, Any] = {
    "teacher": "mini",
    "tasks": {"arithmetic": {}},
    "prompts_per_step": 3,
    "samples": 2,
    "sampling": {"max_tokens": 12},
}


@pytest.fixture
def forgetful(tmp_path: Path) -> str:
    """The mini base with noise on its weights: a student that has something to learn again."""
    model = load_model("mini")
    torch.manual_seed(0)
    for weight in model.decoder.parameters():
        weight.data += 0.5 * weight.data.std() * torch.randn_like(weight)
    save_folder(tmp_path / "forgetful", model.decoder, model.tokenizer, model.generation)
    return str(tmp_path / "forgetful")


def test_the_student_comes_closer_to_its_teacher(forgetful: str, go: Go) -> None:
    settings = {**ON_POLICY, "prompts_per_step": 10, "samples": 4}
    done = go(on_policy=settings, model=forgetful, steps=12, optimizer={"lr": 2e-4, "warmup_steps": 2})
    divergence = done.values("distill/reverse_kl")
    assert len(divergence) == 12
    assert all(value >= 0 for value in divergence)
    assert fmean(divergence[-4:]) < fmean(divergence[:2]) / 2
    assert "loss/train" not in done.lines[0]
    assert done.values("length/mean")[0] <= 12
    assert set(done.values("accuracy/pass@1")) <= {i / 40 for i in range(41)}


def test_the_teacher_itself_has_nothing_to_learn(go: Go) -> None:
    done = go(on_policy=ON_POLICY, model="mini", steps=1)
    assert done.values("distill/reverse_kl") == [pytest.approx(0, abs=1e-6)]
    teacher = load_file(Path(fine_tune.__file__).parents[1] / "mini" / "weights" / "model.safetensors")
    difference = max(float((weight - done.weights[name]).abs().max()) for name, weight in teacher.items())
    assert difference < 2e-2  # AdamW steps by the sign of rounding, so not zero; the teacher's own file is untouched


def test_its_samples_are_kept(go: Go) -> None:
    done = go(on_policy=ON_POLICY, steps=2)
    kept = list(done.run.rollouts().iter_rollouts("student"))
    assert [(row.step, row.sample) for row in kept] == [(step, s) for step in (1, 2) for _ in range(3) for s in (0, 1)]
    assert {row.split for row in kept} == {"train"}


@pytest.mark.parametrize("stops", [[3], [4, 1]])
def test_an_interrupted_distillation_ends_bit_for_bit_as_the_unbroken_one(
    stops: list[int], go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go("whole", on_policy=ON_POLICY, steps=5, checkpoint_every=2)
    interrupt(monkeypatch, "distill_step", stops)
    while stops:
        with contextlib.suppress(InterruptedRunError):
            go("broken", on_policy=ON_POLICY, steps=5, checkpoint_every=2)
    broken = go("broken", on_policy=ON_POLICY, steps=5, checkpoint_every=2)
    assert all(torch.equal(weight, broken.weights[name]) for name, weight in whole.weights.items())
    assert broken.timeless() == whole.timeless()


def test_a_damaged_checkpoint_of_a_distillation_takes_its_rollouts_back_with_it(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"on_policy": ON_POLICY, "steps": 5, "checkpoint_every": 2}
    whole = go("whole", **settings)
    interrupt(monkeypatch, "distill_step", [5])
    with pytest.raises(InterruptedRunError):
        go("broken", **settings)
    tear_checkpoint(tmp_path / "broken")
    broken = go("broken", **settings)
    assert all(torch.equal(weight, broken.weights[name]) for name, weight in whole.weights.items())
    assert broken.timeless() == whole.timeless()
    rows = [list(done.run.rollouts().iter_rollouts("student", tokens=True)) for done in (whole, broken)]
    assert rows[0] == rows[1]


def test_a_teacher_with_other_tokens_is_refused(go: Go) -> None:
    base = go("base", shape={**SHAPE, "tokenizer": None, "vocab_size": 470}, steps=1)
    with pytest.raises(UsageError, match=r"on_policy\.teacher.*tokenizer"):
        go(on_policy={**ON_POLICY, "teacher": str(base.model_folder)}, steps=1)


def test_a_teacher_without_room_is_refused(go: Go) -> None:
    base = go("base", shape={**SHAPE, "max_positions": 100}, steps=1)
    settings = {**ON_POLICY, "teacher": str(base.model_folder), "sampling": {"max_tokens": 98}}
    with pytest.raises(UsageError, match=r"on_policy\.sampling\.max_tokens must be at most \d+"):
        go(on_policy=settings, steps=1)


def test_a_new_student_needs_the_teachers_tokens(go: Go) -> None:
    with pytest.raises(UsageError, match=r"shape\.tokenizer"):
        go(on_policy=ON_POLICY, shape={**SHAPE, "tokenizer": None}, steps=1)


def test_looking_for_the_loss_scale_is_no_fault(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step overflows and halves the scale."""
    monkeypatch.setattr(execution, "_FIRST_SCALE", 2.0**60)
    done = go(precision="fp16", steps=5)
    assert done.values("grad/norm") == [None] * 5
    assert done.state == "done"
