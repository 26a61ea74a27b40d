"""The three estimators: worked by hand, and what their values and gradients are on average."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ponder.algorithms.kl import kl_estimate, kl_reward_penalty

PI_LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.0], dtype=torch.float64)
REF = torch.tensor([-0.5, 0.2, 0.1, 0.9], dtype=torch.float64).log_softmax(0)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second) of two log-distributions."""
    return (first.exp() * (first - second)).sum()


@pytest.mark.parametrize(
    ("estimator", "half", "double"),
    [
        # r = 1/2: -log r = log 2; (log 2)^2 / 2; 1/2 + log 2 - 1        r = 2: -log 2; the same; 2 - log 2 - 1
        ("k1", 0.69314718, -0.69314718),
        ("k2", 0.24022651, 0.24022651),
        ("k3", 0.19314718, 0.30685282),
    ],
)
def test_by_hand(estimator: Any, half: float, double: float) -> None:
    policy, reference = torch.tensor([log(0.5), log(0.25)]).double(), torch.tensor([log(0.25), log(0.5)]).double()
    assert_close(kl_estimate(policy, reference, estimator), torch.tensor([half, double]).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_equal_policies_have_none(estimator: Any) -> None:
    assert (kl_estimate(REF, REF.clone(), estimator) == 0).all()


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: Any) -> None:
    policy = PI_LOGITS.log_softmax(0)
    assert_close((policy.exp() * kl_estimate(policy, REF, estimator)).sum(), divergence(policy, REF))


def mean_gradient(estimator: Any) -> Tensor:
    """Expected gradient of the differentiated estimate: the sampling distribution itself is held fixed."""
    logits = PI_LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(0)
    return torch.autograd.grad((policy.exp().detach() * kl_estimate(policy, REF, estimator)).sum(), logits)[0]


def true_gradient(forward: bool) -> Tensor:
    logits = PI_LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(0)
    return torch.autograd.grad(divergence(policy, REF) if forward else divergence(REF, policy), logits)[0]


def test_what_the_loss_form_differentiates() -> None:
    assert_close(mean_gradient("k1"), torch.zeros(4, dtype=torch.float64))
    assert_close(mean_gradient("k2"), true_gradient(forward=True))
    assert_close(mean_gradient("k3"), true_gradient(forward=False))


def test_k1_in_the_reward_gives_the_true_gradient() -> None:
    logits = PI_LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(0)
    # every outcome once, each an output of one token
    penalty = kl_reward_penalty(policy, REF, torch.arange(4), 4, beta=0.3, estimator="k1")
    assert not penalty.requires_grad
    (gradient,) = torch.autograd.grad((policy.exp().detach() * penalty * policy).sum(), logits)
    assert_close(gradient, 0.3 * true_gradient(forward=True))


def test_reward_penalty_by_hand() -> None:
    # output 0 has log-ratios 1 and -0.25, output 1 has 0.5; beta 0.1
    policy, reference = torch.tensor([-1.0, -2.0, -0.5]).double(), torch.tensor([-2.0, -1.75, -1.0]).double()
    ids = torch.tensor([0, 0, 1])
    assert_close(kl_reward_penalty(policy, reference, ids, 2, 0.1), torch.tensor([0.075, 0.05]).double())
    # k2: (1 + 0.0625) / 2 and 0.25 / 2
    penalty = kl_reward_penalty(policy, reference, ids, 2, 0.1, "k2")
    assert_close(penalty, torch.tensor([0.053125, 0.0125]).double())
