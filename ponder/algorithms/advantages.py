"""From rewards to advantages: how much better an output is than the other outputs of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, assert_never

import torch
from torch import Tensor

AdvantageScale = Literal["group", "batch", "none"]
RewardAggregate = Literal["sum_then_normalise", "normalise_then_sum"]

DEVIATION_EPS = 1e-4
"""Added to a deviation before dividing by it, in units of the reward; R1 prints none, TRL uses this value."""

_ROUNDING_STEPS = 16
"""Spreads of at most so many steps of floating point are rounding, such as 0.1 + 0.2 beside 0.3."""


def has_variance(rewards: Tensor) -> Tensor:
    """Which groups teach anything: (P, G) -> (P,) bool, False where all values of a group are equal.

    A group without variance has advantage zero throughout (a dead group); DAPO draws another prompt in its place
    [DAPO Eq. 11]. Apply it to rewards, or to advantages, which is right for every way of combining rewards.
    """
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    rounding = _ROUNDING_STEPS * torch.finfo(rewards.dtype).eps * rewards.abs().amax(dim=1)
    return spread > rounding


def group_advantages(rewards: Tensor, scale: AdvantageScale = "group", eps: float = DEVIATION_EPS) -> Tensor:
    """Centre the rewards of each group and divide by a deviation: (P, G) -> (P, G).

        A_i = (R_i - mean(R_1..R_G)) / (std(R_1..R_G) + eps)                                 [R1 Eq. 3]

    `scale` says whose deviation divides: the group's [R1], that of all P * G rewards of the batch [Lite PPO], or
    none [Dr. GRPO]. R1 does not say which std it means; here it is the sample deviation (n - 1 below the sum of
    squares), as in `torch.std` and TRL. Groups of one, and groups without variance, get exactly 0.0: what is
    skipped because its advantage is zero is skipped exactly.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    match scale:
        case "group":
            scaled = centred / (_sample_deviation(rewards, dim=1) + eps)
        case "batch":
            scaled = centred / (_sample_deviation(rewards, dim=(0, 1)) + eps)
        case "none":
            scaled = centred
        case _:
            assert_never(scale)
    return torch.where(has_variance(rewards)[:, None], scaled, 0.0)


def combine_rewards(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    reward_aggregate: RewardAggregate = "sum_then_normalise",
    scale: AdvantageScale = "group",
    eps: float = DEVIATION_EPS,
) -> tuple[Tensor, Tensor]:
    """Named rewards, each (P, G), to advantages (P, G) and the weighted total reward (P, G).

    `weights` has a factor for every reward. The total is the same in both modes:

        R = sum_k w_k * R^k                                                                  [R1 Eq. 4]

    `sum_then_normalise` is `group_advantages` of the total. `normalise_then_sum` keeps apart what a sum would merge
    (accuracy 1 and format 0 beside accuracy 0 and format 1):

        A_i = B_i / (std_batch(B) + eps),  B_i = sum_k w_k * group_advantages(R^k)_i              [GDPO]

    GDPO's batch step also subtracts the batch's mean. That mean is zero here, every group being centred, and leaving
    it out keeps the zeros of dead groups exact. With `scale` "none" nothing is divided, so both modes agree.
    """
    total = torch.stack([weights[name] * values for name, values in rewards.items()]).sum(dim=0)
    match reward_aggregate:
        case "sum_then_normalise":
            return group_advantages(total, scale, eps), total
        case "normalise_then_sum":
            parts = [weights[name] * group_advantages(values, scale, eps) for name, values in rewards.items()]
            summed = torch.stack(parts).sum(dim=0)
            if scale == "none":
                return summed, total
            return summed / (_sample_deviation(summed, dim=(0, 1)) + eps), total
        case _:
            assert_never(reward_aggregate)


def _sample_deviation(values: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """`torch.std` with kept dimensions, but 0 in place of NaN (and a warning) for a single value."""
    squares = (values - values.mean(dim=dim, keepdim=True)).square()
    count = squares.numel() // squares.sum(dim=dim).numel()
    return (squares.sum(dim=dim, keepdim=True) / max(count - 1, 1)).sqrt()
