"""Adapters: the function they stand for, what learns, and that what is merged out of them has their effect."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ponder.errors import UsageError
from ponder.model import lora
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import load_folder, save_folder
from ponder.model.lora import (
    add_adapters,
    has_adapters,
    learnt_weights,
    load_learnt_weights,
    merged_decoder,
    merged_weights,
)
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import LoraSettings, OptimizerSettings
from ponder.rollout.base import Request, Sampling
from ponder.rollout.native import NativeEngine
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example
from ponder.training.update import supervised_step

CONFIG = DecoderConfig(
    family="qwen2",
    vocab_size=40,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_positions=64,
    qkv_bias=True,
    initializer_range=0.4,
)
SETTINGS = LoraSettings(rank=3, alpha=6)
NF4 = LoraSettings(rank=3, alpha=6, quantise="nf4")
IDS = torch.arange(20).view(2, 10) * 7 % 40


def make_decoder(settings: LoraSettings | None = SETTINGS, learnt: bool = True, **changes: Any) -> Decoder:
    """A decoder whose adapters, unless `learnt` is false, are no longer at their start."""
    decoder = Decoder(dataclasses.replace(CONFIG, **changes))
    decoder.initialise(0)
    if settings is not None:
        add_adapters(decoder, settings, seed=1)
        if learnt:
            generator = torch.Generator().manual_seed(2)
            for name, weight in decoder.named_parameters():
                if name.endswith("adapter_b"):
                    nn.init.normal_(weight, std=0.2, generator=generator)
    return decoder


def base_weights(settings: LoraSettings) -> dict[str, Tensor]:
    """What the adapters stand beside: the weights before, as far as they can be read back."""
    return merged_weights(make_decoder(settings, learnt=False))


def examples() -> list[Example]:
    return [Example((1, 2), (3, 4, 5)), Example((6,), (7, 8))]


@pytest.mark.parametrize("settings", [SETTINGS, NF4], ids=["whole", "nf4"])
def test_training_starts_from_the_model_as_it_is(settings: LoraSettings) -> None:
    fresh = make_decoder(settings, learnt=False)
    plain = Decoder(CONFIG)
    plain.load_state_dict(base_weights(settings))
    assert torch.equal(fresh.logits(IDS), plain.logits(IDS))
    a, b = (getattr(fresh.layers[0].qkv, f"adapter_{name}").detach() for name in "ab")
    assert not b.any()
    assert a.abs().max() < 24**-0.5
    assert a.std() == pytest.approx(24**-0.5 / 3**0.5, rel=0.15)
    other = Decoder(CONFIG)
    add_adapters(other, settings, seed=2)
    assert not torch.equal(other.layers[0].qkv.adapter_a, a)


def test_without_quantisation_the_frozen_weights_are_those_of_the_model() -> None:
    plain = make_decoder(None)
    assert all(torch.equal(base_weights(SETTINGS)[name], weight) for name, weight in plain.state_dict().items())


@pytest.mark.parametrize("settings", [SETTINGS, NF4], ids=["whole", "nf4"])
def test_merged_weights_are_w_plus_scaled_b_a(settings: LoraSettings) -> None:
    decoder, base = make_decoder(settings), base_weights(settings)
    merged = merged_weights(decoder)
    assert merged.keys() == make_decoder(None).state_dict().keys()
    adapters = dict(decoder.named_parameters())
    for name, weight in base.items():
        matrix = name.removesuffix(".weight")
        if f"{matrix}.adapter_a" not in adapters:
            assert torch.equal(merged[name], weight)
            continue
        product = adapters[f"{matrix}.adapter_b"] @ adapters[f"{matrix}.adapter_a"]
        torch.testing.assert_close(merged[name], weight + 2.0 * product)  # alpha / r = 6 / 3
        assert (merged[name] - weight).abs().max() > 0.05


@pytest.mark.parametrize("settings", [SETTINGS, NF4], ids=["whole", "nf4"])
def test_the_merged_decoder_says_what_the_adapted_one_says(settings: LoraSettings) -> None:
    decoder = make_decoder(settings)
    plain = merged_decoder(decoder)
    assert not has_adapters(plain)
    torch.testing.assert_close(plain.logits(IDS), decoder.logits(IDS), rtol=1e-4, atol=1e-4)
    assert (make_decoder(settings, learnt=False).logits(IDS) - plain.logits(IDS)).abs().max() > 0.1
    assert merged_decoder(plain) is plain


def test_gradients_are_those_of_the_dense_weights_projected() -> None:
    decoder = make_decoder()
    plain = merged_decoder(decoder)
    for model in (decoder, plain):
        model.logits(IDS).square().mean().backward()
    dense = dict(plain.named_parameters())
    for name, weight in decoder.named_parameters():
        if name.endswith("adapter_a"):  # dA = s B^T dW
            b = decoder.get_parameter(name.replace("adapter_a", "adapter_b"))
            grad = dense[name.replace("adapter_a", "weight")].grad
            torch.testing.assert_close(weight.grad, 2.0 * b.detach().t() @ grad, rtol=1e-3, atol=1e-5)
        elif name.endswith("adapter_b"):  # dB = s dW A^T
            a = decoder.get_parameter(name.replace("adapter_b", "adapter_a"))
            grad = dense[name.replace("adapter_b", "weight")].grad
            torch.testing.assert_close(weight.grad, 2.0 * grad @ a.detach().t(), rtol=1e-3, atol=1e-5)
        else:
            assert weight.grad is None


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("settings", [SETTINGS, NF4], ids=["whole", "nf4"])
def test_a_step_moves_adapters_and_nothing_else(settings: LoraSettings, optimizer: str) -> None:
    decoder = make_decoder(settings)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    update = Optimizer(decoder, OptimizerSettings(name=optimizer, lr=0.01), 10)
    assert supervised_step(decoder, update, examples(), budget=64).finite
    moved = {name for name, tensor in decoder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == set(learnt_weights(decoder))
    assert all(name.endswith(("adapter_a", "adapter_b")) for name in moved)


@pytest.mark.parametrize("settings", [SETTINGS, NF4], ids=["whole", "nf4"])
def test_a_checkpoint_holds_the_adapters_and_restores_the_function(settings: LoraSettings) -> None:
    decoder, fresh = make_decoder(settings), make_decoder(settings, learnt=False)
    load_learnt_weights(fresh, learnt_weights(decoder))
    assert torch.equal(fresh.logits(IDS), decoder.logits(IDS))
    fresh = make_decoder(settings, learnt=False)
    fresh.load_state_dict(decoder.state_dict())
    assert torch.equal(fresh.logits(IDS), decoder.logits(IDS))
    with pytest.raises(KeyError):
        load_learnt_weights(make_decoder(None), learnt_weights(decoder))


def test_rank_and_targets_decide_what_learns() -> None:
    decoder = make_decoder(LoraSettings(rank=2, targets=("down", "qkv")))
    sizes = {name: tuple(weight.shape) for name, weight in decoder.named_parameters() if weight.requires_grad}
    assert sizes == {
        f"layers.{layer}.{target}.adapter_{name}": shape
        for layer in (0, 1)
        for target, inputs, outputs in (("qkv", 24, (4 + 2 * 2) * 6), ("down", 40, 24))
        for name, shape in (("a", (2, inputs)), ("b", (outputs, 2)))
    }
    assert sum(weight.numel() for weight in learnt_weights(decoder).values()) == 2 * 2 * (24 + 48 + 40 + 24)


def test_the_order_of_targets_does_not_matter() -> None:
    one, other = (make_decoder(LoraSettings(targets=t)) for t in (("qkv", "out"), ("out", "qkv")))
    assert torch.equal(one.logits(IDS), other.logits(IDS))


def test_weights_gathered_elsewhere_are_merged_as_ones_own() -> None:
    trained = make_decoder()
    merged = merged_weights(make_decoder(learnt=False), trained.state_dict())
    assert all(torch.equal(weight, merged[name]) for name, weight in merged_weights(trained).items())


def test_bfloat16_weights_are_merged_in_float32() -> None:
    decoder = make_decoder().bfloat16()
    linear = decoder.layers[0].qkv
    exact = linear.weight.float() + 2.0 * linear.adapter_b.float() @ linear.adapter_a.float()
    assert torch.equal(merged_weights(decoder)["layers.0.qkv.weight"], exact.bfloat16())


@pytest.mark.parametrize("settings", [SETTINGS, NF4], ids=["whole", "nf4"])
def test_the_engine_samples_from_the_adapted_function(settings: LoraSettings) -> None:
    decoder = make_decoder(settings)
    request, sampling = Request((1, 2, 3), "lora", 4), Sampling(temperature=1.0, max_tokens=8, stop_ids=frozenset())
    (adapted,), (merged,) = (
        NativeEngine(model).generate([request], sampling, seed=3) for model in (decoder, merged_decoder(decoder))
    )
    assert [c.ids for c in adapted] == [c.ids for c in merged]
    for one, other in zip(adapted, merged, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_copy_is_independent() -> None:
    for settings in (SETTINGS, NF4):
        decoder = make_decoder(settings)
        reference = copy.deepcopy(decoder)
        with torch.no_grad():
            decoder.layers[0].qkv.adapter_b.zero_()
        assert not torch.equal(reference.logits(IDS), decoder.logits(IDS))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_folder_left_has_the_adapters_effect_in_transformers(tmp_path: Path, family: str) -> None:
    import transformers

    tokenizer = Tokenizer.train(["0123456789+-* wait"], vocab_size=470)
    decoder = make_decoder(family=family, qkv_bias=family == "qwen2", vocab_size=tokenizer.vocab_size)
    save_folder(tmp_path / "model", merged_decoder(decoder), tokenizer)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, decoder.logits(IDS), rtol=1e-3, atol=1e-3)
    assert torch.equal(load_folder(tmp_path / "model").decoder.logits(IDS), merged_decoder(decoder).logits(IDS))


def test_peft_computes_the_same_with_the_same_matrices(tmp_path: Path) -> None:
    """peft's adapters on q, k and v, all with our one A and each with its rows of our B."""
    import peft
    import transformers

    from ponder.model.decoder import deinterleave

    tokenizer = Tokenizer.train(["0123456789+-* wait"], vocab_size=470)
    sizes = {"vocab_size": tokenizer.vocab_size, "family": "llama", "qkv_bias": False}
    save_folder(tmp_path / "base", make_decoder(None, **sizes), tokenizer)
    ours = make_decoder(**sizes)
    parts = {
        "qkv": (("self_attn.q_proj", 24, True), ("self_attn.k_proj", 12, True), ("self_attn.v_proj", 12, False)),
        "out": (("self_attn.o_proj", 24, False),),
        "gate_up": (("mlp.gate_proj", 40, False), ("mlp.up_proj", 40, False)),
        "down": (("mlp.down_proj", 24, False),),
    }
    names = [name.split(".")[1] for members in parts.values() for name, _, _ in members]
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=3, lora_alpha=6, target_modules=names))
    with torch.no_grad():
        for layer, other in zip(ours.layers, theirs.base_model.model.model.layers, strict=True):
            for target, members in parts.items():
                adapted = getattr(layer, target)
                rows = adapted.adapter_b.split([size for _, size, _ in members])
                for (name, _, rotary), b in zip(members, rows, strict=True):
                    module = other.get_submodule(name)
                    module.lora_A["default"].weight.copy_(adapted.adapter_a)
                    module.lora_B["default"].weight.copy_(deinterleave(b, CONFIG.head_dim) if rotary else b)
        torch.testing.assert_close(theirs(IDS).logits, ours.logits(IDS), rtol=1e-3, atol=1e-3)
        merged = theirs.merge_and_unload()
        save_folder(tmp_path / "merged", merged_decoder(ours), tokenizer)
        exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        for name, weight in merged.state_dict().items():
            torch.testing.assert_close(exported.state_dict()[name], weight)


def test_nf4_keeps_a_frozen_matrix_in_four_and_a_half_bits_a_weight() -> None:
    def bytes_of(decoder: Decoder) -> int:
        return sum(t.nbytes for name, t in decoder.state_dict().items() if name.startswith("layers.0.gate_up"))

    adapters = 3 * (64 + 2 * 128) * 4
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    assert bytes_of(make_decoder(**sizes)) == 4 * 64 * 256 + adapters
    assert bytes_of(make_decoder(NF4, **sizes)) == 4.5 / 8 * 64 * 256 + adapters


_NEGATIVE = (1.0, 0.6961928, 0.5250731, 0.3949175, 0.2844414, 0.1847734, 0.0910500)
_POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
"""The sixteen values but zero: QLoRA, appendix E."""


def test_nf4_rounds_to_the_papers_sixteen_values() -> None:
    decoder = make_decoder(NF4, learnt=False, hidden_size=64)
    weight = merged_weights(decoder)["layers.0.gate_up.weight"]
    original = make_decoder(None, hidden_size=64).state_dict()["layers.0.gate_up.weight"]
    for block, before in zip(weight.view(-1, 64), original.view(-1, 64), strict=True):
        scale = before.abs().max()
        levels = torch.tensor([*(-x for x in _NEGATIVE), 0.0, *_POSITIVE])
        nearest = levels[(before[:, None] / scale - levels).abs().argmin(1)] * scale
        torch.testing.assert_close(block, nearest, rtol=1e-4, atol=1e-4)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(UsageError, match="Llama, Qwen2 and Qwen3 models alone"):
        add_adapters(FallbackDecoder.__new__(FallbackDecoder), SETTINGS, 0)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(lora, "_bitsandbytes", lora._bitsandbytes.__wrapped__)
    with pytest.raises(UsageError, match=r'pip install "ponder\[qlora\]"'):
        make_decoder(NF4)


_LOADS_NF4 = """
import sys
from ponder.model import lora
library = lora._bitsandbytes()
assert library is lora._bitsandbytes()
assert "kernels" not in sys.modules
"""


def test_bitsandbytes_fetches_no_code_from_the_hub(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "kernels.py").write_text("raise SystemExit('asked for code from the Hub')\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(repository)])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LOADS_NF4],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
