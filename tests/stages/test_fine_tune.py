"""Supervised training on the mini world: what is read, where it goes on, what it leaves, and that the loss falls."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import tear_checkpoint
from torch import Tensor

from ponder.errors import InterruptedRunError, RefusedError, UsageError
from ponder.mini.world import MiniWorld
from ponder.model.folder import LoadedModel, load_folder
from ponder.pipeline import run_pipeline
from ponder.recipe import load_recipe
from ponder.run import RunFolder, stage_seed
from ponder.stages import fine_tune
from ponder.training import trainer
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example
from ponder.training.update import UpdateStatistics

SHAPE = {
    "vocab_size": 560,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 8,
    "max_positions": 256,
}
WORLD = {
    "tasks": {"arithmetic": {1: 1.0}, "countdown": {1: 1.0}},
    "temperaments": {"hasty": 0.5, "brief": 0.5},
    "general_share": 0.3,
    "broken_share": 0.1,
}


@pytest.fixture(autouse=True)
def _few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fine_tune, "_TOKENIZER_DOCUMENTS", 100)


class Done:
    """A finished run of one stage, read back."""

    def __init__(self, folder: Path, stage: str = "base") -> None:
        self.model_folder = folder / "stages" / stage / "model"
        self.weights: dict[str, Tensor] = load_file(self.model_folder / "model.safetensors")
        self.lines = RunFolder(folder).metrics(stage)

    def load(self) -> LoadedModel:
        return load_folder(self.model_folder)

    def timeless(self) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in line.items() if k not in ("time", "elapsed") and not k.startswith("speed/")}
            for line in self.lines
        ]


def make_stage(**changes: Any) -> dict[str, Any]:
    return {
        "verb": "fine_tune",
        **({} if "model" in changes else {"shape": SHAPE}),
        "data": ["mini-world"],
        "data_options": WORLD,
        "steps": 5,
        "tokens_per_step": 400,
        "context": 128,
        "checkpoint_every": 2,
        "optimizer": {"lr": 1e-2, "warmup_steps": 2, "schedule": "cosine"},
        **changes,
    }


Go = Callable[..., Done]


@pytest.fixture
def go(tmp_path: Path) -> Go:
    def run(folder: str = "run", **changes: Any) -> Done:
        recipe = load_recipe({"name": "tiny", "threads": 1, "stages": {"base": make_stage(**changes)}})
        run_pipeline(recipe, tmp_path / folder, quiet=True)
        return Done(tmp_path / folder)

    return run


Step = Callable[..., UpdateStatistics]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """The examples of each update."""
    seen: list[list[Example]] = []
    original: Step = trainer.supervised_step

    def step(model: Any, optimizer: Any, examples: Sequence[Example], budget: int) -> UpdateStatistics:
        seen.append(list(examples))
        return original(model, optimizer, examples, budget)

    monkeypatch.setattr(trainer, "supervised_step", step)
    return seen


def test_it_reads_document_after_document(go: Go, batches: list[list[Example]]) -> None:
    tokenizer = go().load().tokenizer
    assert len(batches) == 5
    world = MiniWorld(stage_seed(0, "base"), **WORLD)
    read = [example for batch in batches for example in batch]
    for i, example in enumerate(read):
        document = world.document(i)
        whole = (*tokenizer.encode(document.prompt), *tokenizer.encode(document.reply))
        assert (*example.prompt_ids, *example.reply_ids) == whole[:128]
        assert len(example.prompt_ids) == min(127, len(tokenizer.encode(document.prompt)))
        assert example.reply_ids
    for batch in batches:
        lengths = [len(e.prompt_ids) + len(e.reply_ids) for e in batch]
        assert sum(lengths[:-1]) < 400 <= sum(lengths)
    assert any(len(e.prompt_ids) + len(e.reply_ids) < 128 for e in read)
    ended = [e for e in read if e.reply_ids[-1] in tokenizer.eos_ids]
    assert len(ended) > len(read) / 2


def test_a_small_context_cuts_and_never_empties(go: Go, batches: list[list[Example]]) -> None:
    """Smaller than many prompts."""
    go(context=16)
    lengths = [(len(e.prompt_ids), len(e.reply_ids)) for batch in batches for e in batch]
    assert max(prompt for prompt, _ in lengths) == 15
    assert all(reply >= 1 and prompt + reply <= 16 for prompt, reply in lengths)


def test_the_loss_falls(go: Go) -> None:
    done = go(steps=40, tokens_per_step=800)
    losses = [line["loss/train"] for line in done.lines]
    assert losses[0] == pytest.approx(math.log(done.load().config.vocab_size), rel=0.02)
    assert losses[-1] < losses[0] - 1.5
    assert all(line["grad/norm"] > 0 for line in done.lines)


def test_the_learning_rate_is_that_of_the_step(go: Go) -> None:
    rates = [line["optimizer/lr"] for line in go().lines]
    # warm-up over 2 of 5 steps, then a cosine from 1 to 0.1 over 3
    shares = [0.5, 1, 1, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25]
    assert rates == pytest.approx([1e-2 * share for share in shares])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_model_from_nothing(family: str, go: Go) -> None:
    done = go(steps=1, shape={**SHAPE, "family": family, "tied_embeddings": family == "llama"})
    model = done.load()
    assert model.config.family == family
    assert model.config.vocab_size == model.tokenizer.vocab_size <= 560
    assert model.config.eos_ids == model.tokenizer.eos_ids
    assert len(model.tokenizer.eos_ids) == 1
    assert any(name.endswith("q_norm.weight") for name in done.weights) == (family == "qwen3")
    assert ("lm_head.weight" in done.weights) == (family == "qwen3")


def test_weights_follow_the_seed_of_the_shape(go: Go) -> None:
    one, same = (go(name, steps=1, shape={**SHAPE, "seed": 5}) for name in ("one", "same"))
    other = go("other", steps=1, shape={**SHAPE, "seed": 6})
    name = "model.embed_tokens.weight"
    assert torch.equal(one.weights[name], same.weights[name])
    assert not torch.equal(one.weights[name], other.weights[name])


def test_it_goes_on_from_a_model(go: Go) -> None:
    first = go("first", steps=30, tokens_per_step=800)
    second = go("second", model=str(first.model_folder), steps=1)
    assert second.lines[0]["loss/train"] < first.lines[0]["loss/train"] - 1
    assert second.load().tokenizer.encode("12+3=15") == first.load().tokenizer.encode("12+3=15")


@pytest.mark.parametrize("stops", [(1,), (2,), (3, 5), (4, 4, 4)])
def test_an_interrupted_stage_ends_bit_for_bit_as_the_unbroken_one(
    stops: tuple[int, ...], go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before the update of these calls, counted anew after each start."""
    whole = go("whole")
    original = trainer.supervised_step
    left = list(stops)
    calls = [0]

    def step(*args: Any, **kwargs: Any) -> UpdateStatistics:
        calls[0] += 1
        if left and calls[0] >= left[0]:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "supervised_step", step)
    while left:
        calls[0] = 0
        # a start after the last checkpoint may have fewer updates left than the number says
        with contextlib.suppress(InterruptedRunError):
            go("broken")
        left.pop(0)
    broken = go("broken")
    assert whole.weights.keys() == broken.weights.keys()
    assert all(torch.equal(weight, broken.weights[name]) for name, weight in whole.weights.items())
    assert broken.timeless() == whole.timeless()


@pytest.mark.parametrize(("stop", "step"), [(5, "step 2"), (3, "its beginning")])
def test_a_damaged_checkpoint_costs_the_steps_behind_the_one_before(
    stop: int, step: str, go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = go("whole")
    original, calls = trainer.supervised_step, itertools.count(1)

    def update(*args: Any, **kwargs: Any) -> UpdateStatistics:
        if next(calls) == stop:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "supervised_step", update)
    with pytest.raises(InterruptedRunError):
        go("broken")
    tear_checkpoint(tmp_path / "broken")
    broken = go("broken")
    told = " ".join(capsys.readouterr().err.split())
    assert f"state.pt is damaged: the stage goes back to the checkpoint before it, and on from {step}" in told
    assert all(torch.equal(weight, broken.weights[name]) for name, weight in whole.weights.items())
    assert broken.timeless() == whole.timeless()


def poison(monkeypatch: pytest.MonkeyPatch, calls: set[int]) -> None:
    original = Optimizer.step
    count = [0]

    def step(self: Any, *args: Any) -> float | None:
        count[0] += 1
        if count[0] in calls:
            self.parameters[0].grad[0, 0] = math.inf
        return original(self, *args)

    monkeypatch.setattr(Optimizer, "step", step)


def test_an_update_that_is_not_finite_is_skipped_and_logged(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {1, 2, 4, 5})
    done = go(steps=6)
    assert [line["grad/norm"] is None for line in done.lines] == [True, True, False, True, True, False]
    assert all(bool(weight.isfinite().all()) for weight in done.weights.values())


def test_three_in_a_row_are_refused(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {2, 3, 4})
    with pytest.raises(RefusedError, match=r"lower optimizer\.lr"):
        go(steps=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ["elsewhere"]}, "mini-world"),
        ({"context": 300}, r"context \(300\).*256 positions"),
        ({"data_options": {**WORLD, "generous_share": 0.1}}, "data_options.*generous_share"),
        ({"data_options": {}}, "data_options.*tasks"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], message: str, go: Go) -> None:
    with pytest.raises(UsageError, match=message):
        go(**changes)


def test_a_base_may_be_given_more_positions(go: Go, tmp_path: Path) -> None:
    base = go("base")
    with pytest.raises(UsageError, match=r"context \(300\).*256 positions"):
        go("short", model=str(base.model_folder), context=300)
    wide = go("wide", model=str(base.model_folder), context=300, max_positions=512, optimizer={"lr": 1e-12})
    before, after = base.load(), wide.load()
    assert (before.config.max_positions, after.config.max_positions) == (256, 512)
    assert torch.equal(after.decoder.rotations[:256], before.decoder.rotations)
    ids = torch.arange(1, 41)[None]
    torch.testing.assert_close(after.decoder.logits(ids), before.decoder.logits(ids))
    assert after.decoder.logits(ids.repeat(1, 10)).shape[:2] == (1, 400)
