"""Random: a coin that knows nothing of the text, for control runs. Nothing may be learnt from it."""

from __future__ import annotations

import hashlib

from ponder.errors import UsageError
from ponder.rewards.base import RewardContext


def reward(context: RewardContext, p: float = 0.5) -> float:
    """1 with probability `p`, else 0: a function of (seed, step, problem id, sample number) and nothing else.

    Raises `UsageError` when `p` is no probability.
    """
    if not 0 <= p <= 1:
        raise UsageError(f"rewards.random.options.p must lie in 0..1 (got {p})")
    key = f"random reward\x1f{context.seed}\x1f{context.step}\x1f{context.problem.id}\x1f{context.sample}"
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return float(int.from_bytes(digest, "big") < p * 2**64)
