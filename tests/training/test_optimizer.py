"""Schedules by hand, clipping, the skipped step, and a state from which training goes on bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.recipe import OptimizerSettings
from ponder.training.optimizer import Optimizer, lr_factor
from ponder.training.state_file import load_state, save_state


def factors(steps: int, **settings: Any) -> list[float]:
    return [lr_factor(OptimizerSettings(**settings), step, steps) for step in range(steps + 2)]


def test_schedules_by_hand() -> None:
    assert factors(4, schedule="constant", warmup_steps=2) == [0.5, 1, 1, 1, 1, 1]
    assert factors(3, schedule="constant", warmup_steps=0) == [1, 1, 1, 1, 1]
    # from 1 to 0.2 over the four steps after one step of warm-up, and no further
    found = factors(5, schedule="linear", warmup_steps=1, final_lr_share=0.2)
    assert found == pytest.approx([1, 1, 0.8, 0.6, 0.4, 0.2, 0.2])
    # half a cosine: at a quarter of the way (1 + cos(pi/4)) / 2
    found = factors(6, schedule="cosine", warmup_steps=2, final_lr_share=0.0)
    assert found == pytest.approx([0.5, 1, 1, 0.853553, 0.5, 0.146447, 0, 0], abs=1e-6)
    assert factors(2, schedule="linear", warmup_steps=5) == pytest.approx([0.2, 0.4, 0.6, 0.8])


class Line(nn.Module):
    """Two parameters of known gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def set_gradient(self, *values: float) -> None:
        self.weight.grad = torch.tensor(values, dtype=torch.float64)


def make_settings(**changes: Any) -> OptimizerSettings:
    return OptimizerSettings(**{"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "warmup_steps": 0, **changes})


def test_adamw_by_hand() -> None:
    model = Line()
    optimizer = Optimizer(model, make_settings(weight_decay=0.5, grad_clip=100.0, warmup_steps=2), total_steps=10)
    assert optimizer.lr == pytest.approx(0.05)
    model.set_gradient(3.0, -4.0)
    assert optimizer.step() == pytest.approx(5.0)
    # half the rate; decay 1 - 0.05 * 0.5; the first step of Adam is the rate times the gradient's sign
    expected = [1 * 0.975 - 0.05, -2 * 0.975 + 0.05]
    assert model.weight.tolist() == pytest.approx(expected, abs=1e-8)
    assert model.weight.grad is None
    assert optimizer.lr == pytest.approx(0.1)


def test_long_gradients_are_shortened() -> None:
    """Adam forgets a constant scale, so what tells is a long gradient beside a short one."""
    model, reference = Line(), Line()
    optimizer = Optimizer(model, make_settings(grad_clip=1.0), total_steps=10)
    plain = torch.optim.AdamW(reference.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for given, clipped in (((3.0, -4.0), (0.6, -0.8)), ((0.3, 0.4), (0.3, 0.4))):
        model.set_gradient(*given)
        reference.set_gradient(*clipped)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(model.weight, reference.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    model = Line()
    optimizer = Optimizer(model, make_settings(), total_steps=10)
    model.set_gradient(0.5, 0.5)
    assert optimizer.step() is not None
    weight, state = model.weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["parts"])
    model.set_gradient(0.1, bad)
    assert optimizer.step() is None
    assert torch.equal(model.weight, weight)
    assert model.weight.grad is None
    after = optimizer.state_dict()["parts"]
    for name, value in state[0]["state"][0].items():
        assert torch.equal(after[0]["state"][0][name], value), name
    assert optimizer.step_count == 2  # the schedule goes on
    # nor does a finite gradient of a loss that is not
    model.set_gradient(0.1, 0.1)
    assert optimizer.step(loss=bad) is None
    assert torch.equal(model.weight, weight)
    model.set_gradient(0.5, 0.5)
    assert optimizer.step(loss=1.0) == pytest.approx(0.5**0.5)
    assert bool(model.weight.isfinite().all())
    assert not torch.equal(model.weight, weight)


def make_decoder() -> Decoder:
    decoder = Decoder(
        DecoderConfig(
            family="llama",
            vocab_size=11,
            hidden_size=8,
            intermediate_size=12,
            num_layers=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=4,
            max_positions=32,
            tied_embeddings=False,
        )
    )
    decoder.initialise(0)
    return decoder


def train(decoder: Decoder, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        logits = decoder.logits(torch.randint(11, (2, 6), generator=generator))
        (logits * torch.randn(logits.shape, generator=generator)).sum().backward()
        assert optimizer.step() is not None


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_goes_on_from_a_saved_state_bit_for_bit(name: str, tmp_path: Path) -> None:
    settings = make_settings(name=name, lr=1e-3, schedule="cosine", warmup_steps=2)
    whole = make_decoder()
    train(whole, Optimizer(whole, settings, 7), range(7))

    first = make_decoder()
    optimizer = Optimizer(first, settings, 7)
    train(first, optimizer, range(4))
    save_state(tmp_path / "state.pt", {"weights": first.state_dict(), "optimizer": optimizer.state_dict()})

    second = make_decoder()
    resumed = Optimizer(second, settings, 7)
    state = load_state(tmp_path / "state.pt")
    assert state is not None
    second.load_state_dict(state["weights"])
    resumed.load_state_dict(state["optimizer"])
    assert resumed.step_count == 4
    assert resumed.lr == optimizer.lr
    train(second, resumed, range(4, 7))
    for (key, a), b in zip(whole.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), key


def test_muon_takes_the_matrices_of_the_layers_at_its_own_rate() -> None:
    """AdamW's rate is zero here, so what moves is Muon's."""
    decoder = make_decoder()
    before = copy.deepcopy(decoder.state_dict())
    settings = make_settings(name="muon", lr=1e-30, muon_lr=0.1)
    train(decoder, Optimizer(decoder, settings, 5), range(1))
    moved = {name for name, weight in decoder.named_parameters() if not torch.equal(weight, before[name])}
    matrices = ("qkv", "out", "gate_up", "down")
    assert moved == {f"layers.{i}.{name}.weight" for i in range(2) for name in matrices}
