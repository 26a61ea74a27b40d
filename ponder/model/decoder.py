"""The decoder of the Llama, Qwen2 and Qwen3 families, over packed tokens.

Everything but attention works on one flat list of N tokens, whatever sequences they belong to: no padding is computed.
How tokens see each other is the business of an `Attention` object: `PackedAttention` here (training and prompts), or
the engine's cached attention (decoding, ponder/rollout/native.py).

Layout of the weights, per layer (`layers.{i}.`): `attention_norm.weight` (d), `qkv.weight` ((Hq + 2 Hkv) * D, d) with
an optional `qkv.bias`, `q_norm.weight` and `k_norm.weight` (D) for Qwen3, `out.weight` (d, Hq * D), `mlp_norm.weight`
(d), `gate_up.weight` (2 * f, d; gate first), `down.weight` (d, f); then `norm.weight`, `embedding.weight` (V, d) and,
when not tied, `head.weight` (V, d). Within each head of q and k the rows stand in *interleaved* order (pairs that
rotate together are neighbours), so that a rotation is one complex product; `interleave` and `deinterleave` convert from
and to Hugging Face's half-split order.

Shapes: N tokens, d hidden, f intermediate, Hq and Hkv heads, D head size, V vocabulary; B sequences of a bucket, of
which T is the longest.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ponder.errors import UsageError
from ponder.model.config import DecoderConfig
from ponder.model.functional import rms_norm, swiglu

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_BUCKET_RATIO = 0.8
"""Sequences attend together while the shortest has at least this share of the longest one's length."""


class Attention(Protocol):
    """How the tokens of one forward pass see each other."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (N, Hq, D), k and v (N, Hkv, D) -> (N, Hq * D)."""
        ...


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length: `gather` (B * T,) is the row of each position, 0 past a sequence's end.

    Causal attention never looks past a sequence's end, so what stands there does not matter.
    """

    gather: Tensor
    num_sequences: int


@dataclass(frozen=True)
class Packing:
    """Where the tokens of sequences lie in a flat list of N rows.

    Sequences may share rows: the completions of one group share their prompt's, which are then computed once.
    `scatter` (N,) finds each row's position among the buckets' positions, laid end to end (for a shared row, one of
    them); `positions` (N,) are the rotary positions.
    """

    buckets: tuple[Bucket, ...]
    scatter: Tensor
    positions: Tensor

    @classmethod
    def of_lengths(cls, lengths: Sequence[int]) -> Packing:
        """Sequences of these lengths, one behind the other."""
        return cls.of_groups([(0, [length]) for length in lengths])

    @classmethod
    def of_groups(cls, groups: Sequence[tuple[int, Sequence[int]]]) -> Packing:
        """Groups of (prompt length, own lengths): rows are prompt, own tokens of the first, of the second, ...."""
        rows: list[np.ndarray] = []
        start = 0
        for prompt, own in groups:
            shared = np.arange(start, start + prompt)
            start += prompt
            for length in own:
                rows.append(np.concatenate((shared, np.arange(start, start + length))))
                start += length
        scatter = np.empty(start, dtype=np.int64)
        positions = np.empty(start, dtype=np.int64)
        buckets = []
        end = 0
        for members in _similar_lengths([len(r) for r in rows]):
            longest = len(rows[members[0]])
            gather = np.zeros((len(members), longest), dtype=np.int64)
            for place, member in enumerate(members):
                row = rows[member]
                gather[place, : len(row)] = row
                scatter[row] = end + place * longest + np.arange(len(row))
                positions[row] = np.arange(len(row))
            end += gather.size
            buckets.append(Bucket(torch.from_numpy(gather.reshape(-1)), len(members)))
        return cls(tuple(buckets), torch.from_numpy(scatter), torch.from_numpy(positions))

    def to(self, device: torch.device) -> Packing:
        """The same packing with its indices on `device`."""
        buckets = tuple(Bucket(b.gather.to(device), b.num_sequences) for b in self.buckets)
        return Packing(buckets, self.scatter.to(device), self.positions.to(device))


def _similar_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Indices by falling length, cut where a sequence is shorter than `_BUCKET_RATIO` of its bucket's longest."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    buckets: list[list[int]] = []
    for index in order:
        if not buckets or lengths[index] < _BUCKET_RATIO * lengths[buckets[-1][0]]:
            buckets.append([])
        buckets[-1].append(index)
    return buckets


class PackedAttention:
    """Causal attention within each sequence of a `Packing`. Padding exists only inside a bucket's attention product."""

    def __init__(self, packing: Packing) -> None:
        self.packing = packing

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.cat([_attend(b, q, k, v) for b in self.packing.buckets])
        return out.index_select(0, self.packing.scatter)


def _attend(bucket: Bucket, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, H, D) rows -> (B * T, Hq * D)."""
    q, k, v = (_sequences(x, bucket) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[3])


def _sequences(x: Tensor, bucket: Bucket) -> Tensor:
    """(N, H, D) rows -> (B, H, T, D) sequences."""
    rows, heads, size = x.shape
    flat = x.reshape(rows, heads * size).index_select(0, bucket.gather)
    return flat.view(bucket.num_sequences, -1, heads, size).transpose(1, 2)


class Linear(nn.Module):
    """y = x W^T (+ b), without the initialisation of `nn.Linear`, which big models would pay for in vain."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        precise = x.to(torch.promote_types(x.dtype, torch.float32))  # a sum of squares in half precision is none
        return rms_norm(precise, self.weight.to(precise.dtype), self.eps).to(x.dtype)


class Layer(nn.Module):
    """Pre-norm attention and SwiGLU."""

    checkpointing = False
    """Whether the backward pass computes the layer's activations again: see `Decoder.checkpoint_activations`."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        c = self.config = config
        self.index = index
        self.attention_norm = RMSNorm(c.hidden_size, c.rms_eps)
        self.qkv = Linear(c.hidden_size, (c.num_heads + 2 * c.num_kv_heads) * c.head_dim, c.qkv_bias)
        self.q_norm = RMSNorm(c.head_dim, c.rms_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.rms_eps) if c.qk_norm else None
        self.out = Linear(c.num_heads * c.head_dim, c.hidden_size)
        self.mlp_norm = RMSNorm(c.hidden_size, c.rms_eps)
        self.gate_up = Linear(c.hidden_size, 2 * c.intermediate_size)
        self.down = Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x: Tensor, rotation: Tensor, attention: Attention) -> Tensor:
        """x (N, d), rotation (N, 1, D / 2) complex -> (N, d)."""
        if self.checkpointing and torch.is_grad_enabled():
            # nothing here is random, so there is no random state to bring back
            out: Tensor = checkpoint(
                self._compute, x, rotation, attention, use_reentrant=False, preserve_rng_state=False
            )
            return out
        return self._compute(x, rotation, attention)

    def _compute(self, x: Tensor, rotation: Tensor, attention: Attention) -> Tensor:
        q, k, v = self._heads(self.attention_norm(x), rotation)
        x = x + self.out(attention(self.index, q, k, v))
        return x + self.down(swiglu(self.gate_up(self.mlp_norm(x))))

    def _heads(self, x: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c = self.config
        qk, v = (
            self.qkv(x).view(x.shape[0], -1, c.head_dim).split((c.num_heads + c.num_kv_heads, c.num_kv_heads), dim=1)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split((c.num_heads, c.num_kv_heads), dim=1)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=1)
        q, k = rotate(qk, rotation).split((c.num_heads, c.num_kv_heads), dim=1)
        return q, k, v


class Decoder(nn.Module):
    """A causal language model. `hidden` is the one forward pass; `logits` is its padded convenience."""

    compute_dtype: torch.dtype | None = None
    """What products are computed in while training, where that is not the weights' own type (mixed precision)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.head = None if config.tied_embeddings else Linear(config.hidden_size, config.vocab_size)
        self.rotations: Tensor
        self.register_buffer("rotations", rotation_table(config), persistent=False)

    def set_max_positions(self, count: int) -> None:
        """Allow sequences of up to `count` tokens; the rotary frequencies stay as they are."""
        self.config = dataclasses.replace(self.config, max_positions=count)
        self.rotations = rotation_table(self.config).to(self.rotations.device)

    def compute_in(self, precision: Precision) -> None:
        """The arithmetic of training: weights, gradients and sums stay as they are (Micikevicius et al., 1710.03740).

        Whoever calls `hidden` does so within `arithmetic`.
        """
        self.compute_dtype = None if precision == "fp32" else DTYPES[precision]

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Within it `hidden` computes as `compute_in` says."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.head_weight.device.type, self.compute_dtype)

    def checkpoint_activations(self, enabled: bool) -> None:
        """Keep each layer's input only and compute the rest again in the backward pass (Chen et al., 1604.06174).

        Raises `UsageError` for a model whose layers are not these.
        """
        layers = [module for module in self.modules() if isinstance(module, Layer)]
        if enabled and not layers:
            raise UsageError("activation_checkpointing is for Llama, Qwen2 and Qwen3 models alone: leave it out")
        for layer in layers:
            layer.checkpointing = enabled

    def freeze(self, layers: int) -> None:
        """Keep the embeddings and the lowest `layers` as they are: no gradient is computed through them.

        0 freezes nothing.
        """
        if layers:
            self.embedding.requires_grad_(False)
            for layer in itertools.islice(self.layers, layers):
                layer.requires_grad_(False)

    @property
    def head_weight(self) -> Tensor:
        """(V, d): turns final hidden states into logits; of a reward model (1, d), into scores."""
        return self.embedding.weight if self.head is None else self.head.weight

    def hidden(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """tokens (N,), positions (N,) -> final, normalised hidden states (N, d)."""
        x = self.embedding(tokens)
        rotation = self.rotations[positions].unsqueeze(1)
        for layer in self.layers:
            x = layer(x, rotation, attention)
        return self.norm(x)

    def logits(self, ids: Tensor) -> Tensor:
        """ids (B, T) of full rows -> (B, T, V)."""
        batch, time = ids.shape
        packing = Packing.of_lengths([time] * batch).to(ids.device)
        hidden = self.hidden(ids.reshape(-1), packing.positions, PackedAttention(packing))
        return F.linear(hidden, self.head_weight).view(batch, time, -1)

    def initialise(self, seed: int) -> None:
        """Fresh weights: normal with the config's deviation, residual outputs scaled down by depth (GPT-2)."""
        generator = torch.Generator().manual_seed(seed)
        deviation = self.config.initializer_range
        residual = deviation / math.sqrt(2 * self.config.num_layers)
        for name, weight in self.named_parameters():
            with torch.no_grad():
                if name.endswith("norm.weight"):
                    weight.fill_(1.0)
                elif name.endswith("bias"):
                    weight.zero_()
                else:
                    is_residual = name.endswith(("out.weight", "down.weight"))
                    weight.normal_(0.0, residual if is_residual else deviation, generator=generator)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotary positions (RoFormer, 2104.09864): x (N, H, D) in interleaved order, rotation (N, 1, D / 2) complex."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))  # there are no complex numbers of bf16
    pairs = torch.view_as_complex(precise.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def rotation_table(config: DecoderConfig) -> Tensor:
    """(max_positions, D / 2) complex64: e^(i * position * frequency), with the config's scaling."""
    frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
    scaling = config.rope_scaling or {}
    if scaling.get("rope_type") == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling.get("rope_type") == "llama3":
        frequencies = _llama3_frequencies(frequencies, scaling)
    # transformers forms the angles in float32; so do we, or long positions would differ
    angles = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), frequencies.float())
    return torch.polar(torch.ones_like(angles), angles)


def _llama3_frequencies(frequencies: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling: long wavelengths stretched by `factor`, short ones kept, a smooth ramp between."""
    wavelengths = 2 * math.pi / frequencies
    original, low, high = (
        scaling[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    )
    ramp = ((original / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - ramp) * frequencies / scaling["factor"] + ramp * frequencies


def interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Rows (H * D, ...) of q or k from Hugging Face's half-split order to the interleaved order, head by head."""
    return weight.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2).contiguous()


def deinterleave(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `interleave`."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()
