"""Repetition: a penalty for saying the same thing again, by n-grams.

After Yeo et al., 2502.03373, section 4, who lay -0.05 on every token that belongs to a repeated 40-gram. A reward here
is one number a completion, so it is the share of such words (`ponder.text.repetition`), times a weight.
"""

from __future__ import annotations

from ponder.errors import UsageError
from ponder.rewards.base import RewardContext
from ponder.text.repetition import repeated_share


def reward(context: RewardContext, n: int = 20, penalty: float = -1.0) -> float:
    """`penalty` times the share of words that lie in an n-gram which occurred before in the completion.

    Raises `UsageError` when `n` is below 1.
    """
    if n < 1:
        raise UsageError(f"rewards.repetition.options.n must be at least 1 (got {n})")
    return penalty * repeated_share(context.text, n)
