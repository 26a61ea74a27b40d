"""Several ranks against one process: the same gradients, statistics and weights, whatever the sharding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rank_pool import RankPool
from test_update_step import LENGTHS, MAX_TOKENS, TEMPERATURE, make_decoder, make_trajectories
from torch import Tensor
from torch.distributed.tensor import DTensor

from ponder.errors import UsageError
from ponder.model.decoder import Layer
from ponder.recipe import AlgorithmSettings, LoraSettings, OptimizerSettings
from ponder.training import update
from ponder.training.execution import Execution
from ponder.training.logprobs import token_logprobs
from ponder.training.optimizer import Optimizer
from ponder.training.rank import RankTrainer
from ponder.training.sharding import Sharding
from ponder.training.trainer import LocalTrainer, TrainerSettings
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
    recorder = Recorder(trainer.model, trainer.optimizer)
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


# --- out of memory ----------------------------------------------------------------------------------------------------


class FailsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")


def short_of_memory(where: str, limit: int) -> Any:
    """Something of the model that has no memory for more than `limit` rows."""
    plain_layer, plain_head = Layer._compute, token_logprobs

    def layer(self: Layer, x: Tensor, *rest: Any) -> Tensor:
        # in the last layer, so that the ranks have exchanged something already
        if self.index == 1 and x.shape[0] > limit:
            if where == "forward":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            if where == "backward" and torch.is_grad_enabled():
                x = FailsBackward.apply(x)
        return plain_layer(self, x, *rest)

    def head(hidden: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        if hidden.shape[0] > limit and where == "head":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if hidden.shape[0] > limit and where == "head backward" and hidden.requires_grad:
            hidden = FailsBackward.apply(hidden)
        return plain_head(hidden, *rest)

    return pytest.MonkeyPatch.context(), layer, head


def trained_short_of_memory(rank: int, size: int, sharding: Sharding, where: str, of: TrainerSettings) -> Any:
    """Rank 1 alone runs out of memory, for micro-batches of more than 45 rows."""
    trainer = make_trainer(rank, size, sharding, of, reference=True, tied=False)
    trajectories = make_trajectories(make_decoder(double=False, tied=False))
    context, layer, head = short_of_memory(where, 45)
    with context as patch:
        if rank == 1:
            patch.setattr(Layer, "_compute", layer)
            patch.setattr(update, "token_logprobs", head)
        if where == "forward":
            logprobs = trainer.logprobs(trajectories, "reference")
            assert [len(x) for x in logprobs] == [n for group in LENGTHS for n in group]
            assert all(float(x.max()) < 0 for x in logprobs)
        updates = trainer.policy_updates([trajectories, trajectories])
    return updates, dict(trainer.weights()), trainer.execution.limit, trainer.drain_notes(), trainer.drain_notes()


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("where", ["forward", "backward", "head", "head backward"])
def test_all_ranks_halve_when_memory_runs_out_on_one(ranks: RankPool, sharding: Sharding, where: str) -> None:
    of = settings({"kl": {"beta": 0.2}}, budget=100)
    plain = ranks.run(2, trained_short_of_memory, sharding, "nowhere", of)
    found = ranks.run(2, trained_short_of_memory, sharding, where, of)
    assert plain[0][2] is None
    assert not plain[0][3]
    for updates, _, limit, notes, later in found:
        assert limit in (50, 25)
        assert notes[0].startswith("out of memory with micro-batches of 100 tokens: the step is repeated with 50")
        assert not later
        assert updates == found[0][0]
        for one, expected in zip(updates, plain[0][0], strict=True):
            assert one.loss == pytest.approx(expected.loss, abs=1e-5)
            assert one.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    weights, moved = (torch.cat([w.flatten() for w in x[0][1].values()]) for x in (plain, found))
    assert float((weights - moved).norm() / weights.norm()) < 1e-4


# --- other ways to compute --------------------------------------------------------------------------------------------


def trained_in(rank: int, size: int, sharding: Sharding, of: TrainerSettings) -> Any:
    trainer = make_trainer(rank, size, sharding, of)
    trajectories = make_trajectories(make_decoder(double=False), gap=0.0)
    updates = trainer.policy_updates([trajectories, trajectories])
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    return updates, dict(trainer.weights())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_the_same_on_ranks(ranks: RankPool, precision: Any) -> None:
    plain, *halves = (
        ranks.run(2, trained_in, sharding, settings(precision=kind))[0]
        for sharding, kind in (("ddp", "fp32"), ("ddp", precision), ("fsdp2", precision))
    )
    for updates, _ in halves:
        assert all(one.finite for one in updates)
        assert 1e-4 < updates[0].logprob_gap < 0.2
        assert updates[0].grad_norm == pytest.approx(plain[0][0].grad_norm, rel=0.05)
    assert halves[0][0][0].grad_norm == pytest.approx(halves[1][0][0].grad_norm, rel=2e-3)


def overflowed(rank: int, size: int, sharding: Sharding, of: TrainerSettings) -> Any:
    trainer = make_trainer(rank, size, sharding, of)
    trainer.optimizer.execution.scale.value = 2.0**40
    trajectories = make_trajectories(make_decoder(double=False))
    updates = trainer.policy_updates([trajectories] * 3)
    return [(one.grad_norm, one.overflow, one.finite) for one in updates], trainer.optimizer.execution.scale.value


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_ranks_lower_the_loss_scale_together(ranks: RankPool, sharding: Sharding) -> None:
    found = ranks.run(2, overflowed, sharding, settings(precision="fp16"))
    assert found[0] == found[1] == ([(None, True, True)] * 3, 2.0**37)


def test_activations_computed_again_change_nothing_on_ranks(ranks: RankPool) -> None:
    ends = [
        ranks.run(2, trained_in, "fsdp2", settings(activation_checkpointing=enabled))[0][1] for enabled in (False, True)
    ]
    assert all(torch.equal(ends[1][name], weight) for name, weight in ends[0].items())


def trained_adapters(rank: int, size: int, sharding: Sharding, of: TrainerSettings) -> Any:
    trainer = make_trainer(rank, size, sharding, of, reference=True)
    trajectories = make_trajectories(make_decoder(double=False))
    trainer.policy_updates([trajectories, trajectories])
    trainer.refresh_reference()
    return (
        trainer.logprobs(trajectories, "policy"),
        trainer.logprobs(trajectories, "reference"),
        dict(trainer.weights()),
    )


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_adapters_on_ranks_are_those_of_one_process(ranks: RankPool, sharding: Sharding) -> None:
    of = settings(lora=LoraSettings(rank=2), optimizer=OptimizerSettings(lr=1e-2))
    model = make_decoder(double=False)
    base, trajectories = make_decoder(double=False).state_dict(), make_trajectories(model)
    local = LocalTrainer(model, of)
    local.policy_updates([trajectories, trajectories])
    expected = local.weights()
    policy, reference, weights = ranks.run(2, trained_adapters, sharding, of)[0]
    assert weights.keys() == expected.keys() == base.keys()
    assert float((expected["layers.0.qkv.weight"] - base["layers.0.qkv.weight"]).abs().max()) > 1e-3
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-3)
    for mine, theirs in zip(policy, reference, strict=True):  # the reference took the adapters over, merged
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def refused(rank: int, size: int, of: TrainerSettings) -> None:
    with pytest.raises(UsageError, match=r"lora\.quantise"):
        make_trainer(rank, size, "fsdp2", of)


def test_quantised_weights_belong_to_one_process() -> None:
    refused(0, 1, settings(lora=LoraSettings(quantise="nf4")))
