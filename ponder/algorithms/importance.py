"""Correction for a sampler whose probabilities are not the trainer's, though the weights are the same.

An engine with other kernels, another precision or older weights samples from mu, not from the policy pi_old that the
loss takes as its start. Weighting each term by pi_old / mu makes the expectation right again; bounding the weight
keeps its variance finite.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from ponder.algorithms.packed import sequence_sums

ImportanceMode = Literal["none", "token_truncate", "sequence_truncate", "token_mask", "sequence_mask"]


class Correction(NamedTuple):
    """What each token's loss term is multiplied with, and where a bound took effect."""

    weights: Tensor
    """(N,), without gradient."""
    bounded: Tensor
    """(N,) bool: the weight was cut to the cap, or the token masked."""


@torch.no_grad()
def importance_weights(
    train_logprobs: Tensor,
    sampler_logprobs: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    mode: ImportanceMode,
    cap: float = 2.0,
    floor: float = 0.5,
) -> Correction:
    """Weights pi_old / mu of each token's loss term, from (N,) log-probabilities under both.

        token_truncate      min(w_t, cap)                                  [TIS]
        token_mask          w_t where floor <= w_t <= cap, else 0          [IcePop, 2510.18855]
        sequence_*          the same with w_i = prod_t w_t for every token of output i
        none                1

    `train_logprobs` are the trainer's for the weights that sampled (pi_old), `sampler_logprobs` the engine's.
    Truncation has no lower bound: `floor` is for masking only.
    """
    log_weights = train_logprobs - sampler_logprobs
    if mode in ("sequence_truncate", "sequence_mask"):
        log_weights = sequence_sums(log_weights, sequence_ids, num_sequences)[sequence_ids]
    weights = log_weights.exp()
    match mode:
        case "none":
            return Correction(torch.ones_like(weights), torch.zeros_like(weights, dtype=torch.bool))
        case "token_truncate" | "sequence_truncate":
            return Correction(weights.clamp(max=cap), weights > cap)
        case "token_mask" | "sequence_mask":
            kept = (weights >= floor) & (weights <= cap)
            return Correction(torch.where(kept, weights, 0.0), ~kept)
        case _:
            assert_never(mode)
