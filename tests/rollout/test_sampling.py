"""From logits to tokens: the exact inverse transform, and what top-k and top-p leave of a distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ponder.rollout.base import Sampling, stream_seed, uniform_stream
from ponder.rollout.sampling import draw, draw_with_entropy

LARGEST_UNIFORM = float(np.nextafter(np.float32(1), np.float32(0)))
"""The largest float32 below 1: what a stream gives at most."""


def probabilities(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    """Softmax in float64."""
    return torch.softmax(logits.double() / temperature, -1).numpy()


def drawn(logits: Tensor, uniforms: np.ndarray, **settings: float) -> list[int]:
    """One token a uniform number, all from the same logits (V,)."""
    rows = logits.expand(len(uniforms), -1)
    ids, logprobs = draw(rows, torch.from_numpy(uniforms.astype(np.float32)), Sampling(1, **settings))  # type: ignore[arg-type]
    assert ids.shape == logprobs.shape == (len(uniforms),)
    return ids.tolist()


def grid(count: int) -> np.ndarray:
    """Evenly spaced uniforms: what they draw has exactly the distribution's shares, but for one draw at each border."""
    return (np.arange(count) + 0.5) / count


def shares(ids: list[int], size: int) -> np.ndarray:
    return np.bincount(ids, minlength=size) / len(ids)


# --- the whole distribution ----------------------------------------------------------------------------------------


@st.composite
def logits_and_uniform(draw_: st.DrawFn) -> tuple[Tensor, float, float]:
    """Logits of any vocabulary size, some of them impossible, a uniform number (often at an edge), a temperature."""
    size = draw_(st.sampled_from([1, 2, 5, 255, 256, 257, 511, 512, 700]))
    seed = draw_(st.integers(0, 2**32 - 1))
    spread = draw_(st.sampled_from([0.1, 1.0, 10.0, 60.0]))
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, spread, size)
    if draw_(st.booleans()):
        alive = generator.integers(0, size)
        impossible = generator.random(size) < draw_(st.sampled_from([0.3, 0.99]))
        logits[impossible & (np.arange(size) != alive)] = -np.inf
    edges = st.sampled_from([0.0, LARGEST_UNIFORM, 2.0**-24, 0.5])
    uniform = draw_(st.one_of(edges, st.floats(0, LARGEST_UNIFORM, width=32)))
    return torch.tensor(logits, dtype=torch.float32), uniform, draw_(st.sampled_from([0.5, 1.0, 2.0]))


@given(logits_and_uniform())
def test_a_draw_is_the_inverse_of_the_running_sum(example: tuple[Tensor, float, float]) -> None:
    logits, uniform, temperature = example
    p = probabilities(logits, temperature)
    ends = p.cumsum()
    sampling = Sampling(1, temperature=temperature)
    ids, logprobs = draw(logits[None], torch.tensor([uniform]), sampling)
    token = int(ids)
    assert 0 <= token < len(p)
    assert p[token] > 1e-45, "a token that float32 calls impossible"
    exact = int(np.searchsorted(ends, uniform, side="right"))
    rounding = 1e-6
    assert token == exact or ends[token] - p[token] - rounding <= uniform <= ends[token] + rounding
    assert float(logprobs) == pytest.approx(np.log(p[token]), abs=1e-4, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"top_k": 500}, {"top_p": 0.999}])
@pytest.mark.parametrize("size", [1, 3, 256, 300, 1000])
@pytest.mark.parametrize("uniform", [0.0, LARGEST_UNIFORM])
def test_the_edges_never_draw_the_impossible(uniform: float, size: int, settings: dict[str, float]) -> None:
    """One possible token, anywhere: rounding at either end must not slip off it."""
    for alive in {0, size // 2, size - 1}:
        logits = torch.full((size,), -torch.inf)
        logits[alive] = 0.3
        assert drawn(logits, np.array([uniform]), **settings) == [alive]


def test_the_largest_uniform_draws_the_last_possible_token() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (300, 512, 1000):
        logits = torch.randn(50, size, generator=generator)
        logits[:, -7:] = -torch.inf
        ids, _ = draw(logits, torch.full((50,), LARGEST_UNIFORM), Sampling(1))
        # within rounding of the end: a few of the last tokens share the last 1e-6 of the mass at most
        remaining = torch.softmax(logits.double(), -1).flip(-1).cumsum(-1).flip(-1)
        assert (remaining.gather(1, ids[:, None] + 1) < 1e-6).all()
        assert (ids < size - 7).all()


def test_shares_of_the_whole_distribution() -> None:
    logits = torch.tensor([1.0, -1.0, 0.5, 3.0, -torch.inf, 0.0])
    for temperature in (0.5, 1.0, 3.0):
        found = shares(drawn(logits, grid(10_000), temperature=temperature), 6)
        np.testing.assert_allclose(found, probabilities(logits, temperature), atol=2e-4)


def test_rows_are_drawn_apart() -> None:
    logits = torch.randn(40, 77, generator=torch.Generator().manual_seed(1)) * 3
    uniforms = torch.rand(40, generator=torch.Generator().manual_seed(2))
    for sampling in (Sampling(1), Sampling(1, top_p=0.8), Sampling(1, top_k=5), Sampling(1, temperature=0.0)):
        together, logprobs = draw(logits, uniforms, sampling)
        for i in range(40):
            alone, logprob = draw(logits[i : i + 1], uniforms[i : i + 1], sampling)
            assert int(alone) == int(together[i])
            assert float(logprob) == pytest.approx(float(logprobs[i]), abs=1e-6)


# --- greedy, top-k, top-p ------------------------------------------------------------------------------------------


def test_greedy_takes_the_peak_and_reports_it_at_temperature_one() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    ids, logprobs = draw(logits, torch.tensor([LARGEST_UNIFORM, 0.0]), Sampling(1, temperature=0.0, top_p=0.5, top_k=1))
    assert ids.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, np.log([probabilities(logits[0])[1], probabilities(logits[1])[0]]), rtol=1e-5)


# by falling probability: token 3 (0.4), 0 (0.3), 2 (0.2), 1 (0.1)
FOUR = torch.tensor([0.3, 0.1, 0.2, 0.4]).log()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 1}, {3: 1.0}),
        ({"top_k": 2}, {3: 4 / 7, 0: 3 / 7}),
        ({"top_k": 4}, {3: 0.4, 0: 0.3, 2: 0.2, 1: 0.1}),
        ({"top_k": 400}, {3: 0.4, 0: 0.3, 2: 0.2, 1: 0.1}),
        ({"top_p": 0.01}, {3: 1.0}),
        ({"top_p": 0.39}, {3: 1.0}),
        ({"top_p": 0.41}, {3: 4 / 7, 0: 3 / 7}),
        ({"top_p": 0.69}, {3: 4 / 7, 0: 3 / 7}),
        ({"top_p": 0.71}, {3: 4 / 9, 0: 3 / 9, 2: 2 / 9}),
        ({"top_p": 0.99}, {3: 0.4, 0: 0.3, 2: 0.2, 1: 0.1}),
        # top-k first: of the three left, 4/9 does not reach 0.5 and 7/9 does
        ({"top_k": 3, "top_p": 0.5}, {3: 4 / 7, 0: 3 / 7}),
        # without renormalising after top-k, 0.7 would not reach 0.75 and three would stay
        ({"top_k": 3, "top_p": 0.75}, {3: 4 / 7, 0: 3 / 7}),
    ],
)
def test_top_k_and_top_p_by_hand(settings: dict[str, float], kept: dict[int, float]) -> None:
    found = shares(drawn(FOUR, grid(9000), **settings), 4)
    np.testing.assert_allclose(found, [kept.get(token, 0.0) for token in range(4)], atol=3e-4)


def test_temperature_comes_before_top_p() -> None:
    # at temperature 1/2 the probabilities go as their squares: 16, 9, 4, 1 of 30
    found = shares(drawn(FOUR, grid(9000), temperature=0.5, top_p=0.8), 4)
    np.testing.assert_allclose(found, [9 / 25, 0, 0, 16 / 25], atol=3e-4)


@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("size", [200, 256, 700])
def test_top_p_is_exact_in_large_vocabularies(size: int, spread: float) -> None:
    """Whether the nucleus fits among the first candidates (large spread) or needs the whole vocabulary (small)."""
    logits = torch.randn(size, generator=torch.Generator().manual_seed(3)) * spread
    p = probabilities(logits)
    order = np.argsort(-p)
    before = p[order].cumsum() - p[order]
    nucleus = order[before < 0.9]
    found = set(drawn(logits, grid(4000), top_p=0.9))
    # the border token may differ by rounding, no other
    assert found <= set(order[: len(nucleus) + 1])
    likely = nucleus[p[nucleus] / p[nucleus].sum() > 2 / 4000][:-1]
    assert set(likely) <= found


def test_logprobs_are_those_before_the_filters() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(4))
    ids, logprobs = draw(logits, torch.full((6,), 0.3), Sampling(1, temperature=0.7, top_k=3, top_p=0.6))
    expected = torch.log_softmax(logits.double() / 0.7, -1).gather(1, ids[:, None]).squeeze(1)
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0.05, 1.0), st.sampled_from([3, 40, 300]))
def test_filters_keep_only_the_most_probable(seed: int, top_k: int, top_p: float, size: int) -> None:
    generator = np.random.default_rng(seed)
    logits = torch.tensor(generator.normal(0, 2, size), dtype=torch.float32)
    uniforms = np.append(generator.random(30, dtype=np.float32), [0.0, LARGEST_UNIFORM])
    p = probabilities(logits)
    order = np.argsort(-p)[:top_k]
    within = p[order] / p[order].sum()
    allowed = set(order[within.cumsum() - within < top_p + 1e-6])
    assert set(drawn(logits, uniforms, top_k=top_k, top_p=top_p)) <= allowed


# --- the streams ---------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**63 - 1), st.text(max_size=20), st.integers(0, 64))
def test_a_stream_is_a_function_of_its_name_and_its_beginning_of_no_length(seed: int, key: str, sample: int) -> None:
    whole = uniform_stream(seed, key, sample, 65)
    assert whole.dtype == np.float32
    assert ((whole >= 0) & (whole < 1)).all()
    for length in (1, 2, 7, 64):
        assert np.array_equal(uniform_stream(seed, key, sample, length), whole[:length])


def test_streams_differ_in_every_part_of_their_name() -> None:
    names = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a1", 0), (0, "a", 10), (10, "a", 0)]
    assert len({stream_seed(*name) for name in names}) == len(names)
    streams = [uniform_stream(*name, 500) for name in names]
    for i, first in enumerate(streams):
        for second in streams[:i]:
            assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_streams_are_uniform() -> None:
    pooled = np.concatenate([uniform_stream(0, f"{step}/p", s, 100) for step in range(20) for s in range(10)])
    counts = np.histogram(pooled, bins=50, range=(0, 1))[0]
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert 20 < chi_square < 90  # 49 degrees of freedom: both ends are beyond one in a thousand


# --- the entropy of what was drawn from ----------------------------------------------------------------------------


@given(logits_and_uniform(), st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.7}, {"temperature": 0.0}]))
def test_the_entropy_is_that_of_the_whole_distribution_and_the_draw_stays_as_it_was(
    example: tuple[Tensor, float, float], settings: dict[str, Any]
) -> None:
    logits, uniform, temperature = example
    sampling = Sampling(1, **({"temperature": temperature} | settings))
    ids, logprobs, entropies = draw_with_entropy(logits[None], torch.tensor([uniform]), sampling)
    plain_ids, plain_logprobs = draw(logits[None], torch.tensor([uniform]), sampling)
    assert torch.equal(ids, plain_ids)
    assert torch.equal(logprobs, plain_logprobs)
    exact = torch.distributions.Categorical(logits=logits.double() / (sampling.temperature or 1)).entropy()
    assert entropies.shape == (1,)
    assert float(entropies) == pytest.approx(float(exact), abs=1e-3)


def test_entropies_worked_by_hand() -> None:
    half, certain, impossible = [0.0, 0.0], [80.0, -80.0], [1.5, -math.inf]
    third = [math.log(2), 0.0]  # 2/3 and 1/3: log 3 - 2/3 log 2
    _, _, found = draw_with_entropy(torch.tensor([half, certain, impossible, third]), torch.zeros(4), Sampling(1))
    assert found.tolist() == pytest.approx([math.log(2), 0, 0, math.log(3) - 2 / 3 * math.log(2)], abs=1e-6)
