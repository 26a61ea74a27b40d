"""The policy losses: worked by hand, their gradients and signs, and that micro-batches add up."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ponder.algorithms.losses import LossStatistics, PolicyLoss, policy_loss


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Two outputs: the first has two tokens with ratios 1.5 and 0.9 and advantage 2, the second one token with ratio 0.5
# and advantage -1. Weights are those of sequence_mean: 1 / (2 * 2) and 1 / (2 * 1).
LOGPROBS = f64(-1.0, -2.0, -0.5)
OLD = LOGPROBS - f64(log(1.5), log(0.9), log(0.5))
ADVANTAGES = f64(2.0, 2.0, -1.0)
WEIGHTS = f64(0.25, 0.25, 0.5)
IDS = torch.tensor([0, 0, 1])
# reference / policy: 0.5 and 0.8, so 0.4 for the whole first output, and 2
REF = LOGPROBS + f64(log(0.5), log(0.8), log(2.0))


def worked(**settings: Any) -> tuple[PolicyLoss, Tensor]:
    logprobs = LOGPROBS.clone().requires_grad_()
    result = policy_loss(logprobs, OLD, ADVANTAGES, WEIGHTS, IDS, 2, **settings)
    return result, torch.autograd.grad(result.loss, logprobs)[0]


def assert_loss(result: PolicyLoss, expected: float) -> None:
    assert result.loss.item() == pytest.approx(expected, abs=1e-7)


def clip_share(statistics: LossStatistics) -> float:
    return float(statistics.bounded_tokens / statistics.num_tokens)


def kl_mean(statistics: LossStatistics) -> float:
    return float(statistics.kl_sum / statistics.num_tokens)


def test_grpo_per_token() -> None:
    result, gradient = worked(loss="grpo", ratio="token", eps_low=0.2, eps_high=0.2)
    # min(1.5 * 2, 1.2 * 2) = 2.4;  min(0.9 * 2, 0.9 * 2) = 1.8;  min(0.5 * -1, 0.8 * -1) = -0.8
    # -(0.25 * 2.4 + 0.25 * 1.8 - 0.5 * 0.8) = -(0.6 + 0.45 - 0.4)
    assert_loss(result, -0.65)
    # only the middle token is inside its bound: -0.25 * 2 * 0.9
    assert_close(gradient, f64(0.0, -0.45, 0.0))
    assert clip_share(result.statistics) == pytest.approx(2 / 3)
    assert result.statistics.num_tokens == 3
    assert kl_mean(result.statistics) == 0.0


def test_a_clip_does_not_bind_against_the_advantage() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    result = policy_loss(logprobs, OLD, -ADVANTAGES, WEIGHTS, IDS, 2)
    # 1.5 * -2 = -3 stays, below the clipped -2.4; 0.5 * 1 = 0.5 stays, below the clipped 0.8
    # -(0.25 * -3 + 0.25 * -1.8 + 0.5 * 0.5) = 0.75 + 0.45 - 0.25
    assert_loss(result, 0.95)
    assert_close(torch.autograd.grad(result.loss, logprobs)[0], f64(0.75, 0.45, -0.25))
    assert clip_share(result.statistics) == 0.0


def test_clip_higher() -> None:
    # the first token is clipped at 1.28: -(0.25 * 2.56 + 0.45 - 0.4)
    assert_loss(worked(eps_low=0.2, eps_high=0.28)[0], -0.69)


def test_r1s_large_eps_hardly_clips() -> None:
    result, _ = worked(eps_low=10.0, eps_high=10.0)
    # -(0.25 * 3 + 0.25 * 1.8 - 0.5 * 0.5)
    assert_loss(result, -0.95)
    assert clip_share(result.statistics) == 0.0


def test_grpo_as_r1_prints_it() -> None:
    # ratios of whole outputs: 1.5 * 0.9 = 1.35 and 0.5
    # 1/2 * (min(1.35 * 2, 1.2 * 2) + min(0.5 * -1, 0.8 * -1)) = 1/2 * (2.4 - 0.8)
    assert_loss(worked(ratio="sequence", eps_low=0.2, eps_high=0.2)[0], -0.8)
    # unclipped: 1/2 * (2.7 - 0.5)
    result, gradient = worked(ratio="sequence", eps_low=0.6, eps_high=0.6)
    assert_loss(result, -1.1)
    # every token of an output moves its whole ratio: -1/2 * 2 * 1.35, and 1/2 * 0.5
    assert_close(gradient, f64(-1.35, -1.35, 0.25))


def test_whole_output_kl_as_r1_prints_it() -> None:
    result, _ = worked(ratio="sequence", eps_low=0.6, eps_high=0.6, ref_logprobs=REF, kl_beta=0.1)
    # r is 0.4 and 2: 0.4 - log 0.4 - 1 = 0.31629073 and 2 - log 2 - 1 = 0.30685282
    # -1.1 + 0.1 * 1/2 * (0.31629073 + 0.30685282)
    assert_loss(result, -1.1 + 0.0311571775)


@pytest.mark.parametrize(
    ("estimator", "first", "second", "third"),
    [
        ("k1", 0.69314718, 0.22314355, -0.69314718),
        ("k2", 0.24022651, 0.02489652, 0.24022651),
        ("k3", 0.19314718, 0.02314355, 0.30685282),
    ],
)
def test_kl_per_token(estimator: Any, first: float, second: float, third: float) -> None:
    result, _ = worked(ref_logprobs=REF, kl_beta=0.1, kl_estimator=estimator)
    assert_loss(result, -0.65 + 0.1 * (0.25 * first + 0.25 * second + 0.5 * third))
    assert kl_mean(result.statistics) == pytest.approx((first + second + third) / 3, abs=1e-7)


def test_a_reference_without_beta_is_only_measured() -> None:
    result, gradient = worked(ref_logprobs=REF, kl_beta=0.0)
    assert_loss(result, -0.65)
    assert_close(gradient, f64(0.0, -0.45, 0.0))
    assert kl_mean(result.statistics) == pytest.approx(0.17438118, abs=1e-7)


def test_gspo() -> None:
    # geometric means: sqrt(1.35) = 1.16189500 and 0.5
    # 1/2 * (min(2.3237900, 1.1 * 2) + min(-0.5, -0.9)) = 1/2 * (2.2 - 0.9)
    result, gradient = worked(loss="gspo", eps_low=0.1, eps_high=0.1)
    assert_loss(result, -0.65)
    assert_close(gradient, f64(0.0, 0.0, 0.0))
    assert clip_share(result.statistics) == 1.0
    # unclipped: 1/2 * (2.3237900 - 0.5); the exponent 1/2 halves the first output's gradient, -1/2 * 2 * 1.161895 / 2
    result, gradient = worked(loss="gspo", eps_low=0.6, eps_high=0.6)
    assert_loss(result, -0.91189500)
    assert_close(gradient, f64(-0.58094750, -0.58094750, 0.25), rtol=0, atol=1e-7)


def test_cispo() -> None:
    result, gradient = worked(loss="cispo", eps_high=0.2)
    # weights min(1.5, 1.2), 0.9, 0.5, times advantage and log-probability
    # -(0.25 * 1.2 * 2 * -1 + 0.25 * 0.9 * 2 * -2 + 0.5 * 0.5 * -1 * -0.5) = 0.6 + 0.9 - 0.125
    assert_loss(result, 1.375)
    # the capped token keeps its gradient: -0.25 * 1.2 * 2; and no lower bound: 0.5 * 0.5
    assert_close(gradient, f64(-0.6, -0.45, 0.25))
    assert clip_share(result.statistics) == pytest.approx(1 / 3)


def test_a_cap_without_an_advantage_changes_nothing_and_is_not_counted() -> None:
    result = policy_loss(LOGPROBS, OLD, f64(0.0, 0.0, -1.0), WEIGHTS, IDS, 2, loss="cispo", eps_high=0.2)
    assert clip_share(result.statistics) == 0.0


def test_importance_weights_scale_the_surrogate_only() -> None:
    correction = f64(2.0, 0.5, 1.0)
    # -(2 * 0.6 + 0.5 * 0.45 - 0.4)
    assert_loss(worked(importance_weights=correction)[0], -1.025)
    with_kl, _ = worked(importance_weights=correction, ref_logprobs=REF, kl_beta=0.1, kl_estimator="k1")
    assert_loss(with_kl, -1.025 + 0.1 * (0.25 * 0.69314718 + 0.25 * 0.22314355 - 0.5 * 0.69314718))


def test_entropy_bonus() -> None:
    # -0.65 - 0.1 * (0.25 * 1 + 0.25 * 2 + 0.5 * 3)
    assert_loss(worked(entropies=f64(1.0, 2.0, 3.0), entropy_bonus=0.1)[0], -0.875)
    assert_loss(worked(entropies=f64(1.0, 2.0, 3.0), entropy_bonus=0.0)[0], -0.65)


def test_tokens_of_weight_zero_are_not_counted() -> None:
    result = policy_loss(LOGPROBS, OLD, ADVANTAGES, f64(0.25, 0.25, 0.0), IDS, 2, ref_logprobs=REF)
    statistics = result.statistics
    assert statistics.num_tokens == 2
    assert clip_share(statistics) == 0.5
    assert kl_mean(statistics) == pytest.approx((0.19314718 + 0.02314355) / 2, abs=1e-7)


def test_a_coefficient_without_its_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match="ref_logprobs"):
        worked(kl_beta=0.1)
    with pytest.raises(ValueError, match="entropies"):
        worked(entropy_bonus=0.1)


# Every combination that the recipe can name, with all the extra terms switched on.
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo token": {"loss": "grpo", "ratio": "token"},
    "grpo sequence": {"loss": "grpo", "ratio": "sequence"},
    "gspo": {"loss": "gspo"},
    "cispo": {"loss": "cispo"},
}
EXTRAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "k1": {"kl_beta": 0.3, "kl_estimator": "k1"},
    "k2": {"kl_beta": 0.3, "kl_estimator": "k2"},
    "k3": {"kl_beta": 0.3, "kl_estimator": "k3"},
    "entropy": {"entropy_bonus": 0.2},
}


def random_batch(lengths: list[int]) -> dict[str, Any]:
    """Per-token tensors (N,) and `sequence_ids` of a batch with ratios on both sides of every bound."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(len(ids), generator=generator, dtype=torch.float64)

    old = -2 + noise(0.5)
    return {
        "logprobs": old + noise(0.4),
        "old_logprobs": old,
        "advantages": torch.randn(len(lengths), generator=generator, dtype=torch.float64)[ids],
        "token_weights": (0.1 + torch.rand(len(lengths), generator=generator, dtype=torch.float64))[ids],
        "importance_weights": 0.5 + torch.rand(len(ids), generator=generator, dtype=torch.float64),
        "ref_logprobs": old + noise(0.3),
        "entropies": noise(1.0).abs(),
        "sequence_ids": ids,
    }


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_equal_the_whole(variant: str, extra: str) -> None:
    settings = VARIANTS[variant] | EXTRAS[extra]
    batch = random_batch([3, 1, 5, 2, 4])
    whole_logprobs = batch["logprobs"].clone().requires_grad_()
    whole = policy_loss(**(batch | {"logprobs": whole_logprobs}), num_sequences=5, **settings)
    (whole_gradient,) = torch.autograd.grad(whole.loss, whole_logprobs)

    split_logprobs = batch["logprobs"].clone().requires_grad_()
    first = batch["sequence_ids"] < 2
    halves = []
    for chosen, offset, count in ((first, 0, 2), (~first, 2, 3)):
        half = {name: tensor[chosen] for name, tensor in batch.items()}
        half |= {"logprobs": split_logprobs[chosen], "sequence_ids": half["sequence_ids"] - offset}
        halves.append(policy_loss(**half, num_sequences=count, **settings))
    loss = halves[0].loss + halves[1].loss
    (gradient,) = torch.autograd.grad(loss, split_logprobs)

    assert_close(loss, whole.loss, rtol=0, atol=1e-7)
    assert_close(gradient, whole_gradient, rtol=0, atol=1e-7)
    for name, value in vars(whole.statistics).items():
        assert_close(sum(getattr(half.statistics, name) for half in halves), value, msg=name)


def test_interleaved_sequences_are_allowed() -> None:
    batch = random_batch([3, 1, 5, 2, 4])
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    shuffled = {name: tensor[order] for name, tensor in batch.items()}
    for variant in VARIANTS.values():
        settings = variant | EXTRAS["k3"]
        expected = policy_loss(**batch, num_sequences=5, **settings).loss
        assert_close(policy_loss(**shuffled, num_sequences=5, **settings).loss, expected)


@pytest.mark.parametrize("extra", ["plain", "k1", "k2", "k3"])
@pytest.mark.parametrize("variant", ["grpo token", "grpo sequence", "gspo"])
def test_gradients_by_finite_differences(variant: str, extra: str) -> None:
    batch = random_batch([3, 1, 4])
    settings = VARIANTS[variant] | EXTRAS[extra]

    def loss(logprobs: Tensor) -> Tensor:
        return policy_loss(**(batch | {"logprobs": logprobs}), num_sequences=3, **settings).loss

    assert torch.autograd.gradcheck(loss, batch["logprobs"].clone().requires_grad_())


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_policy_every_loss_is_the_policy_gradient(variant: str) -> None:
    """At ratio 1 nothing is clipped, and the gradient of a token is -w * A."""
    logprobs = LOGPROBS.clone().requires_grad_()
    result = policy_loss(logprobs, LOGPROBS, ADVANTAGES, WEIGHTS, IDS, 2, **VARIANTS[variant])
    (gradient,) = torch.autograd.grad(result.loss, logprobs)
    # the whole-output ratio has no 1 / |o_i|: the first output's two tokens count fully
    expected = f64(-1.0, -1.0, 0.5) if variant == "grpo sequence" else f64(-0.5, -0.5, 0.5)
    assert_close(gradient, expected)
    assert clip_share(result.statistics) == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_makes_good_outputs_likelier_and_bad_ones_rarer(variant: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    tokens, ids = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([0, 0, 0, 1, 1, 1])

    def output_logprobs() -> Tensor:
        return logits.log_softmax(-1)[torch.arange(6), tokens]

    before = output_logprobs()
    advantages = f64(1.0, -1.0)[ids]
    loss = policy_loss(
        before, before.detach(), advantages, torch.full((6,), 1 / 6).double(), ids, 2, **VARIANTS[variant]
    )
    (gradient,) = torch.autograd.grad(loss.loss, logits)
    with torch.no_grad():
        logits -= 0.1 * gradient
    change = torch.zeros(2).double().index_add(0, ids, (output_logprobs() - before).detach())
    assert change[0] > 0.01 and change[1] < -0.01


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_term_pulls_towards_the_reference(variant: str, estimator: Any) -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    none = torch.zeros(3).double()
    settings = VARIANTS[variant] | {"ref_logprobs": LOGPROBS + f64(0.3, 0.3, -0.3), "kl_estimator": estimator}
    loss = policy_loss(logprobs, LOGPROBS, none, WEIGHTS, IDS, 2, kl_beta=0.1, **settings).loss
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert (gradient.sign() == f64(-1.0, -1.0, 1.0)).all()


def test_the_entropy_bonus_raises_entropy() -> None:
    entropies = f64(1.0, 2.0, 3.0).requires_grad_()
    loss = policy_loss(LOGPROBS, OLD, ADVANTAGES, WEIGHTS, IDS, 2, entropies=entropies, entropy_bonus=0.1).loss
    assert_close(torch.autograd.grad(loss, entropies)[0], -0.1 * WEIGHTS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_advantage_zero_gives_a_gradient_of_exactly_zero(variant: str) -> None:
    """What allows the loop to skip the backward pass of dead groups."""
    logprobs = LOGPROBS.clone().requires_grad_()
    loss = policy_loss(logprobs, OLD, torch.zeros(3).double(), WEIGHTS, IDS, 2, **VARIANTS[variant]).loss
    assert (torch.autograd.grad(loss, logprobs)[0] == 0.0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("drift", [400.0, -400.0])
def test_a_ratio_beyond_floating_point_stays_finite(variant: str, advantage: float, drift: float) -> None:
    logprobs = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    old = torch.full((3,), -1.0 - drift)
    loss = policy_loss(logprobs, old, torch.full((3,), advantage), torch.ones(3), IDS, 2, **VARIANTS[variant]).loss
    assert loss.isfinite()
    assert torch.autograd.grad(loss, logprobs)[0].isfinite().all()
