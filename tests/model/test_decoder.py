"""Packing, rotation, row order and initialisation of the decoder. Parity with transformers is tested elsewhere."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ponder.model.config import DecoderConfig
from ponder.model.decoder import (
    Decoder,
    PackedAttention,
    Packing,
    deinterleave,
    interleave,
    rotate,
    rotation_table,
)

CONFIG = DecoderConfig(
    family="qwen3",
    vocab_size=40,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_positions=256,
    qk_norm=True,
    initializer_range=0.4,
)

groups_strategy = st.lists(
    st.tuples(st.integers(0, 9), st.lists(st.integers(1, 12), min_size=1, max_size=4)), min_size=1, max_size=4
)


def make_decoder(**changes: object) -> Decoder:
    """Random weights in float64, so that a tolerance can be tight."""
    decoder = Decoder(dataclasses.replace(CONFIG, **changes))  # type: ignore[arg-type]
    decoder.initialise(0)
    decoder.double()
    decoder.rotations = decoder.rotations.to(torch.complex128)
    return decoder


def hidden_of(decoder: Decoder, tokens: Tensor, packing: Packing) -> Tensor:
    return decoder.hidden(tokens, packing.positions, PackedAttention(packing))


def random_tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


# --- packing -------------------------------------------------------------------------------------------------------


def rows_of(groups: list[tuple[int, list[int]]]) -> list[list[int]]:
    """The rows of each sequence, counted out by hand."""
    rows, start = [], 0
    for prompt, own in groups:
        shared = list(range(start, start + prompt))
        start += prompt
        for length in own:
            rows.append(shared + list(range(start, start + length)))
            start += length
    return rows


@given(groups_strategy)
def test_every_row_is_found_and_every_sequence_is_whole(groups: list[tuple[int, list[int]]]) -> None:
    packing = Packing.of_groups(groups)
    expected = sorted(rows_of(groups))
    num_rows = max(max(r) for r in expected) + 1
    assert packing.scatter.shape == packing.positions.shape == (num_rows,)

    found = []
    for bucket in packing.buckets:
        for sequence in bucket.gather.view(bucket.num_sequences, -1).tolist():
            # what stands past a sequence's end does not matter: the rows in front of it say where that is
            matches = [r for r in expected if sequence[: len(r)] == r]
            found.append(max(matches, key=len))
    assert sorted(found) == expected

    laid_out = torch.cat([b.gather for b in packing.buckets])
    assert torch.equal(laid_out[packing.scatter], torch.arange(num_rows))
    for row in expected:
        assert packing.positions[row].tolist() == list(range(len(row)))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_a_bucket_wastes_at_most_a_fifth(lengths: list[int]) -> None:
    packing = Packing.of_lengths(lengths)
    assert sum(b.num_sequences for b in packing.buckets) == len(lengths)
    computed = sum(b.gather.numel() for b in packing.buckets)
    assert computed <= sum(lengths) / 0.8 + 1e-9


def test_packed_sequences_do_not_see_each_other() -> None:
    decoder = make_decoder()
    lengths = [3, 50, 1, 48, 17, 16, 2]
    tokens = random_tokens(sum(lengths))
    packed = hidden_of(decoder, tokens, Packing.of_lengths(lengths))
    for part, own in zip(tokens.split(lengths), packed.split(lengths), strict=True):
        alone = hidden_of(decoder, part, Packing.of_lengths([len(part)]))
        torch.testing.assert_close(own, alone, rtol=1e-10, atol=1e-10)


def test_nothing_sees_what_comes_after_it() -> None:
    decoder = make_decoder()
    tokens = random_tokens(10)
    before = decoder.logits(tokens[None])[0]
    changed = tokens.clone()
    changed[6] = (changed[6] + 1) % CONFIG.vocab_size
    after = decoder.logits(changed[None])[0]
    torch.testing.assert_close(after[:6], before[:6], rtol=0, atol=0)
    assert (after[6:] - before[6:]).abs().amax(-1).min() > 1e-6


def test_a_shared_prompt_equals_separate_prompts_in_values_and_gradients() -> None:
    decoder = make_decoder()
    groups = [(5, [3, 30, 1]), (11, [4, 4]), (2, [26])]
    tokens = random_tokens(sum(p + sum(own) for p, own in groups))
    shared = hidden_of(decoder, tokens, Packing.of_groups(groups))
    rows = rows_of(groups)
    # the own rows of each sequence, weighed at random: a loss over replies, as training has
    weights = torch.randn(
        len(tokens), CONFIG.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )
    prompts = [p for p, own in groups for _ in own]
    own_rows = torch.cat([torch.tensor(r[p:]) for r, p in zip(rows, prompts, strict=True)])
    shared_gradients = torch.autograd.grad((shared * weights)[own_rows].sum(), list(decoder.parameters()))

    flat = torch.tensor([i for r in rows for i in r])
    separate = hidden_of(decoder, tokens[flat], Packing.of_lengths([len(r) for r in rows]))
    torch.testing.assert_close(separate, shared[flat], rtol=1e-10, atol=1e-10)
    is_own = torch.cat([torch.arange(len(r)) >= p for r, p in zip(rows, prompts, strict=True)])
    separate_gradients = torch.autograd.grad((separate * weights[flat])[is_own].sum(), list(decoder.parameters()))
    for (name, _), a, b in zip(decoder.named_parameters(), shared_gradients, separate_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_logits_are_those_of_the_packed_pass() -> None:
    decoder = make_decoder(tied_embeddings=False)
    ids = random_tokens(12).view(3, 4)
    logits = decoder.logits(ids)
    assert logits.shape == (3, 4, CONFIG.vocab_size)
    one = hidden_of(decoder, ids[1], Packing.of_lengths([4])) @ decoder.head_weight.T
    torch.testing.assert_close(logits[1], one, rtol=1e-10, atol=1e-10)


def test_grouped_query_attention_is_attention_with_repeated_heads() -> None:
    grouped = make_decoder()
    full = make_decoder(num_kv_heads=CONFIG.num_heads)
    full.load_state_dict({name: repeat_kv_heads(name, weight) for name, weight in grouped.state_dict().items()})
    ids = random_tokens(9)[None]
    torch.testing.assert_close(full.logits(ids), grouped.logits(ids), rtol=1e-10, atol=1e-10)


def repeat_kv_heads(name: str, weight: Tensor) -> Tensor:
    if not name.endswith("qkv.weight"):
        return weight
    c = CONFIG
    q, k, v = weight.view(-1, c.head_dim, c.hidden_size).split((c.num_heads, c.num_kv_heads, c.num_kv_heads))
    groups = c.num_heads // c.num_kv_heads
    return torch.cat((q, k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0))).flatten(0, 1)


# --- rotary positions ----------------------------------------------------------------------------------------------


def test_rotation_by_hand() -> None:
    table = rotation_table(dataclasses.replace(CONFIG, head_dim=4, rope_theta=100.0))
    assert table.shape == (CONFIG.max_positions, 2)
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])
    # frequencies 1 and 100^(-1/2) = 0.1; position 3 turns the first pair by 3, the second by 0.3
    turned = rotate(x, table[3].view(1, 1, 2))
    expected = [math.cos(3), math.sin(3), -2 * math.sin(0.3), 2 * math.cos(0.3)]
    torch.testing.assert_close(turned.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-6)
    assert torch.equal(rotate(x, table[0].view(1, 1, 2)), x)


def test_rotated_products_depend_on_the_distance_only() -> None:
    table = rotation_table(CONFIG).unsqueeze(1)
    q, k = torch.randn(2, 1, 1, CONFIG.head_dim, generator=torch.Generator().manual_seed(1))

    def product(m: int, n: int) -> float:
        return float((rotate(q, table[m : m + 1]) * rotate(k, table[n : n + 1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(3, 7), abs=1e-2)


def test_interleaved_rotation_is_the_half_split_rotation_in_another_order() -> None:
    """transformers rotates (x_i, x_{i + D/2}); we rotate neighbours of interleaved rows."""
    size, heads, position = 6, 2, 5
    x = torch.randn(heads * size, generator=torch.Generator().manual_seed(2))
    angles = position * 10000.0 ** -(torch.arange(0, size, 2) / size)
    cos, sin = torch.cat((angles, angles)).cos(), torch.cat((angles, angles)).sin()
    halves = x.view(heads, size)
    turned_half = torch.cat((-halves[:, size // 2 :], halves[:, : size // 2]), dim=1)
    half_split = (halves * cos + turned_half * sin).flatten()
    rotation = rotation_table(CONFIG)[position].view(1, 1, -1)
    ours = rotate(interleave(x, size).view(1, heads, size), rotation).flatten()
    torch.testing.assert_close(deinterleave(ours, size), half_split, rtol=1e-5, atol=1e-6)


@given(st.integers(1, 4), st.sampled_from([2, 4, 6, 8]))
def test_interleaving_is_undone(heads: int, size: int) -> None:
    weight = torch.arange(heads * size * 3, dtype=torch.float32).view(heads * size, 3)
    assert torch.equal(deinterleave(interleave(weight, size), size), weight)
    assert torch.equal(interleave(deinterleave(weight, size), size), weight)


def test_interleaving_by_hand() -> None:
    assert interleave(torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]), 4).tolist() == [0, 2, 1, 3, 10, 12, 11, 13]


def angles_at_one(scaling: dict[str, object] | None) -> list[float]:
    config = dataclasses.replace(CONFIG, head_dim=6, rope_theta=1e6, rope_scaling=scaling)
    return [float(a) for a in rotation_table(config)[1].angle()]


def test_linear_scaling_divides_every_frequency() -> None:
    plain, scaled = angles_at_one(None), angles_at_one({"rope_type": "linear", "factor": 4.0})
    assert scaled == pytest.approx([a / 4 for a in plain], rel=1e-6)


def test_llama3_scaling_by_hand() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1000,
    }
    # frequencies 1, 0.01, 0.0001: wavelengths 6.28 (kept), 628 (between 250 and 1000), 62,832 (stretched by 8)
    ramp = (1000 / (2 * math.pi / 0.01) - 1) / (4 - 1)
    middle = (1 - ramp) * 0.01 / 8 + ramp * 0.01
    assert angles_at_one(scaling) == pytest.approx([1.0, middle, 0.0001 / 8], rel=1e-5)


# --- initialisation ------------------------------------------------------------------------------------------------


def test_initialisation_follows_the_seed_and_the_depth() -> None:
    config = dataclasses.replace(CONFIG, family="qwen2", qk_norm=False, qkv_bias=True, hidden_size=96, num_layers=8)
    first, second, other = (Decoder(config) for _ in range(3))
    first.initialise(3)
    second.initialise(3)
    other.initialise(4)
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        deviation = float(a.detach().std(correction=0))
        if name.endswith("norm.weight"):
            assert torch.equal(a, torch.ones_like(a))
        elif name.endswith("bias"):
            assert not a.any()
        else:
            assert not torch.equal(a, c)
            depth = math.sqrt(2 * 8) if name.endswith(("out.weight", "down.weight")) else 1
            assert deviation == pytest.approx(0.4 / depth, rel=0.1)
