"""Low-rank adapters beside frozen weights [LoRA, 2106.09685], which may be kept in 4 bits [QLoRA, 2305.14314].

    y = x W^T + b + (alpha / r) x A^T B^T        A (r, inputs) and B (outputs, r) learn, all else is frozen

Adapters stand beside the decoder's own matrices, two of which are several of Hugging Face's in one: q, k and v share
their A, and so do gate and up (docs/lora.md). Whoever is handed weights from here, be it a folder, a sampler or
an export, gets whole matrices with the adapters merged in, under the decoder's own names.
"""

from __future__ import annotations

import logging
import math
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ponder.errors import UsageError
from ponder.model.decoder import Decoder, Linear
from ponder.model.fallback import FallbackDecoder
from ponder.recipe import LoraSettings

_NF4_BLOCK = 64
"""Weights that share one scale, as in the paper: 4 bits each and half a bit of scale."""


class Adapted(nn.Module):
    """A frozen matrix with an adapter; subclasses differ in how they keep W."""

    def __init__(self, linear: Linear, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.scale = settings.alpha / settings.rank
        self.bias = linear.bias
        # as the paper's own code: A as nn.Linear would be, and B zero, so that training starts from the model as it is
        bound = 1 / math.sqrt(inputs)
        start = torch.empty(settings.rank, inputs).uniform_(-bound, bound, generator=generator)
        self.adapter_a = nn.Parameter(start.to(linear.weight))
        self.adapter_b = nn.Parameter(linear.weight.new_zeros(outputs, settings.rank))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs)."""
        return self.frozen(x) + self.scale * F.linear(F.linear(x, self.adapter_a), self.adapter_b)

    @abstractmethod
    def frozen(self, x: Tensor) -> Tensor:
        """x W^T + b."""

    @abstractmethod
    def frozen_weight(self, own: Mapping[str, Tensor]) -> Tensor:
        """W, of this module's own tensors by name."""

    def merged_weight(self, own: Mapping[str, Tensor]) -> Tensor:
        """W + (alpha / r) B A, of this module's own tensors by name; computed in float32 or better, in W's dtype."""
        weight = self.frozen_weight(own)
        precision = torch.promote_types(weight.dtype, torch.float32)
        a, b = own["adapter_a"].to(precision), own["adapter_b"].to(precision)
        return torch.addmm(weight.to(precision), b, a, alpha=self.scale).to(weight.dtype)


class LoraLinear(Adapted):
    """W as it is."""

    def __init__(self, linear: Linear, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__(linear, settings, generator)
        self.weight = linear.weight

    def frozen(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def frozen_weight(self, own: Mapping[str, Tensor]) -> Tensor:
        return own["weight"]


class Nf4LoraLinear(Adapted):
    """W in 4-bit NormalFloat: two weights a byte and one scale for each 64; bitsandbytes does all arithmetic.

    They are buffers, not parameters: nothing shards them, casts them or hands them to an optimizer.
    """

    def __init__(self, linear: Linear, settings: LoraSettings, generator: torch.Generator) -> None:
        super().__init__(linear, settings, generator)
        self._shape, self._dtype = linear.weight.shape, linear.weight.dtype
        weight = linear.weight.detach()
        packed, state = _bitsandbytes().functional.quantize_4bit(weight, blocksize=_NF4_BLOCK, quant_type="nf4")
        self.packed: Tensor
        self.absmax: Tensor
        self.code: Tensor
        self.register_buffer("packed", packed)
        self.register_buffer("absmax", state.absmax)
        self.register_buffer("code", state.code, persistent=False)

    def frozen(self, x: Tensor) -> Tensor:
        # dequantised for this product, and again in the backward pass: W never exists for longer
        return _bitsandbytes().matmul_4bit(x, self.packed.t(), self._state(self.absmax), bias=self.bias)

    def frozen_weight(self, own: Mapping[str, Tensor]) -> Tensor:
        return _bitsandbytes().functional.dequantize_4bit(own["packed"], self._state(own["absmax"]))

    def _state(self, absmax: Tensor) -> Any:
        return _bitsandbytes().functional.QuantState(
            absmax=absmax,
            shape=self._shape,
            code=self.code.to(absmax.device),
            blocksize=_NF4_BLOCK,
            quant_type="nf4",
            dtype=self._dtype,
        )


def add_adapters(decoder: Decoder, settings: LoraSettings, seed: int) -> None:
    """Freeze a decoder and put adapters beside the matrices that `settings.targets` names, in place.

    `seed` decides where A starts; B starts at zero, so the function is the same as before (with `nf4`: as that of the
    rounded weights). Raises `UsageError` for a decoder of another family, and for `nf4` without bitsandbytes.
    """
    if isinstance(decoder, FallbackDecoder):
        raise UsageError("lora is for Llama, Qwen2 and Qwen3 models alone: leave it out")
    generator = torch.Generator().manual_seed(seed)
    kind = Nf4LoraLinear if settings.quantise == "nf4" else LoraLinear
    decoder.requires_grad_(False)
    for layer in decoder.layers:
        for target in sorted(set(settings.targets)):  # the order in which they are written must not matter
            setattr(layer, target, kind(getattr(layer, target), settings, generator))


def has_adapters(decoder: Decoder) -> bool:
    """Whether `add_adapters` has been here."""
    return any(True for _ in _adapted(decoder))


def merged_weights(decoder: Decoder, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Every weight of a decoder, detached, under the names that it has without adapters, which are merged in.

    `state` is the decoder's own `state_dict`, which is the default, or one that was gathered from shards.
    """
    state = decoder.state_dict() if state is None else state
    merged = dict(state)
    for name, module in _adapted(decoder):
        prefix = f"{name}."
        own = {key: merged.pop(prefix + key) for key in module.state_dict()}
        merged[f"{prefix}weight"] = module.merged_weight(own)
        if "bias" in own:
            merged[f"{prefix}bias"] = own["bias"]
    return merged


def merged_decoder(decoder: Decoder) -> Decoder:
    """A plain decoder with the adapters merged in, for folders and exports; the decoder itself where it has none.

    It shares the weights that have no adapter.
    """
    if not has_adapters(decoder):
        return decoder
    plain = Decoder(decoder.config)
    plain.load_state_dict(merged_weights(decoder), assign=True)
    return plain


def learnt_weights(decoder: Decoder) -> dict[str, Tensor]:
    """What a checkpoint must hold: whatever is not frozen, such as adapters. Detached, not copied."""
    return {name: weight.detach() for name, weight in decoder.named_parameters() if weight.requires_grad}


def load_learnt_weights(decoder: Decoder, weights: Mapping[str, Tensor]) -> None:
    """Put back what `learnt_weights` returned. Raises `KeyError` where the names are not the same."""
    if weights.keys() != learnt_weights(decoder).keys():
        raise KeyError("these weights are of another decoder, or of other adapters")
    decoder.load_state_dict(weights, strict=False)


def _adapted(decoder: Decoder) -> Iterable[tuple[str, Adapted]]:
    return ((name, module) for name, module in decoder.named_modules() if isinstance(module, Adapted))


@cache
def _bitsandbytes() -> Any:
    try:
        with _without_fetched_kernels():
            import bitsandbytes
    except ImportError as error:
        raise UsageError('lora.quantise: nf4 needs bitsandbytes: pip install "ponder[qlora]"') from error
    return bitsandbytes


@contextmanager
def _without_fetched_kernels() -> Iterator[None]:
    """On some processors its import would download compiled code from the Hub, if `kernels` is installed, and run it.

    We need none of that, nor the warning that it is missing.
    """
    logger = logging.getLogger("bitsandbytes")
    level, kernels = logger.level, sys.modules.get("kernels")
    logger.setLevel(logging.ERROR)
    sys.modules["kernels"] = None  # type: ignore[assignment]  # as the import system writes "there is none"
    try:
        yield
    finally:
        logger.setLevel(level)
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
