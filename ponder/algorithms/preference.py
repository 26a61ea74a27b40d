"""Losses of reward models: on pairs of which one reply was preferred, and on single replies with a label.

Sources: [R1] B.2 and 3.1 (helpful: pairwise; safety: point-wise); Bradley and Terry 1952; [L2] Llama 2, 2307.09288,
section 3.2.2 (margin).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pairwise_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), averaged over B pairs: a scalar, in nats.

    chosen, rejected, margin (B,). Under the Bradley-Terry model sigmoid(chosen - rejected) is the chance that the first
    is preferred. R1 has no margin; with one, clearer preferences must be further apart [L2 Eq. 2].
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return -F.logsigmoid(difference).mean()


def pointwise_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of sigmoid(scores) against labels of 0 and 1, averaged over B replies: a scalar, in nats.

    scores, labels (B,).
    """
    return F.binary_cross_entropy_with_logits(scores, labels)
