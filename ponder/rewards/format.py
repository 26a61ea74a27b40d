"""Format: is the completion one block of thinking and then one answer? As in R1 (2.2): 1 or 0."""

from __future__ import annotations

from ponder.rewards.base import RewardContext


def reward(context: RewardContext, answer_tags: bool = False) -> float:
    """1 if the one parser finds the completion well-formed and it holds a whole answer, else 0.

    `answer_tags`: also ask for `<answer>` tags, R1-Zero's form; otherwise R1's free answer is well-formed too.
    """
    tags_missing = answer_tags and not context.split.answer_tags
    return float(context.split.well_formed and context.finished and not tags_missing)
