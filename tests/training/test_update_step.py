"""One optimizer step against the same step written out plainly, one sequence at a time, without packing or skipping."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.recipe import AlgorithmSettings, OptimizerSettings
from ponder.rollout.base import Request, Sampling
from ponder.rollout.native import NativeEngine
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example
from ponder.training.update import Trajectory, UpdateStatistics, policy_step, supervised_step

MAX_TOKENS = 40
TEMPERATURE = 0.8


def make_decoder(seed: int = 0, double: bool = True, tied: bool = True) -> Decoder:
    decoder = Decoder(
        DecoderConfig(
            family="qwen2",
            vocab_size=23,
            hidden_size=16,
            intermediate_size=24,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=4,
            max_positions=128,
            qkv_bias=True,
            tied_embeddings=tied,
            initializer_range=0.3,
        )
    )
    decoder.initialise(seed)
    if double:
        decoder.double()
        decoder.rotations = decoder.rotations.to(torch.complex128)
    return decoder


class GradientCatcher(Optimizer):
    """Keeps the gradient and leaves the weights alone."""

    def __init__(self, model: Decoder) -> None:
        super().__init__(model, OptimizerSettings(), 1)
        self.model = model
        self.gradient = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)

    def step(self, loss: float = 0.0) -> float | None:
        self.gradient = collect_gradient(self.model)
        return float(self.gradient.norm())


def collect_gradient(model: Decoder) -> Tensor:
    """All gradients in one row, which are then cleared."""
    parts = [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()]
    model.zero_grad()
    return torch.cat(parts)


def flat_weights(model: Decoder) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def reply_log_p(model: Decoder, example: Example, temperature: float) -> Tensor:
    """(T, V) log-probabilities under which each reply token was drawn, by a plain pass over the one sequence."""
    ids = torch.tensor([[*example.prompt_ids, *example.reply_ids]])
    return (model.logits(ids)[0, len(example.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)


def chosen(log_p: Tensor, example: Example) -> Tensor:
    return log_p.gather(1, torch.tensor(example.reply_ids)[:, None]).squeeze(1)


LENGTHS = ((5, 1, 40, 17), (9, 8, 8, 30), (2, 3, 12, 1))
ADVANTAGES = ((1.0, -0.5, 0.0, -0.5), (0.0, 0.0, 0.0, 0.0), (-1.2, 0.4, 0.4, 0.4))


def make_trajectories(model: Decoder, gap: float = 0.25, sampler_gap: float = 0.0) -> list[Trajectory]:
    """Three groups of four, off policy by about `gap` nats a token, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for group, (lengths, advantages) in enumerate(zip(LENGTHS, ADVANTAGES, strict=True)):
        prompt = tuple(torch.randint(23, (3 + 4 * group,), generator=generator).tolist())
        for length, advantage in zip(lengths, advantages, strict=True):
            example = Example(prompt, tuple(torch.randint(23, (length,), generator=generator).tolist()))
            with torch.no_grad():
                now = chosen(reply_log_p(model, example, TEMPERATURE), example)
            old = now + gap * torch.randn(length, generator=generator)
            sampler = old + sampler_gap * torch.randn(length, generator=generator)
            truncated = length in (40, 30)
            sampled, before = sampler.float().tolist(), old.float().tolist()  # what an engine gives is float32
            found.append(Trajectory(example, sampled, advantage, truncated, before))
    return found


def plain_loss(
    model: Decoder, trajectories: Sequence[Trajectory], settings: AlgorithmSettings, reference: Decoder | None
) -> Tensor:
    """The loss as the papers print it, every sequence and every token of it, nothing skipped."""
    loss = torch.zeros((), dtype=torch.float64)
    kept = [not (settings.mask_truncated and t.truncated) for t in trajectories]
    lengths = [len(t.example.reply_ids) for t in trajectories]
    kept_tokens = sum(n for n, k in zip(lengths, kept, strict=True) if k)
    for t, length, keep in zip(trajectories, lengths, kept, strict=True):
        log_p = reply_log_p(model, t.example, TEMPERATURE)
        logprobs = chosen(log_p, t.example)
        sampler = torch.tensor(t.sampler_logprobs, dtype=torch.float64)
        correction = torch.ones_like(sampler)
        old = sampler
        if settings.importance.mode != "none":
            old = torch.tensor(t.old_logprobs, dtype=torch.float64)
            correction = (old - sampler).exp().clamp(max=settings.importance.cap)
        log_ratio = logprobs - old
        if settings.loss == "gspo":
            log_ratio = log_ratio.mean().expand(length)
        elif settings.loss == "grpo" and settings.ratio == "sequence":
            log_ratio = log_ratio.sum().expand(length)
        ratio = log_ratio.exp()
        if settings.loss == "cispo":
            term = ratio.detach().clamp(max=1 + settings.eps_high) * t.advantage * logprobs
        else:
            clipped = ratio.clamp(1 - settings.eps_low, 1 + settings.eps_high)
            term = torch.minimum(ratio * t.advantage, clipped * t.advantage)
        term = term * correction
        if reference is not None and settings.kl.place == "loss":
            with torch.no_grad():
                under_reference = chosen(reply_log_p(reference, t.example, TEMPERATURE), t.example)
            log_r = under_reference - logprobs
            kl = {"k1": -log_r, "k2": log_r**2 / 2, "k3": log_r.exp() - log_r - 1}[settings.kl.estimator]
            term = term - settings.kl.beta * kl
        term = term + settings.entropy_bonus * -(log_p.exp() * log_p).sum(-1)
        denominator = {
            "sequence_mean": len(trajectories) * length,
            "token_mean": kept_tokens,
            "constant": len(trajectories) * MAX_TOKENS,
        }[settings.aggregate]
        loss = loss - keep * term.sum() / denominator
    return loss


def step(
    model: Decoder,
    optimizer: Optimizer,
    trajectories: Sequence[Trajectory],
    settings: AlgorithmSettings,
    budget: int = 10_000,
    reference: Decoder | None = None,
) -> UpdateStatistics:
    return policy_step(
        model,
        optimizer,
        trajectories,
        settings,
        temperature=TEMPERATURE,
        max_tokens=MAX_TOKENS,
        budget=budget,
        reference=reference,
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "r1 as printed": {"ratio": "sequence"},
    "clip-higher": {"eps_high": 0.5, "eps_low": 0.1, "aggregate": "token_mean"},
    "constant": {"aggregate": "constant"},
    "gspo": {"loss": "gspo"},
    "cispo": {"loss": "cispo"},
    "kl in loss": {"kl": {"beta": 0.2}},
    "k1 in loss": {"kl": {"beta": 0.2, "estimator": "k1"}},
    "k2 in loss": {"kl": {"beta": 0.2, "estimator": "k2"}, "aggregate": "token_mean"},
    "kl in reward": {"kl": {"beta": 0.2, "place": "reward"}},
    "entropy": {"entropy_bonus": 0.1},
    "masked": {"mask_truncated": True},
    "masked token mean": {"mask_truncated": True, "aggregate": "token_mean", "entropy_bonus": 0.1},
    "corrected": {"importance": {"mode": "token_truncate", "cap": 1.1}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradient_are_those_of_the_plain_step(name: str) -> None:
    """Whatever the budget: halves equal the whole, and what is skipped would have given nothing."""
    settings = AlgorithmSettings.model_validate({"importance": {"mode": "none"}} | VARIANTS[name])
    model = make_decoder()
    reference = make_decoder(seed=1) if settings.kl.beta > 0 else None
    trajectories = make_trajectories(model, sampler_gap=0.2 if settings.importance.mode != "none" else 0.0)
    loss = plain_loss(model, trajectories, settings, reference)
    loss.backward()
    expected = collect_gradient(model)
    assert float(expected.norm()) > 1e-3

    for budget in (1, 60, 10_000):
        catcher = GradientCatcher(model)
        result = step(model, catcher, trajectories, settings, budget, reference)
        torch.testing.assert_close(catcher.gradient, expected, rtol=1e-6, atol=1e-7)
        assert result.loss == pytest.approx(float(loss.detach()), abs=1e-7)
        assert result.grad_norm == pytest.approx(float(expected.norm()), rel=1e-6)


def test_the_budget_does_not_change_where_training_goes() -> None:
    """Three real steps in float32 with a budget of single sequences and with one for all."""
    ends = []
    for budget in (1, 100_000):
        model = make_decoder(double=False)
        optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 3)
        trajectories = make_trajectories(model)
        for _ in range(3):
            result = step(model, optimizer, trajectories, AlgorithmSettings(entropy_bonus=0.01), budget)
        assert result.grad_norm is not None
        ends.append(flat_weights(model))
    assert float((ends[0] - ends[1]).abs().max()) < 1e-6
    assert float((ends[0] - flat_weights(make_decoder(double=False))).abs().max()) > 1e-3


# --- what is skipped, and what is counted --------------------------------------------------------------------------


def trained_tokens(**changes: Any) -> int:
    model = make_decoder()
    settings = AlgorithmSettings.model_validate(changes)
    reference = make_decoder(seed=1) if settings.kl.beta > 0 else None
    return step(model, GradientCatcher(model), make_trajectories(model), settings, reference=reference).trained_tokens


def test_only_what_has_a_gradient_is_computed() -> None:
    everything = sum(map(sum, LENGTHS))
    live = (5 + 1 + 17) + (2 + 3 + 12 + 1)
    assert trained_tokens() == live
    assert trained_tokens(kl={"beta": 0.1, "place": "reward"}) == live
    assert trained_tokens(kl={"beta": 0.1}) == everything
    assert trained_tokens(entropy_bonus=-0.1) == everything
    assert trained_tokens(mask_truncated=True) == live  # the truncated ones have advantage 0
    assert trained_tokens(mask_truncated=True, entropy_bonus=0.1) == everything - 40 - 30


def test_a_step_without_any_gradient_moves_nothing() -> None:
    model = make_decoder()
    optimizer = Optimizer(model, OptimizerSettings(lr=0.1, weight_decay=0.1), 10)
    before = flat_weights(model)
    dead = [dataclasses.replace(t, advantage=0.0) for t in make_trajectories(model)]
    result = step(model, optimizer, dead, AlgorithmSettings())
    assert (result.loss, result.grad_norm, result.trained_tokens) == (0.0, 0.0, 0)
    assert result.finite
    assert torch.equal(flat_weights(model), before)


def test_the_schedule_goes_on_over_a_step_without_any_gradient() -> None:
    model = make_decoder()
    optimizer = Optimizer(model, OptimizerSettings(lr=0.1, warmup_steps=4), 10)
    dead = [dataclasses.replace(t, advantage=0.0) for t in make_trajectories(model)]
    step(model, optimizer, dead, AlgorithmSettings())
    assert optimizer.lr == pytest.approx(0.05)  # of the second of four steps


def test_statistics_on_and_off_policy() -> None:
    model = make_decoder()
    on_policy = step(model, GradientCatcher(model), make_trajectories(model, gap=0.0), AlgorithmSettings())
    assert on_policy.clip_share == 0
    assert on_policy.logprob_gap < 1e-6
    off_policy = step(model, GradientCatcher(model), make_trajectories(model, gap=0.5), AlgorithmSettings())
    assert 0.1 < off_policy.clip_share < 0.6
    assert 0.5 < off_policy.logprob_gap < 3
    with_kl = AlgorithmSettings.model_validate({"kl": {"beta": 0.1}, "entropy_bonus": 0.1})
    other = step(model, GradientCatcher(model), make_trajectories(model), with_kl, reference=make_decoder(seed=1))
    assert other.kl > 0.05
    same = step(model, GradientCatcher(model), make_trajectories(model), with_kl, reference=copy.deepcopy(model))
    assert same.kl == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("budget", [1, 100_000])
def test_how_the_sampler_differs_is_measured_by_the_token(budget: int) -> None:
    """Trainer / sampler is 2 at the first token, 1/4 at the second and 1 at the others."""
    model = make_decoder()
    examples = [Example((1, 2), (3, 4)), Example((5,), (6, 7, 8))]
    ratios = [[2.0, 0.25], [1.0, 1.0, 1.0]]
    trajectories = []
    for example, wanted in zip(examples, ratios, strict=True):
        with torch.no_grad():
            now = chosen(reply_log_p(model, example, TEMPERATURE), example)
        trajectories.append(Trajectory(example, (now - torch.tensor(wanted).double().log()).tolist(), 1.0))
    truncated = AlgorithmSettings.model_validate({"importance": {"mode": "token_truncate", "cap": 1.5}})
    masked = AlgorithmSettings.model_validate({"importance": {"mode": "sequence_mask", "cap": 2.0, "floor": 0.6}})
    result = step(model, GradientCatcher(model), trajectories, truncated, budget)
    assert result.logprob_gap == pytest.approx(math.log(4))
    assert result.logprob_gap_mean == pytest.approx((math.log(2) + math.log(4)) / 5)
    # r - log r - 1
    assert result.sampler_kl == pytest.approx((2 - math.log(2) - 1 + 0.25 + math.log(4) - 1) / 5)
    assert result.bounded_share == pytest.approx(1 / 5)
    other = step(model, GradientCatcher(model), trajectories, masked, budget)
    assert other.bounded_share == pytest.approx(2 / 5)
    plain = step(model, GradientCatcher(model), trajectories, AlgorithmSettings(), budget)
    assert plain.bounded_share == 0
    assert plain.sampler_kl == other.sampler_kl == result.sampler_kl


def test_the_engines_rollouts_are_on_policy() -> None:
    model = make_decoder(double=False)
    requests = [Request((1, 2, 3), "a", 6), Request((4,), "b", 6)]
    groups = NativeEngine(model, max_rows=5).generate(requests, Sampling(30, temperature=TEMPERATURE), seed=0)
    trajectories = [
        Trajectory(Example(r.prompt_ids, tuple(c.ids)), c.logprobs, advantage=1.0 - 2 * (i % 2))
        for r, group in zip(requests, groups, strict=True)
        for i, c in enumerate(group)
    ]
    result = step(model, GradientCatcher(model), trajectories, AlgorithmSettings())
    assert 0 < result.logprob_gap <= 1e-5
    assert result.clip_share == 0


def test_what_was_good_becomes_more_probable_and_what_was_bad_less() -> None:
    model = make_decoder()
    good, bad = Example((1, 2), (3, 4, 5)), Example((1, 2), (6, 7, 8))

    def totals() -> list[float]:
        with torch.no_grad():
            return [float(chosen(reply_log_p(model, e, TEMPERATURE), e).sum()) for e in (good, bad)]

    before = totals()
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 1)
    old = [chosen(reply_log_p(model, e, TEMPERATURE), e).tolist() for e in (good, bad)]
    step(model, optimizer, [Trajectory(good, old[0], 1.0), Trajectory(bad, old[1], -1.0)], AlgorithmSettings())
    after = totals()
    assert after[0] > before[0] + 1e-3
    assert after[1] < before[1] - 1e-3


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_what_is_not_finite_never_reaches_the_weights(bad: float) -> None:
    model = make_decoder(double=False)
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 3)
    trajectories = make_trajectories(model)
    assert step(model, optimizer, trajectories, AlgorithmSettings()).finite
    before = flat_weights(model)
    poisoned = dataclasses.replace(trajectories[0], sampler_logprobs=[float("nan")] * 5)
    reference = make_decoder(seed=1, double=False)
    with torch.no_grad():
        reference.embedding.weight[:] = bad
    with_kl = AlgorithmSettings.model_validate({"kl": {"beta": 0.1}})
    for result in (
        step(model, optimizer, [poisoned, *trajectories[1:]], AlgorithmSettings(), budget=20),
        step(model, optimizer, trajectories, with_kl, reference=reference),
    ):
        assert not result.finite
        assert result.grad_norm is None
        assert torch.equal(flat_weights(model), before)
    assert step(model, optimizer, trajectories, AlgorithmSettings()).finite
    assert bool(flat_weights(model).isfinite().all())


# --- supervised ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 50, 10_000])
def test_the_supervised_step_is_plain_cross_entropy(budget: int) -> None:
    """Two steps of AdamW on the mean over all reply tokens; prompts give no loss."""
    model, plain = make_decoder(), make_decoder()
    examples = [t.example for t in make_trajectories(model)]
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-2, grad_clip=0.5), 2)
    adamw = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(2):
        result = supervised_step(model, optimizer, examples, budget)
        logits = torch.cat([reply_log_p(plain, e, 1.0) for e in examples])
        loss = F.cross_entropy(logits, torch.tensor([t for e in examples for t in e.reply_ids]))
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        adamw.step()
        assert result.loss == pytest.approx(float(loss.detach()), abs=1e-9)
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-8)
        assert result.trained_tokens == len(logits)
    torch.testing.assert_close(flat_weights(model), flat_weights(plain), rtol=1e-6, atol=1e-7)
