"""Length: a reward that depends on how long a right or a wrong completion is.

The shape is that of Yeo et al., 2502.03373, section 4.2: between a value at length 0 and a value at the limit, along
half a cosine, apart for right and for wrong answers, and a penalty of its own for completions that reach the limit.
There it stands in place of the accuracy reward, with 2 to 1 where right, -10 to 0 where wrong, and -10 at the limit.
Our defaults are meant to be added to an accuracy of 0 or 1, and never make a wrong answer worth more than a right one.
"""

from __future__ import annotations

import math

from ponder.errors import UsageError
from ponder.rewards.base import RewardContext


def reward(
    context: RewardContext,
    shape: str = "cosine",
    right_at_zero: float = 0.0,
    right_at_limit: float = -0.5,
    wrong_at_zero: float = -0.5,
    wrong_at_limit: float = 0.0,
    cut: float = -0.5,
) -> float:
    """The value for this completion's length, in units of the accuracy reward.

    `shape` is `cosine` or `linear`; `*_at_zero` and `*_at_limit` are the values at 0 and at `max_tokens` tokens, for
    right and wrong answers; `cut` is that of a completion cut at the limit. Raises `UsageError` for another shape.
    """
    if shape not in ("cosine", "linear"):
        raise UsageError(f"rewards.length.options.shape must be cosine or linear (got {shape!r})")
    if context.finish_reason == "length":
        return cut
    at_zero, at_limit = (right_at_zero, right_at_limit) if context.verdict.correct else (wrong_at_zero, wrong_at_limit)
    share = context.num_tokens / context.max_tokens
    way = (1 - math.cos(math.pi * share)) / 2 if shape == "cosine" else share
    return at_zero + (at_limit - at_zero) * way
