"""Language consistency: is the thinking in the problem's language? As in R1 (2.3.2; Nature Eq. 7): a share, 0 to 1.

R1 adds it to the other rewards as it is, on reasoning and on general data: weight 1.
"""

from __future__ import annotations

from ponder.rewards.base import RewardContext
from ponder.text.languages import consistency


def reward(context: RewardContext) -> float:
    """Words of the thinking in the problem's language / all its words; the answer is not looked at.

    Thinking without words is in no other language: pure calculation earns 1, and so does the empty block of a
    well-formed reply to a greeting. A reply that opens no block at all, or leaves an empty one open, earns 0, or
    silence would be the surest way to this reward. Raises `UsageError` for a language that cannot be told from others.
    """
    thinking = context.split.thinking
    if not thinking and not context.split.well_formed:
        return 0.0
    share = consistency(thinking, context.problem.language)
    return 1.0 if share is None else share
