"""What a student learns from a teacher's probabilities.

The reverse divergence KL(student || teacher) asks that the student say nothing that the teacher would not: a small
model then keeps to what it can imitate, where the forward one makes it cover all that the teacher might say
[MiniLLM, 2306.08543, 2.1]. Taken at the states that the student's own samples reach, and not differentiated through
the sampling, it is the on-policy loss of [GKD, 2306.13649, 3.1].
"""

from __future__ import annotations

import torch
from torch import Tensor


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """(M, V), (M, V) -> (M,): KL(student || teacher) = sum_j p_j (log p_j - log q_j) of each row, in nats.

    Exact over the whole vocabulary, in float32 or better; p and q are the softmax of the student's and of the teacher's
    logits.
    """
    log_p, log_q = (_log_softmax(logits) for logits in (student_logits, teacher_logits))
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
