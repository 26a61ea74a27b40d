"""Estimates of the Kullback-Leibler divergence from the reference policy, and the penalty made of them.

With r = pi_ref(o) / pi(o) on a sample o ~ pi, Schulman's three estimators of KL(pi || pi_ref) are

    k1 = -log r            unbiased, of either sign
    k2 = (log r)^2 / 2     biased, never negative
    k3 = r - log r - 1     unbiased, never negative                                              [R1 Eq. 2]

What the value promises, the gradient need not keep. Differentiated in the loss, on policy, k1 gives zero on average,
k2 the gradient of KL(pi || pi_ref), and k3 that of the other direction, KL(pi_ref || pi). Subtracted from the reward,
k1 gives the gradient of KL(pi || pi_ref) [2506.09477].
"""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

from ponder.algorithms.packed import sequence_sums

KlEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator = "k3") -> Tensor:
    """Estimate of KL(pi || pi_ref), in nats, for each sample; both log-probabilities and the result of one shape.

    A sample is a token for (N,) log-probabilities, or a whole output for (B,) sums of them. Differentiable in
    `logprobs`. Source: Schulman, "Approximating KL divergence", 2020; k3 is printed in [DSM Eq. 4] and [R1 Eq. 2].
    """
    log_r = ref_logprobs - logprobs
    match estimator:
        case "k1":
            return -log_r
        case "k2":
            return log_r.square() / 2
        case "k3":
            return log_r.exp() - log_r - 1
        case _:
            assert_never(estimator)


@torch.no_grad()
def kl_reward_penalty(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    beta: float,
    estimator: KlEstimator = "k1",
) -> Tensor:
    """What the reward of each output loses for leaving the reference: (B,), to be subtracted from the reward.

        penalty_i = beta * sum_t k(o_it)

    `logprobs` (N,) are those of the policy that sampled the tokens. No gradient: the penalty acts through the
    advantage. Summed over tokens, so k1 gives beta * log(pi(o_i) / pi_ref(o_i)), the whole output's term [DSM 4.1].
    """
    return beta * sequence_sums(kl_estimate(logprobs, ref_logprobs, estimator), sequence_ids, num_sequences)
