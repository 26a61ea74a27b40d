"""Advantages: worked by hand, and the properties that every scale must have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from ponder.algorithms.advantages import combine_rewards, group_advantages, has_variance

SCALES = ["group", "batch", "none"]


def f64(*rows: Sequence[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_group_scale() -> None:
    # mean 1/4, deviation sqrt((0.75^2 + 3 * 0.25^2) / 3) = sqrt(0.75 / 3) = 0.5
    assert_close(group_advantages(f64([1, 0, 0, 0]), "group", eps=0), f64([1.5, -0.5, -0.5, -0.5]))


def test_the_deviation_is_the_sample_deviation() -> None:
    # two values 0 and 2: n - 1 gives sqrt(2 / 1) = 1.41421, n would give 1
    assert_close(group_advantages(f64([0, 2]), "group", eps=0), f64([-0.7071067811865475, 0.7071067811865475]))


def test_eps_is_added_to_the_deviation() -> None:
    # deviation 0.5, so 0.75 / (0.5 + 0.1) = 1.25 and -0.25 / 0.6
    assert_close(
        group_advantages(f64([1, 0, 0, 0]), "group", eps=0.1)[0, :2], torch.tensor([1.25, -0.25 / 0.6]).double()
    )
    # by default 0.0001: 0.75 / 0.5001
    assert_close(group_advantages(f64([1, 0, 0, 0]))[0, 0].item(), 1.4997000599880024)


def test_batch_scale() -> None:
    # the deviation of 1 0 0 0 again, but each group is centred on its own mean: 1/2 and 0
    assert_close(group_advantages(f64([1, 0], [0, 0]), "batch", eps=0), f64([1, -1], [0, 0]))


def test_eps_is_added_to_the_batchs_deviation_too() -> None:
    # 1 0 0 0 of both groups has deviation 0.5: 0.5 / (0.5 + 0.5)
    assert_close(group_advantages(f64([1, 0], [0, 0]), "batch", eps=0.5), f64([0.5, -0.5], [0, 0]))
    # parts 0.5 / (sqrt(0.5) + 0.5) = 0.41421356 and its negative; their deviation is 0.41421356 * sqrt(2) = 0.58578644,
    # so 0.41421356 / (0.58578644 + 0.5)
    advantages, _ = combine_rewards({"a": f64([1, 0])}, {"a": 1.0}, "normalise_then_sum", eps=0.5)
    assert_close(advantages, f64([0.38148714, -0.38148714]), rtol=0, atol=1e-8)


def test_no_scale() -> None:
    assert_close(
        group_advantages(f64([1, 0, 0, 0], [3, 1, 3, 1]), "none"), f64([0.75, -0.25, -0.25, -0.25], [1, -1, 1, -1])
    )


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_variance_gives_exact_zeros(scale: Any, dtype: torch.dtype) -> None:
    # 0.1 + 0.2 differs from 0.3 in the last place, and the mean of seven 0.1 from 0.1: both are rounding, not reward
    added = torch.tensor([0.1, 0.1, 0.3], dtype=dtype) + torch.tensor([0.2, 0.2, 0.0], dtype=dtype)
    rewards = torch.stack(
        [torch.cat([added, added[:1], added]), torch.full((7,), 0.1, dtype=dtype), torch.arange(7).to(dtype)]
    )
    advantages = group_advantages(rewards, scale)
    assert (advantages[:2] == 0.0).all()
    assert (advantages[2, [0, 6]] != 0.0).all()
    assert has_variance(rewards).tolist() == [False, False, True]
    assert has_variance(advantages).tolist() == [False, False, True]


@pytest.mark.parametrize("scale", SCALES)
def test_a_group_of_one_gives_zero(scale: Any) -> None:
    assert (group_advantages(f64([1.0], [5.0]), scale) == 0.0).all()
    assert (group_advantages(f64([1.0]), scale) == 0.0).all()


def test_sum_then_normalise() -> None:
    rewards = {"accuracy": f64([1, 0, 0, 0]), "format": f64([1, 1, 0, 0])}
    advantages, total = combine_rewards(rewards, {"accuracy": 1.0, "format": 2.0}, "sum_then_normalise", "none")
    # 1 * 1 + 2 * 1 = 3, 0 + 2 = 2, 0, 0: mean 5/4
    assert_close(total, f64([3, 2, 0, 0]))
    assert_close(advantages, f64([1.75, 0.75, -1.25, -1.25]))


def test_normalise_then_sum() -> None:
    rewards = {"accuracy": f64([1, 0, 0, 0]), "format": f64([1, 1, 0, 0])}
    weights = {"accuracy": 1.0, "format": 2.0}
    advantages, total = combine_rewards(rewards, weights, "normalise_then_sum", "group", eps=0)
    assert_close(total, f64([3, 2, 0, 0]))
    # accuracy 1.5 -0.5 -0.5 -0.5 (above); format +-0.5 / sqrt(1 / 3) = +-0.8660254, times 2 = +-1.7320508
    #     sum 3.2320508 1.2320508 -2.2320508 -2.2320508
    # deviation sqrt((10.4461524 + 1.5179492 + 2 * 4.9820508) / 3) = sqrt(7.3094011) = 2.7035904
    expected = f64([3.2320508, 1.2320508, -2.2320508, -2.2320508]) / 2.7035904
    assert_close(advantages, expected, rtol=0, atol=1e-7)


def test_normalise_then_sum_keeps_apart_what_the_sum_merges() -> None:
    # the first output has accuracy alone, the second format alone: both sums are 1
    rewards = {"accuracy": f64([1, 0, 1, 1]), "format": f64([0, 1, 0, 1])}
    weights = {"accuracy": 1.0, "format": 1.0}
    summed, _ = combine_rewards(rewards, weights, "sum_then_normalise")
    assert summed[0, 0] == summed[0, 1]
    # accuracy is the rarer to miss: 0.5 and -1.5; format -0.8660254 and 0.8660254: sums -0.3660254 and -0.6339746,
    # over a deviation of sqrt((2 * 0.1339746 + 0.4019238 + 1.8660254) / 3) = 0.9194
    apart, _ = combine_rewards(rewards, weights, "normalise_then_sum", eps=0)
    assert_close(apart[0, :2], torch.tensor([-0.3981, -0.6896]).double(), rtol=0, atol=1e-4)


def test_both_aggregates_agree_without_scale() -> None:
    rewards = {"a": f64([1, 0, 0.5], [0, 0, 1]), "b": f64([0, 0.25, 1], [1, 1, 1])}
    weights = {"a": 0.7, "b": -0.2}
    one, _ = combine_rewards(rewards, weights, "sum_then_normalise", "none")
    two, _ = combine_rewards(rewards, weights, "normalise_then_sum", "none")
    assert_close(one, two)


def test_dead_groups_stay_exactly_zero_in_both_aggregates() -> None:
    rewards = {"a": f64([0.1, 0.1, 0.1], [0, 1, 1]), "b": f64([0.7, 0.7, 0.7], [1, 0.3, 0])}
    for aggregate in ("sum_then_normalise", "normalise_then_sum"):
        for scale in SCALES:
            advantages, _ = combine_rewards(rewards, {"a": 1.0, "b": 0.3}, aggregate, scale)  # type: ignore[arg-type]
            assert (advantages[0] == 0.0).all()
            assert has_variance(advantages).tolist() == [False, True]


grids = st.integers(1, 4).flatmap(
    lambda p: st.integers(2, 6).flatmap(
        lambda g: st.lists(st.lists(st.integers(-8, 8), min_size=g, max_size=g), min_size=p, max_size=p)
    )
)
quick = settings(max_examples=60, deadline=None)


@quick
@given(grids, st.sampled_from(SCALES))
def test_a_groups_advantages_sum_to_zero(grid: list[list[int]], scale: Any) -> None:
    sums = group_advantages(f64(*grid) / 8, scale).sum(dim=1)
    assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-9)


@quick
@given(grids, st.sampled_from(SCALES), st.floats(-3, 3))
def test_adding_a_constant_changes_nothing(grid: list[list[int]], scale: Any, constant: float) -> None:
    rewards = f64(*grid) / 8
    # the batch's deviation sees a shift of one group, but not of all
    assert_close(group_advantages(rewards + constant, scale), group_advantages(rewards, scale), rtol=1e-6, atol=1e-9)


@quick
@given(grids, st.sampled_from(["group", "batch"]), st.floats(0.1, 10))
def test_a_deviation_takes_the_unit_out(grid: list[list[int]], scale: Any, factor: float) -> None:
    rewards = f64(*grid) / 8
    assert_close(group_advantages(factor * rewards, scale, eps=1e-12), group_advantages(rewards, scale, eps=1e-12))


@quick
@given(grids, st.sampled_from(SCALES), st.randoms(use_true_random=False))
def test_order_within_and_of_groups_does_not_matter(grid: list[list[int]], scale: Any, rng: Any) -> None:
    rewards = f64(*grid) / 8
    groups = torch.tensor(rng.sample(range(rewards.shape[0]), rewards.shape[0]))
    samples = torch.tensor(rng.sample(range(rewards.shape[1]), rewards.shape[1]))
    shuffled = group_advantages(rewards[groups][:, samples], scale)
    assert_close(shuffled, group_advantages(rewards, scale)[groups][:, samples])


@quick
@given(grids, st.sampled_from(SCALES))
def test_a_higher_reward_never_has_a_lower_advantage(grid: list[list[int]], scale: Any) -> None:
    rewards = f64(*grid) / 8
    advantages = group_advantages(rewards, scale)
    order = rewards.argsort(dim=1)
    assert (advantages.gather(1, order).diff(dim=1) >= 0).all()
    best = rewards.argmax(dim=1, keepdim=True)
    assert (advantages.gather(1, best)[has_variance(rewards)] > 0).all()
