"""Accuracy: is the final answer right? Rule-based, as in R1 (2.2): 1 or 0, and nothing in between."""

from __future__ import annotations

from ponder.rewards.base import RewardContext


def reward(context: RewardContext, require_format: bool = False) -> float:
    """1 if the task's verifier accepts the answer, else 0; no answer, or one that was cut, is wrong.

    `require_format`: a completion that is not well-formed counts as wrong, whatever its answer. It replaces the format
    reward where successes are rare and the format alone would drown them.
    """
    if require_format and not context.split.well_formed:
        return 0.0
    return float(context.verdict.correct)
