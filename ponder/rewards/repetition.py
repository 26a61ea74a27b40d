"""Repetition: a penalty for saying the same thing again, by n-grams.

After Yeo et al., 2502.03373, section 4, who lay -0.05 on every token that belongs to a repeated 40-gram. A reward here
is one number a completion, so it is the share of such tokens, times a weight.
"""

from __future__ import annotations

import re

from ponder.errors import UsageError
from ponder.rewards.base import RewardContext

# A word, a number, one Chinese character, or one sign.
UNIT = re.compile(r"[A-Za-z]+|[0-9]+|\S")


def reward(context: RewardContext, n: int = 20, penalty: float = -1.0) -> float:
    """`penalty` times the share of words that lie in an n-gram which occurred before in the completion.

    Words are counted without regard to the model's tokenizer, so that models can be compared. Raises `UsageError` when
    `n` is below 1.
    """
    if n < 1:
        raise UsageError(f"rewards.repetition.options.n must be at least 1 (got {n})")
    words = UNIT.findall(context.text.lower())
    return penalty * _repeated_share(words, n)


def _repeated_share(words: list[str], n: int) -> float:
    seen: set[tuple[str, ...]] = set()
    repeated = 0
    counted_up_to = 0  # words before this position are counted already
    for start in range(len(words) - n + 1):
        ngram = tuple(words[start : start + n])
        if ngram in seen:
            repeated += start + n - max(start, counted_up_to)
            counted_up_to = start + n
        seen.add(ngram)
    return repeated / len(words) if words else 0.0
