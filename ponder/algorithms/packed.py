"""Sums over the sequences of a packed micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor


def sequence_sums(values: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Sum per-token `values` (N,) over each sequence: (B,). Differentiable; a sequence without tokens gives 0."""
    return values.new_zeros(num_sequences).index_add(0, sequence_ids, values)


def sequence_means(values: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Mean of per-token `values` (N,) over each sequence: (B,). Differentiable; a sequence without tokens gives 0."""
    lengths = torch.bincount(sequence_ids, minlength=num_sequences)
    return sequence_sums(values, sequence_ids, num_sequences) / lengths.clamp(min=1)
