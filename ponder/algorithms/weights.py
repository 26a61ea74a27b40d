"""How the terms of single tokens add up to one loss: the weight of each sequence's tokens."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

LossAggregate = Literal["sequence_mean", "token_mean", "constant"]


def token_weights(
    lengths: Tensor,
    aggregate: LossAggregate,
    max_tokens: int,
    keep: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The weight of one token of each sequence: lengths (B,) long, in tokens -> (B,) `dtype`.

    B counts the sequences of the WHOLE batch behind one optimizer step, before it is cut into micro-batches:

        sequence_mean   1 / (B * |o_i|)          mean over a sequence's tokens, then over sequences     [DSM Eq. 3]
        token_mean      1 / sum_j |o_j|          mean over all tokens: long outputs count more          [DAPO Eq. 8]
        constant        1 / (B * max_tokens)     no division by a length that the policy can choose     [Dr. GRPO]

    `keep` (B,) bool is DAPO's overlong filter: sequences where it is False (cut at the limit) weigh 0. As in TRL,
    their tokens leave the denominator of `token_mean`, while B still counts them in the other two, where the kept
    sequences get the gradient that they would get if the truncated ones had advantage zero.
    """
    kept = torch.ones_like(lengths) if keep is None else keep.to(lengths.dtype)
    num_sequences = lengths.numel()
    match aggregate:
        case "sequence_mean":
            denominator = num_sequences * lengths
        case "token_mean":
            denominator = (lengths * kept).sum().expand_as(lengths)
        case "constant":
            denominator = torch.full_like(lengths, num_sequences * max_tokens)
        case _:
            assert_never(aggregate)
    # a denominator is 0 only where there is no token to weigh
    return kept.to(dtype) / denominator.clamp(min=1).to(dtype)
