"""The smallest reinforce runs that show everything: a random model of one layer, four steps, random rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.folder import save_folder
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import Recipe, load_recipe
from ponder.run import RunFolder
from ponder.store.rollouts import RolloutRow


def make_model(folder: Path) -> Path:
    """A random model of one layer, with a tokenizer in which two thirds of all tokens go on and one third ends."""
    tokenizer = Tokenizer.train(["0123456789+-* wait"], vocab_size=470)
    config = DecoderConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=256,
        eos_ids=tokenizer.eos_ids,
        initializer_range=0.1,
    )
    decoder = Decoder(config)
    decoder.initialise(0)
    tokenizer.eos_ids = tuple(range(0, tokenizer.vocab_size, 3))
    save_folder(folder, decoder, tokenizer)
    return folder


def make_recipe(model: Path, **changes: Any) -> Recipe:
    """Four steps of 2 prompts x 4 samples x 12 tokens with a random reward; nested blocks are merged."""
    stage: dict[str, Any] = {
        "verb": "reinforce",
        "model": str(model),
        "template": "mini",
        "tasks": {"arithmetic": {"difficulty": 2}},
        "rewards": {"random": 1.0, "format": 0.5},
        "steps": 4,
        "prompts_per_step": 2,
        "group_size": 4,
        "sampling": {"max_tokens": 12},
        "optimizer": {"lr": 3e-3},
        "evaluation": {"every": 0},
        "watchdog": {"enabled": False, "preflight_prompts": 0},
        "checkpoint_every": 2,
    }
    for name, value in changes.items():
        stage[name] = {**stage[name], **value} if name in ("watchdog", "optimizer", "sampling") else value
    return load_recipe({"name": "tiny", "threads": 1, "judging": {"workers": 0}, "stages": {"zero": stage}})


class Done:
    """A finished run, read back."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder)
        self.lines = self.run.metrics("zero")
        self.weights: dict[str, Tensor] = load_file(folder / "stages" / "zero" / "model" / "model.safetensors")

    @property
    def training(self) -> list[dict[str, Any]]:
        """The metrics of the steps, without those of evaluations."""
        return [line for line in self.lines if "loss/policy" in line]

    def rollouts(self, split: str = "train") -> list[RolloutRow]:
        return list(self.run.rollouts().iter_rollouts("zero", split=split, tokens=True))

    def series(self, name: str) -> list[float]:
        return [line[name] for line in self.training]


Go = Callable[..., Done]


def tear_checkpoint(run: Path) -> None:
    """Do to the newest checkpoint of a run's only stage what a torn disk does."""
    (newest,) = run.glob("stages/*/state/state.pt")
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])


def same_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def timeless(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Metrics without what the clock decides."""
    clock = ("time", "elapsed")
    return [{k: v for k, v in line.items() if k not in clock and k[:5] not in ("time/", "speed")} for line in lines]
