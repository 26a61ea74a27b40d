"""A reward that warns before the length limit cuts."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_overlong_penalty(lengths: Tensor, max_tokens: int, soft_tokens: int) -> Tensor:
    """A reward from 0 down to -1 over the last `soft_tokens` before the limit: lengths (...) -> (...) float.

        R_length(y) =  0                                                |y| <= L_max - L_cache      [DAPO Eq. 13]
                       ((L_max - L_cache) - |y|) / L_cache              in between
                      -1                                                L_max < |y|

    Lengths, L_max (`max_tokens`) and L_cache (`soft_tokens`) are in tokens. `soft_tokens` 0 switches it off: all 0.
    """
    if soft_tokens == 0:
        return torch.zeros(lengths.shape, dtype=torch.float32, device=lengths.device)
    return ((max_tokens - soft_tokens - lengths) / soft_tokens).clamp(min=-1.0, max=0.0)
