"""Several ranks against one process: the same gradients, statistics and weights, whatever the sharding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_pool import RankPool
from test_update_step import LENGTHS, MAX_TOKENS, TEMPERATURE, make_decoder, make_trajectories
from torch import Tensor
from torch.distributed.tensor import DTensor

from ponder.recipe import AlgorithmSettings, OptimizerSettings
from ponder.training.execution import Execution
from ponder.training.optimizer import Optimizer
from ponder.training.rank import RankTrainer
from ponder.training.sharding import Sharding
from ponder.training.trainer import TrainerSettings
from ponder.training.update import UpdateStatistics, policy_step, supervised_step

SHARDINGS: tuple[Sharding, ...] = ("fsdp2", "ddp")


def settings(algorithm: dict[str, Any] | None = None, budget: int = 50, **changes: Any) -> TrainerSettings:
    """A budget of 50 tokens makes two micro-batches on each of two ranks."""
    resolved = AlgorithmSettings.model_validate({"importance": {"mode": "none"}} | (algorithm or {}))
    optimizer = changes.pop("optimizer", OptimizerSettings(lr=1e-3, grad_clip=0.5))
    return TrainerSettings(optimizer, 8, budget, resolved, TEMPERATURE, MAX_TOKENS, **changes)


def make_trainer(
    rank: int, size: int, sharding: Sharding, of: TrainerSettings, reference: bool = False, tied: bool = True
) -> RankTrainer:
    model = make_decoder(double=False, tied=tied)
    weights = model.state_dict() if rank == 0 else None
    return RankTrainer(rank, size, model.config, weights, of, sharding, reference)


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


class Recorder:
    """Keeps what an optimizer was about to step by."""

    def __init__(self, model: torch.nn.Module, optimizer: Optimizer) -> None:
        self.gradients: dict[str, Tensor] = {}
        plain = optimizer.step

        def step(loss: float = 0.0) -> float | None:
            optimizer.execution.ranks.sum_gradients(optimizer.parameters)
            self.gradients = {n: whole(p.grad) for n, p in model.named_parameters() if p.requires_grad}
            for parameter in optimizer.parameters:  # they have been added up
                if optimizer.execution.ranks.size > 1 and not optimizer.execution.ranks.lockstep:
                    assert parameter.grad is not None
                    parameter.grad /= optimizer.execution.ranks.size
            return plain(loss)

        optimizer.step = step  # type: ignore[method-assign]


Outcome = tuple[list[UpdateStatistics], dict[str, Tensor], dict[str, Tensor], list[Tensor]]
"""Statistics of two policy steps and a supervised one, gradients of the first, weights, log-probabilities."""


def trained_on_ranks(rank: int, size: int, sharding: Sharding, of: TrainerSettings, tied: bool) -> Outcome:
    trainer = make_trainer(rank, size, sharding, of, reference=True, tied=tied)
    recorder = Recorder(trainer.policy, trainer.optimizer)
    trajectories = make_trajectories(make_decoder(double=False, tied=tied), sampler_gap=0.1)
    updates = trainer.policy_updates([trajectories])
    first = recorder.gradients
    logprobs = trainer.logprobs(trajectories, "policy")
    updates += trainer.policy_updates([trajectories])
    updates.append(trainer.supervised_update([t.example for t in trajectories]))
    assert trainer.version == 2
    return updates, first, dict(trainer.weights()), logprobs


def trained_at_once(of: TrainerSettings, tied: bool) -> Outcome:
    """In this process, all in one micro-batch."""
    model, reference = make_decoder(double=False, tied=tied), make_decoder(double=False, tied=tied)
    optimizer = Optimizer(model, of.optimizer, of.total_steps)
    recorder = Recorder(model, optimizer)
    trajectories = make_trajectories(make_decoder(double=False, tied=tied), sampler_gap=0.1)

    def step() -> UpdateStatistics:
        return policy_step(
            model,
            optimizer,
            trajectories,
            of.algorithm,
            temperature=TEMPERATURE,
            max_tokens=MAX_TOKENS,
            budget=10_000,
            reference=reference,
        )

    updates = [step()]
    first = recorder.gradients
    updates += [step(), supervised_step(model, optimizer, [t.example for t in trajectories], 10_000)]
    return updates, first, model.state_dict(), []


CASES: dict[str, dict[str, Any]] = {
    "sequence mean": {},
    "token mean": {"aggregate": "token_mean", "mask_truncated": True},
    "constant": {"aggregate": "constant", "loss": "gspo"},
    "kl, entropy, correction": {
        "kl": {"beta": 0.2},
        "entropy_bonus": 0.1,
        "importance": {"mode": "token_truncate", "cap": 1.1},
    },
}


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_by_two_micro_batches_are_one_batch(ranks: RankPool, sharding: Sharding, case: str) -> None:
    tied = case != "constant"
    of = settings(CASES[case])
    updates, gradients, weights, _ = trained_at_once(of, tied)
    found = ranks.run(2, trained_on_ranks, sharding, of, tied)

    first = torch.cat([g.flatten() for g in gradients.values()])
    for statistics, theirs, _, logprobs in found:
        assert theirs.keys() == gradients.keys()
        flat = torch.cat([theirs[name].flatten() for name in gradients])
        assert float((flat - first).norm() / first.norm()) < 1e-5
        assert float((flat - first).abs().max() / first.abs().max()) < 1e-5
        for one, expected in zip(statistics, updates, strict=True):
            told = {number: x.tolist() for number, x in one.logprobs.items()}
            for number, whole in expected.logprobs.items():
                assert told.pop(number) == pytest.approx(whole.tolist(), abs=1e-5)
            assert not told
            for name in vars(expected).keys() - {"logprobs"}:
                value = getattr(expected, name)
                assert getattr(one, name) == pytest.approx(value, rel=1e-4, abs=1e-6), name
        assert [len(x) for x in logprobs] == [n for group in LENGTHS for n in group]
    assert found[0][0] == found[1][0]  # the same numbers on every rank
    assert not found[1][2]
    assert found[0][2].keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[0][2][name], weight, rtol=0, atol=2e-5)
    assert float((weights["norm.weight"] - 1).abs().max()) > 1e-3  # it has moved


def test_the_execution_of_one_process_exchanges_nothing() -> None:
    execution = Execution()
    values = torch.tensor([1.0, 2.0])
    assert execution.ranks.total(values) is values
    assert execution.ranks.largest(values) is values
