"""The policy losses: GRPO in both printed forms, DAPO, Dr. GRPO, GSPO and CISPO.

They differ in three choices that are independent of each other:

1. the ratio of new to old probability: of a token, of a whole output, or of a whole output per token;
2. what happens when it leaves the trust region: `clipped_surrogate` or `capped_weight`;
3. how tokens are weighed against each other: `ponder.algorithms.weights`.

`policy_loss` puts them together. Log-probabilities are in nats, of the sampled tokens under softmax(logits / T) with
the temperature T of sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, assert_never

import torch
from torch import Tensor

from ponder.algorithms.kl import KlEstimator, kl_estimate
from ponder.algorithms.packed import sequence_means, sequence_sums

LossName = Literal["grpo", "gspo", "cispo"]
RatioLevel = Literal["token", "sequence"]

LOG_RATIO_MAX = 20.0
"""Log-ratios are cut (and give no gradient) above this: exp of a long output's sum overflows, and 0 * inf is NaN."""


def token_ratio(log_ratio: Tensor) -> Tensor:
    """Ratio of each token's probabilities: (N,) -> (N,).

    rho_it = pi(o_it | q, o_i<t) / pi_old(o_it | q, o_i<t)                                          [DSM Eq. 3]
    """
    return log_ratio.clamp(max=LOG_RATIO_MAX).exp()


def whole_output_ratio(log_ratio: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Ratio of the whole output's probabilities, repeated for each of its tokens: (N,) -> (N,).

    rho_i = pi(o_i | q) / pi_old(o_i | q) = prod_t rho_it                                           [R1 Eq. 1]
    """
    return sequence_sums(log_ratio, sequence_ids, num_sequences).clamp(max=LOG_RATIO_MAX).exp()[sequence_ids]


def length_normalised_ratio(log_ratio: Tensor, sequence_ids: Tensor, num_sequences: int) -> Tensor:
    """Geometric mean of an output's token ratios, repeated for each of its tokens: (N,) -> (N,).

    s_i = (pi(o_i | q) / pi_old(o_i | q))^(1 / |o_i|)                                               [GSPO Eq. 7]
    """
    return sequence_means(log_ratio, sequence_ids, num_sequences).clamp(max=LOG_RATIO_MAX).exp()[sequence_ids]


class Surrogate(NamedTuple):
    """What is maximised, before weighing, and where the bound on the ratio took effect."""

    objective: Tensor
    """(N,), differentiable."""
    bounded: Tensor
    """(N,) bool."""


def clipped_surrogate(ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> Surrogate:
    """The pessimistic bound of PPO: (N,) ratios and advantages -> (N,).

        min(rho * A, clip(rho, 1 - eps_low, 1 + eps_high) * A)                                      [R1 Eq. 1]

    With one eps for both it is R1's and DeepSeekMath's; a larger `eps_high` is clip-higher [DAPO Eq. 8]. A token
    whose ratio has already moved past the bound in the direction that its advantage asks for gets no gradient.
    """
    clipped_ratio = ratio.clamp(1 - eps_low, 1 + eps_high)
    objective = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    bounded = ((ratio < 1 - eps_low) & (advantages < 0)) | ((ratio > 1 + eps_high) & (advantages > 0))
    return Surrogate(objective, bounded)


def capped_weight(ratio: Tensor, logprobs: Tensor, advantages: Tensor, eps_high: float) -> Surrogate:
    """CISPO: the ratio is a bounded constant weight, and every token keeps its gradient: (N,) each -> (N,).

        sg(min(rho_it, 1 + eps_high)) * A_i * log pi(o_it | q, o_i<t)                               [CISPO Eq. 4-5]

    sg stops the gradient. The paper's lower bound is not applied, as in its experiments. TRL's `epsilon_high` is
    the cap itself, 1 + eps_high here.
    """
    cap = 1 + eps_high
    objective = ratio.detach().clamp(max=cap) * advantages * logprobs
    return Surrogate(objective, (ratio > cap) & (advantages != 0))


@dataclass(frozen=True)
class LossStatistics:
    """Detached sums over the tokens of non-zero weight; those of micro-batches add up. All 0-d tensors."""

    num_tokens: Tensor
    bounded_tokens: Tensor
    """Tokens whose ratio was clipped (grpo, gspo) or capped (cispo)."""
    kl_sum: Tensor
    """Sum over tokens of the chosen estimator, in nats; 0 without a reference."""


@dataclass(frozen=True)
class PolicyLoss:
    """A micro-batch's share of the loss, and what to log."""

    loss: Tensor
    """Scalar to be minimised; the sum over micro-batches is the whole batch's loss."""
    statistics: LossStatistics


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    token_weights: Tensor,
    sequence_ids: Tensor,
    num_sequences: int,
    *,
    loss: LossName = "grpo",
    ratio: RatioLevel = "token",
    eps_low: float = 0.2,
    eps_high: float = 0.2,
    importance_weights: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    kl_beta: float = 0.0,
    kl_estimator: KlEstimator = "k3",
    entropies: Tensor | None = None,
    entropy_bonus: float = 0.0,
) -> PolicyLoss:
    """The loss of one packed micro-batch, to be minimised.

        L = sum_t w_t * ( -c_t * surrogate_t + kl_beta * KL_t - entropy_bonus * H_t )               [R1 Eq. 1]

    Per-token tensors are (N,): `logprobs` (with gradient), `old_logprobs` of the policy that sampled, `advantages`
    (an output's, repeated), `token_weights` w (a sequence's entry of `weights.token_weights`, repeated),
    `importance_weights` c, `ref_logprobs` of the reference policy, `entropies` H of the policy's distribution at each
    token, in nats (with gradient). `ratio` matters to grpo only: gspo's is a sequence's and cispo's a token's.

    With grpo and `ratio="sequence"`, the surrogate AND the KL term are functions of whole-output probabilities, as R1
    prints them, and each output's term is spread over its tokens by w: under `sequence_mean` the result is R1's
    1/G sum_i exactly. In every other form the KL is per token [DSM Eq. 4].

    A `ref_logprobs` with `kl_beta` 0 is measured and does not enter the loss. Raises ValueError for a weight without
    the tensor that it weighs.
    """
    if kl_beta != 0 and ref_logprobs is None:
        raise ValueError("kl_beta is set, so ref_logprobs must be given")
    if entropy_bonus != 0 and entropies is None:
        raise ValueError("entropy_bonus is set, so entropies must be given")

    # R1's printed form: ratio and KL of whole outputs
    whole_output = loss == "grpo" and ratio == "sequence"
    log_ratio = logprobs - old_logprobs
    match loss:
        case "grpo" if whole_output:
            rho = whole_output_ratio(log_ratio, sequence_ids, num_sequences)
        case "grpo" | "cispo":
            rho = token_ratio(log_ratio)
        case "gspo":
            rho = length_normalised_ratio(log_ratio, sequence_ids, num_sequences)
        case _:
            assert_never(loss)

    if loss == "cispo":
        surrogate = capped_weight(rho, logprobs, advantages, eps_high)
    else:
        surrogate = clipped_surrogate(rho, advantages, eps_low, eps_high)

    terms = -surrogate.objective
    if importance_weights is not None:
        terms = terms * importance_weights
    if kl_beta != 0 and ref_logprobs is not None:
        if whole_output:
            kl = _whole_output_kl(logprobs, ref_logprobs, kl_estimator, sequence_ids, num_sequences)
        else:
            kl = kl_estimate(logprobs, ref_logprobs, kl_estimator)
        terms = terms + kl_beta * kl
    if entropy_bonus != 0 and entropies is not None:
        terms = terms - entropy_bonus * entropies

    with torch.no_grad():
        measured_kl = torch.zeros_like(logprobs)
        if ref_logprobs is not None:
            measured_kl = kl_estimate(logprobs, ref_logprobs, kl_estimator)
        counted = token_weights > 0
        statistics = LossStatistics(
            num_tokens=counted.sum(),
            bounded_tokens=(surrogate.bounded & counted).sum(),
            kl_sum=measured_kl.where(counted, 0.0).sum(),
        )
    return PolicyLoss((token_weights * terms).sum(), statistics)


def _whole_output_kl(
    logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator, sequence_ids: Tensor, num_sequences: int
) -> Tensor:
    """The estimate on whole-output probabilities, repeated for each of an output's tokens: (N,) -> (N,) [R1 Eq. 2]."""
    output_logprobs = sequence_sums(logprobs, sequence_ids, num_sequences)
    output_ref_logprobs = sequence_sums(ref_logprobs, sequence_ids, num_sequences)
    return kl_estimate(output_logprobs, output_ref_logprobs, estimator)[sequence_ids]
