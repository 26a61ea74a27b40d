"""The verb `train_reward` as whole stages: what it learns, measures, refuses, and that a stop changes nothing."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tear_checkpoint

from ponder.curation.endpoint import Messages, Progress
from ponder.errors import BrokenInputError, InterruptedRunError, LostWorkersError, PonderError, RefusedError, UsageError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder, Layer
from ponder.model.folder import save_folder
from ponder.model.load import load_model
from ponder.model.reward_model import RewardModel, load_reward_model
from ponder.pipeline import run_pipeline
from ponder.recipe import EndpointSettings, load_recipe
from ponder.run import RunFolder
from ponder.stages import train_reward
from ponder.store.datasets import PreferencePair, read_card, read_rows
from ponder.training import execution, trainer
from ponder.training.optimizer import Optimizer
from ponder.training.reward_update import RewardStatistics

JsonRow = dict[str, Any]


class Done:
    """What a finished stage left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = RunFolder(folder)
        self.lines = self.run.metrics("rm")
        self.held_out = {k: v for line in self.lines for k, v in line.items() if k.startswith("heldout/")}

    def load(self) -> RewardModel:
        return load_reward_model(self.folder / "stages" / "rm")

    def samples(self) -> list[JsonRow]:
        path = self.folder / "stages" / "rm" / "samples" / "held-out.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]

    def timeless(self) -> list[JsonRow]:
        return [
            {k: v for k, v in line.items() if k not in ("time", "elapsed") and not k.startswith("speed/")}
            for line in self.lines
        ]


Go = Callable[..., Done]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizer = load_model("mini").tokenizer
    config = DecoderConfig(
        "llama", tokenizer.vocab_size, 16, 24, 2, 2, 1, 8, 128, eos_ids=tokenizer.eos_ids, initializer_range=0.2
    )
    decoder = Decoder(config)
    decoder.initialise(0)
    folder = tmp_path_factory.mktemp("base") / "model"
    save_folder(folder, decoder, tokenizer)
    return str(folder)


@pytest.fixture
def go(tmp_path: Path, base: str) -> Go:
    def run(
        rows: Sequence[JsonRow] | None = None, /, folder: str = "run", recipe: JsonRow | None = None, **changes: Any
    ) -> Done:
        stage: dict[str, Any] = {
            "verb": "train_reward",
            "model": base,
            "template": "mini",
            "data": ["mini-world"] if rows is None else [str(tmp_path / "rows.jsonl")],
            "rows": 60 if rows is None else 0,
            "rows_per_step": 8,
            "max_tokens": 100,
            "checkpoint_every": 2,
            "optimizer": {"lr": 3e-3, "warmup_steps": 0},
            **changes,
        }
        if rows is not None:
            (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        whole = load_recipe({"name": "tiny", "threads": 1, "stages": {"rm": stage}, **(recipe or {})})
        run_pipeline(whole, tmp_path / folder, quiet=True)
        return Done(tmp_path / folder)

    return run


def wordy_pairs(count: int, longer_wins: bool = True) -> list[JsonRow]:
    """Replies of one word over and over; the longer one is chosen, or the shorter one."""
    rng = random.Random(0)
    rows = []
    for number in range(count):
        short = rng.randint(1, 6)
        sides = ["yes " * (short + rng.randint(4, 10)), "yes " * short]
        chosen, rejected = sides if longer_wins else sides[::-1]
        rows.append({"prompt": f"say {number}", "chosen": chosen, "rejected": rejected})
    return rows


@pytest.mark.parametrize("longer_wins", [True, False])
def test_a_model_that_can_only_count_shows_its_length_bias(longer_wins: bool, go: Go) -> None:
    done = go(wordy_pairs(120, longer_wins), epochs=3)
    sign = 1 if longer_wins else -1
    assert done.held_out["heldout/accuracy/mean"] > 0.9
    assert sign * done.held_out["heldout/length/correlation"] > 0.85
    assert done.held_out["heldout/length/longer_wins"] == pytest.approx(float(longer_wins), abs=0.1)
    assert done.held_out["heldout/length/longer_chosen"] == float(longer_wins)
    short, long = done.load().score_replies(["say 5", "say 5"], ["yes " * 2, "yes " * 14])
    assert sign * (long - short) > 1


def test_labels_are_learnt_and_the_threshold_is_half(go: Go) -> None:
    rng = random.Random(0)
    rows = [
        {"prompt": f"say {i}", "reply": " ".join([*rng.sample(["one", "two", "three", "four"], 2), word]), "safe": safe}
        for i in range(60)
        for word, safe in (("thank you", True), ("kill", False))
    ]
    done = go(rows, kind="pointwise", score="reply", epochs=3)
    assert done.held_out["heldout/accuracy/mean"] > 0.9
    assert done.held_out["heldout/calibration/brier"] < 0.2
    samples = done.samples()
    right = [(s["score"] > 0) == s["safe"] for s in samples]
    assert done.held_out["heldout/accuracy/mean"] == pytest.approx(sum(right) / len(right))
    good, bad = done.load().score_replies(["say 1"] * 2, ["two one thank you", "two one kill"])
    assert good > bad


def test_what_it_leaves(go: Go) -> None:
    done = go(epochs=2)
    trained = [line for line in done.lines if "loss/train" in line]
    model, samples = done.load(), done.samples()
    counts = {name: done.lines[0][f"data/{name}"] for name in ("examples", "heldout", "left_out")}
    assert counts["heldout"] == len(samples)
    assert sum(counts.values()) == 60
    assert len(trained) == -(-2 * counts["examples"] // 8)
    assert {"accuracy/train", "grad/norm", "optimizer/lr", "tokens/trained"} <= trained[0].keys()
    raw = torch.tensor([s[side] for s in samples for side in ("chosen_score", "rejected_score")], dtype=torch.float64)
    assert model.norm.mean == pytest.approx(float(raw.mean()))
    assert model.norm.deviation == pytest.approx(float(raw.std()))
    assert model.norm.lowest == pytest.approx(float(raw.min()))
    normed = model.score_replies([s["prompt"] for s in samples], [s["chosen"] for s in samples])
    assert normed == pytest.approx(
        [(s["chosen_score"] - model.norm.mean) / model.norm.deviation for s in samples], abs=1e-3
    )
    rows = {row["metric"]: row for row in done.run.evaluations()}
    accuracy = rows["accuracy/mean"]
    assert (accuracy["model"], accuracy["benchmark"]) == ("rm", "held-out pairs")
    assert accuracy["interval"][0] <= accuracy["value"] <= accuracy["interval"][1]
    assert accuracy["value"] == done.held_out["heldout/accuracy/mean"] == model.figures["accuracy/mean"]
    assert accuracy["rows"] == len(samples)
    assert (done.folder / accuracy["samples"]).exists()
    assert {f"heldout/{name}" for name in rows} <= done.held_out.keys()


def test_each_epoch_takes_every_row_once_in_an_order_of_its_own(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = trainer.reward_step

    def step(model: Any, optimizer: Any, examples: Any, budget: int) -> RewardStatistics:
        seen.extend(examples)
        return original(model, optimizer, examples, budget)

    monkeypatch.setattr(trainer, "reward_step", step)
    rows = wordy_pairs(40)
    go(rows, epochs=2.5)
    count = 34  # 40 without 15%
    assert len(seen) == 85
    first, second, half = seen[:count], seen[count : 2 * count], seen[2 * count :]
    assert len(set(first)) == count
    assert set(first) == set(second)
    assert set(half) < set(first)
    assert first != second


@pytest.mark.parametrize("stops", [(1,), (4,), (2, 3, 1), (7,)])
def test_an_interrupted_stage_ends_bit_for_bit_as_the_unbroken_one(
    stops: tuple[int, ...], go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before the update of these calls, counted anew after each start; 7 is none: the end is."""
    settings: dict[str, Any] = {"frozen_layers": 1}
    whole = go(**settings)
    updates = sum("loss/train" in line for line in whole.lines)
    assert updates == 7
    left, calls = list(stops), [0]
    step, save = trainer.reward_step, train_reward.save_reward_model

    def stopping_step(*args: Any) -> RewardStatistics:
        calls[0] += 1
        if left and calls[0] >= left[0]:
            raise KeyboardInterrupt
        return step(*args)

    def stopping_save(*args: Any) -> None:
        if left:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(trainer, "reward_step", stopping_step)
    monkeypatch.setattr(train_reward, "save_reward_model", stopping_save)
    while left:
        calls[0] = 0
        with contextlib.suppress(InterruptedRunError):
            go(folder="broken", **settings)
        left.pop(0)
    broken = go(folder="broken", **settings)
    assert broken.timeless() == whole.timeless()
    assert broken.run.evaluations() == whole.run.evaluations()
    models = [done.folder / "stages" / "rm" / "model" for done in (whole, broken)]
    names = {path.name for path in models[0].iterdir()}
    assert names == {path.name for path in models[1].iterdir()}
    assert all((models[0] / name).read_bytes() == (models[1] / name).read_bytes() for name in names)


@pytest.mark.parametrize(("stop", "step"), [(8, "step 6"), (4, "its beginning")])
def test_a_damaged_checkpoint_costs_the_steps_behind_the_one_before(
    stop: int,
    step: str,
    go: Go,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the last step, with which everything held out is measured again, or of the first."""
    whole = go()
    original, save, calls = trainer.reward_step, train_reward.save_reward_model, itertools.count(1)

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            if next(calls) == stop:
                raise KeyboardInterrupt
            return function(*args)

        return call

    monkeypatch.setattr(trainer, "reward_step", stopping(original))
    monkeypatch.setattr(train_reward, "save_reward_model", stopping(save))
    with pytest.raises(InterruptedRunError):
        go(folder="broken")
    tear_checkpoint(tmp_path / "broken")
    broken = go(folder="broken")
    told = " ".join(capsys.readouterr().err.split())
    assert f"state.pt is damaged: the stage goes back to the checkpoint before it, and on from {step}" in told
    assert broken.timeless() == whole.timeless()
    assert broken.run.evaluations() == whole.run.evaluations()
    models = [done.folder / "stages" / "rm" / "model" for done in (whole, broken)]
    assert all((models[0] / path.name).read_bytes() == path.read_bytes() for path in models[1].iterdir())


def test_frozen_layers_keep_their_weights(go: Go, base: str) -> None:
    before, after = load_model(base).decoder.state_dict(), go(frozen_layers=1).load().decoder.state_dict()
    assert after.pop("head.weight").shape == (1, 16)
    kept = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert kept == {name for name in after if name.startswith(("embedding.", "layers.0."))}


def test_half_precision_moves_whole_weights_about_as_far(go: Go) -> None:
    plain, half = go(epochs=2), go(folder="half", recipe={"precision": "bf16"}, epochs=2)
    losses = [[line["loss/train"] for line in done.lines if "loss/train" in line] for done in (plain, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert half.held_out["heldout/accuracy/mean"] == pytest.approx(plain.held_out["heldout/accuracy/mean"], abs=0.15)
    weights = half.load().decoder.state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert not torch.equal(weights["norm.weight"].bfloat16().float(), weights["norm.weight"])


def test_activations_computed_again_give_the_same_model(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls, counts, models = Layer._compute, [0], [], []

    def counted(self: Layer, *arguments: Any) -> torch.Tensor:
        calls[0] += 1
        return plain(self, *arguments)

    monkeypatch.setattr(Layer, "_compute", counted)
    for enabled in (False, True):
        calls[0] = 0
        done = go(folder=f"again {enabled}", recipe={"activation_checkpointing": enabled}, frozen_layers=1)
        counts.append(calls[0])
        models.append((done.folder / "stages" / "rm" / "model" / "model.safetensors").read_bytes())
    assert models[0] == models[1]
    assert counts[1] == counts[0] + 7  # steps, of a micro-batch each, and of the two layers one learns


def test_ranks_that_are_lost_send_the_stage_back_as_often_as_is_allowed(
    go: Go, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step, of which there is no checkpoint, then in the third, of which there is one."""
    whole = go()
    step, calls = trainer.reward_step, [0]

    def losing(*arguments: Any) -> RewardStatistics:
        calls[0] += 1
        if calls[0] in (1, 4):
            raise LostWorkersError("trainer rank 1 of 2 died")
        return step(*arguments)

    monkeypatch.setattr(trainer, "reward_step", losing)
    with pytest.raises(InterruptedRunError, match="rank 1 of 2 died"):
        go(folder="gives up", recipe={"cluster": {"kind": "local", "max_restarts": 0}})
    calls[0] = 0
    done = go(folder="goes on", recipe={"cluster": {"kind": "local", "max_restarts": 2}})
    assert calls[0] == 7 + 2
    assert done.timeless() == whole.timeless()
    calls[0] = 0
    with pytest.raises(InterruptedRunError):
        go(folder="gives up later", recipe={"cluster": {"kind": "local", "max_restarts": 1}})
    assert calls[0] == 4


class Judge:
    """In place of an endpoint: prefers the reply that says yes more often, and knows no other grades."""

    asked = 0

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings

    def ask_all(self, conversations: Sequence[Messages], on_progress: Progress | None = None) -> list[str]:
        type(self).asked += len(conversations)
        return [json.dumps({"verdict": self.verdict(messages[-1]["content"])}) for messages in conversations]

    @staticmethod
    def verdict(text: str) -> str:
        a, b = (text.split(f"\n{side}: ")[1].split("\n")[0].count("yes") for side in "AB")
        return "A>>B" if a > b + 1 else "B>>A" if b > a + 1 else "A=B"


def test_a_judge_makes_the_pairs_and_is_asked_once(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"prompt": f"say {i}", "a": "yes " * (1 + i % 2 * 6), "b": "yes " * (7 - i % 2 * 6), "id": str(i)}
        for i in range(36)
    ]
    rows += [{"prompt": "same", "a": "yes yes", "b": "yes"}]
    monkeypatch.setattr(train_reward, "Endpoint", Judge)
    monkeypatch.setattr(Judge, "asked", 0)
    judge = {"base_url": "http://localhost/v1", "model": "judge"}
    original = trainer.reward_step

    def stop(*_: Any) -> RewardStatistics:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "reward_step", stop)
    with pytest.raises(InterruptedRunError):
        go(rows, judge=judge)
    assert Judge.asked == 4 * 37
    monkeypatch.setattr(trainer, "reward_step", original)
    done = go(rows, judge=judge)
    assert Judge.asked == 4 * 37
    data = done.folder / "stages" / "rm" / "data"
    pairs = read_rows(data, PreferencePair)
    assert len(pairs) == 36
    assert all(len(pair.chosen) > len(pair.rejected) and pair.margin == 2.0 for pair in pairs)
    assert read_card(data)["dropped"] == {"the judge sees too little difference": 1}
    with pytest.raises(UsageError, match=r"37 pairs.*name a `judge`"):
        go(rows, folder="other")


@pytest.mark.parametrize(
    ("rows", "changes", "error", "message"),
    [
        (None, {"rows": 0}, UsageError, "rows must say"),
        (None, {"data_options": {"flavour": 1}}, UsageError, "data_options do not fit"),
        (None, {"max_tokens": 200}, UsageError, r"max_tokens \(200\).*128 positions"),
        (None, {"frozen_layers": 3}, UsageError, r"frozen_layers \(3\).*2 layers"),
        (None, {"data": ["nowhere.jsonl"]}, BrokenInputError, "nowhere"),
        ([{"prompt": "p", "reply": "r", "safe": True}], {}, UsageError, "set `kind` to pointwise"),
        ([{"prompt": "p", "chosen": "c", "rejected": str(i)} for i in range(9)], {}, RefusedError, "fewer than two"),
        (
            [{"prompt": f"p{i}", "reply": "r", "safe": True} for i in range(9)],
            {"kind": "pointwise"},
            RefusedError,
            "all have one label",
        ),
        ([{"prompt": f"p{i}", "chosen": "c " * 150, "rejected": "r"} for i in range(9)], {}, RefusedError, "9 longer"),
        (
            [{"prompt": f"p{i}", "chosen": "<think> c", "rejected": "r"} for i in range(9)],
            {},
            RefusedError,
            "9 no whole answer",
        ),
        ([{"text": "t"}], {}, RefusedError, "1 no pair and no reply"),
    ],
)
def test_what_does_not_fit_is_said(
    rows: list[JsonRow] | None, changes: JsonRow, error: type[PonderError], message: str, go: Go
) -> None:
    with pytest.raises(error, match=message):
        go(rows, **changes)


def test_scores_that_are_all_alike_are_refused(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "reward_scores", lambda model, execution, replies, budget: [0.5] * len(replies))
    with pytest.raises(RefusedError, match="alike"):
        go()


def test_looking_for_the_loss_scale_is_no_fault(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps overflow, one after the other, and each halves the scale."""
    monkeypatch.setattr(execution, "_FIRST_SCALE", 2.0**24)
    done = go(recipe={"precision": "fp16"}, epochs=4)
    norms = [line["grad/norm"] for line in done.lines if "grad/norm" in line]
    assert norms[:4] == [None] * 4
    assert norms[-1] is not None


def test_three_updates_that_are_not_finite_are_refused(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Optimizer, "step", lambda self, loss: None)
    with pytest.raises(RefusedError, match=r"lower optimizer\.lr"):
        go()
