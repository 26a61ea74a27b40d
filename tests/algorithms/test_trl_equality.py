"""The same numbers as TRL's GRPOTrainer, by running TRL's own arithmetic on the same tensors.

A `GRPOTrainer` is made without its constructor and given only the attributes that its two arithmetic methods read.
What would run a model returns fixed tensors instead. `_generate_and_score_completions` then turns rewards into
advantages and sampler log-probabilities into importance weights, and `_compute_loss` turns those into a loss: the
whole path from rewards to gradient is TRL's, and the whole path is compared.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder.algorithms.advantages import combine_rewards
from ponder.algorithms.importance import importance_weights
from ponder.algorithms.losses import PolicyLoss, policy_loss
from ponder.algorithms.overlong import soft_overlong_penalty
from ponder.algorithms.weights import token_weights

pytest.importorskip("trl", reason="TRL is the peer of this comparison")

from trl.rewards.other_rewards import get_soft_overlong_punishment
from trl.trainer import grpo_trainer

PROMPTS, GROUP = 3, 4
LENGTHS = torch.tensor([5, 2, 7, 1, 4, 4, 3, 7, 6, 2, 5, 3])
MAX_TOKENS = 7
TOLERANCE = 1e-5
EOS = 1

SEQUENCE_IDS = torch.repeat_interleave(torch.arange(len(LENGTHS)), LENGTHS)


def packed_noise(seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(int(LENGTHS.sum()), generator=generator, dtype=torch.float64)


# far enough from each other that clips, caps and floors all bind somewhere
OLD = -1.5 + packed_noise(0, 0.4)
NEW = OLD + packed_noise(1, 0.35)
REF = OLD + packed_noise(2, 0.5)
SAMPLER = OLD + packed_noise(3, 0.5)
ENTROPIES = packed_noise(4).abs()
REWARDS = {
    "accuracy": torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.float64),
    "format": torch.tensor([[1, 1, 0, 0.5], [1, 0, 1, 1], [1, 1, 1, 1]], dtype=torch.float64),
}
WEIGHTS = {"accuracy": 1.0, "format": 0.3}


def pad(packed: Tensor) -> Tensor:
    """(N,) -> (B, T), zeros on the right."""
    rows = torch.zeros(len(LENGTHS), int(LENGTHS.max()), dtype=packed.dtype)
    rows[torch.arange(rows.shape[1]) < LENGTHS[:, None]] = packed
    return rows


class Accelerator:
    """One process: gathering is the identity."""

    device = torch.device("cpu")
    num_processes = 1
    process_index = 0
    sync_gradients = True

    def gather(self, value: Tensor) -> Tensor:
        return value

    def reduce(self, value: Tensor, reduction: str) -> Tensor:
        return value


def bare_trainer(new_logprobs: Tensor, entropies: Tensor, truncated: Tensor, **settings: Any) -> Any:
    """A GRPOTrainer with settings and fixed tensors in place of models; log-probabilities and entropies are (B, T)."""
    trainer: Any = object.__new__(grpo_trainer.GRPOTrainer)
    defaults: dict[str, Any] = {
        "loss_type": "grpo",
        "importance_sampling_level": "token",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize",
        "mask_truncated_completions": False,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": None,
        "vllm_importance_sampling_clip_min": None,
        "entropy_coef": 0.0,
    }
    assert settings.keys() <= defaults.keys()
    for name, value in (defaults | settings).items():
        setattr(trainer, name, value)
    trainer._entropy_bonus_enabled = trainer.entropy_coef != 0.0
    trainer.use_adaptive_entropy = False
    trainer.top_entropy_quantile = 1.0
    trainer.off_policy_mask_threshold = None
    trainer.aux_loss_enabled = False
    trainer.max_completion_length = MAX_TOKENS
    trainer.num_generations = GROUP
    trainer.num_iterations = 2  # more than one update a batch, so that TRL asks for old log-probabilities
    trainer.current_gradient_accumulation_steps = 1
    trainer.args = SimpleNamespace(
        delta=None,
        use_bias_correction_kl=False,
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        gradient_checkpointing_kwargs=None,
        per_device_train_batch_size=len(LENGTHS),
        report_to=[],
    )
    trainer.accelerator = Accelerator()
    trainer.model = SimpleNamespace(training=True, is_gradient_checkpointing=False)
    trainer.ref_model = "reference"
    trainer.environment_factories = None
    trainer.environments = None
    trainer.tools = None
    trainer.pad_to_multiple_of = None
    trainer._tokenizer = SimpleNamespace(pad_token_id=0, batch_decode=lambda ids, **_: [""] * len(ids))
    trainer.processing_class = trainer._tokenizer
    trainer.eos_token_ids = [EOS]
    trainer.reward_funcs = list(REWARDS)
    trainer.reward_func_names = list(REWARDS)
    trainer.reward_weights = torch.tensor(list(WEIGHTS.values()), dtype=torch.float64)
    trainer._metrics = {"train": defaultdict(list)}
    trainer._pending_metrics = {}
    trainer._pending_extra_logs = {}
    trainer._logs = {"prompt": [], "completion": [], "advantages": [], "rewards": defaultdict(list)}
    trainer.log_multimodal = False

    def generate(prompts: list[str]) -> tuple[Any, ...]:
        completions = [
            [2] * (int(n) - 1) + [3 if cut else EOS] for n, cut in zip(LENGTHS, truncated.tolist(), strict=True)
        ]
        sampler = [row.tolist() for row in torch.split(SAMPLER, LENGTHS.tolist())]
        return [[2]] * len(prompts), completions, None, [""] * len(prompts), sampler, {}, None, None

    def logprobs(model: Any, *args: Any, compute_entropy: bool = False, **kwargs: Any) -> tuple[Any, ...]:
        if compute_entropy:
            return new_logprobs, entropies, None
        return pad(REF if model == "reference" else OLD), None, None

    trainer._generate = generate
    trainer._get_per_token_logps_and_entropies = logprobs
    trainer._calculate_rewards = lambda *args: torch.stack([REWARDS[k].flatten() for k in REWARDS], dim=1)
    return trainer


@pytest.fixture(autouse=True)
def single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's module-level helpers that would ask for a process group or touch a model."""
    monkeypatch.setattr(grpo_trainer, "gather", lambda value: value)
    monkeypatch.setattr(grpo_trainer, "gather_object", lambda value: value)
    monkeypatch.setattr(grpo_trainer, "disable_gradient_checkpointing", lambda *args: nullcontext())
    logging.getLogger("trl").setLevel(logging.ERROR)


def trl_loss(truncated: Tensor, **settings: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """TRL's loss, its gradient in the packed log-probabilities (N,), and the batch that it computed."""
    new_logprobs = NEW.clone().requires_grad_()
    trainer = bare_trainer(pad(new_logprobs), pad(ENTROPIES), truncated, **settings)
    inputs = [{"prompt": "p"} for _ in range(len(LENGTHS))]
    batch = trainer._generate_and_score_completions(inputs)
    loss = trainer._compute_loss(trainer.model, batch)
    (gradient,) = torch.autograd.grad(loss, new_logprobs)
    return loss.detach(), gradient, batch | {"metrics": trainer._metrics["train"]}


def ponder_loss(
    truncated: Tensor,
    *,
    aggregate: Any = "sequence_mean",
    scale: Any = "group",
    reward_aggregate: Any = "sum_then_normalise",
    mask_truncated: bool = False,
    importance: dict[str, Any] | None = None,
    entropy_bonus: float = 0.0,
    kl_beta: float = 0.0,
    **settings: Any,
) -> tuple[PolicyLoss, Tensor, Tensor]:
    """Ponder's loss for the same batch, its gradient in the packed log-probabilities (N,), and advantages (P, G)."""
    advantages, _ = combine_rewards(REWARDS, WEIGHTS, reward_aggregate, scale)
    weights = token_weights(
        LENGTHS, aggregate, MAX_TOKENS, keep=~truncated if mask_truncated else None, dtype=torch.float64
    )
    correction = None
    if importance is not None:
        correction = importance_weights(OLD, SAMPLER, SEQUENCE_IDS, len(LENGTHS), **importance).weights
    new_logprobs = NEW.clone().requires_grad_()
    result = policy_loss(
        new_logprobs,
        OLD,
        advantages.flatten()[SEQUENCE_IDS],
        weights[SEQUENCE_IDS],
        SEQUENCE_IDS,
        len(LENGTHS),
        importance_weights=correction,
        ref_logprobs=REF if kl_beta else None,
        kl_beta=kl_beta,
        entropies=ENTROPIES,
        entropy_bonus=entropy_bonus,
        **settings,
    )
    (gradient,) = torch.autograd.grad(result.loss, new_logprobs)
    return result, gradient, advantages


MASKED = torch.tensor([0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0], dtype=torch.bool)

# name: (TRL's settings, Ponder's settings)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({}, {}),
    "grpo, R1's eps": ({"epsilon_low": 10.0, "epsilon_high": 10.0}, {"eps_low": 10.0, "eps_high": 10.0}),
    "grpo, k3 in the loss": ({"beta": 0.04}, {"kl_beta": 0.04}),
    "grpo, truncated masked": ({"mask_truncated_completions": True}, {"mask_truncated": True}),
    "bnpo: token mean of the whole batch": ({"loss_type": "bnpo"}, {"aggregate": "token_mean"}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, {"aggregate": "token_mean", "eps_high": 0.28}),
    "dapo, truncated masked, k3, entropy bonus": (
        {"loss_type": "dapo", "beta": 0.1, "mask_truncated_completions": True, "entropy_coef": 0.02},
        {"aggregate": "token_mean", "kl_beta": 0.1, "mask_truncated": True, "entropy_bonus": 0.02},
    ),
    "dr_grpo": (
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
        {"aggregate": "constant", "scale": "none"},
    ),
    "dr_grpo, truncated masked": (
        {"loss_type": "dr_grpo", "scale_rewards": "none", "mask_truncated_completions": True},
        {"aggregate": "constant", "scale": "none", "mask_truncated": True},
    ),
    "gspo": (
        {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04},
        {"loss": "gspo", "eps_low": 0.03, "eps_high": 0.04},
    ),
    "gspo, k3 in the loss": (
        {"importance_sampling_level": "sequence", "epsilon_low": 0.03, "epsilon_high": 0.04, "beta": 0.1},
        {"loss": "gspo", "eps_low": 0.03, "eps_high": 0.04, "kl_beta": 0.1},
    ),
    "gspo, truncated masked": (
        {"importance_sampling_level": "sequence", "mask_truncated_completions": True},
        {"loss": "gspo", "mask_truncated": True},
    ),
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        {"loss": "cispo", "aggregate": "token_mean", "eps_high": 0.3},
    ),
    "cispo, k3 in the loss": (
        {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.1},
        {"loss": "cispo", "aggregate": "token_mean", "eps_high": 4.0, "kl_beta": 0.1},
    ),
    "batch scale": ({"scale_rewards": "batch"}, {"scale": "batch"}),
    "no scale": ({"scale_rewards": "none"}, {"scale": "none"}),
    "normalise, then sum": (
        {"multi_objective_aggregation": "normalize_then_sum"},
        {"reward_aggregate": "normalise_then_sum"},
    ),
}
for mode in ("token_truncate", "sequence_truncate", "token_mask", "sequence_mask"):
    masks = mode.endswith("mask")
    for trl_type, ours in (
        ({"loss_type": "dapo"}, {"aggregate": "token_mean"}),
        ({"importance_sampling_level": "sequence"}, {"loss": "gspo"}),
    ):
        CASES[f"importance {mode}, {next(iter(ours.values()))}"] = (
            {
                **trl_type,
                "beta": 0.1,
                "use_vllm": True,
                "vllm_importance_sampling_correction": True,
                "vllm_importance_sampling_mode": mode,
                "vllm_importance_sampling_clip_max": 1.4,
                "vllm_importance_sampling_clip_min": 0.7 if masks else None,
            },
            {**ours, "kl_beta": 0.1, "importance": {"mode": mode, "cap": 1.4, "floor": 0.7}},
        )


@pytest.mark.parametrize("name", CASES)
def test_rewards_to_gradient_as_in_trl(name: str) -> None:
    trl_settings, our_settings = CASES[name]
    expected, expected_gradient, batch = trl_loss(MASKED, **trl_settings)
    result, gradient, advantages = ponder_loss(MASKED, **our_settings)

    torch.testing.assert_close(advantages.flatten(), batch["advantages"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(result.loss.detach(), expected, rtol=0, atol=TOLERANCE, check_dtype=False)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=TOLERANCE, check_dtype=False)
    assert expected_gradient.abs().max() > 100 * TOLERANCE, "a comparison of zeros would show nothing"

    metrics = batch["metrics"]
    counts = result.statistics
    if "clip_ratio/region_mean" in metrics and our_settings.get("loss", "grpo") == "grpo":
        share = float(counts.bounded_tokens / counts.num_tokens)
        assert share == pytest.approx(metrics["clip_ratio/region_mean"][0], abs=1e-6)
    if "kl" in metrics:
        assert float(counts.kl_sum / counts.num_tokens) == pytest.approx(metrics["kl"][0], abs=TOLERANCE)


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_truncate", "token_mask", "sequence_mask"])
def test_importance_weights_as_in_trl(mode: Any) -> None:
    floor = 0.7 if mode.endswith("mask") else None
    _, _, batch = trl_loss(
        MASKED,
        use_vllm=True,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode=mode,
        vllm_importance_sampling_clip_max=1.4,
        vllm_importance_sampling_clip_min=floor,
    )
    theirs = batch["importance_sampling_ratio"].expand(len(LENGTHS), int(LENGTHS.max()))
    theirs = theirs[torch.arange(theirs.shape[1]) < LENGTHS[:, None]]
    ours = importance_weights(OLD, SAMPLER, SEQUENCE_IDS, len(LENGTHS), mode, cap=1.4, floor=0.7).weights
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE, check_dtype=False)
    assert (ours == (0.0 if floor else 1.4)).any() and (ours < 1).any(), "the bound must bind somewhere"


def test_soft_overlong_penalty_as_in_trl() -> None:
    lengths = torch.arange(0, 130)
    theirs: Callable[..., list[float]] = get_soft_overlong_punishment(100, 20)
    expected = theirs(completion_ids=[[1] * int(n) for n in lengths])
    torch.testing.assert_close(soft_overlong_penalty(lengths, 100, 20), torch.tensor(expected), rtol=0, atol=1e-6)
