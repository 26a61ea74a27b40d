"""How updates are carried out: dealt over ranks, within memory, in half precision, with activations computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_update_step import flat_weights, make_decoder, make_trajectories, step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ponder.errors import UsageError
from ponder.model.decoder import Layer, PackedAttention, Packing, rotation_table
from ponder.model.fallback import FallbackDecoder
from ponder.model.reward_model import Scored, put_scalar_head
from ponder.recipe import AlgorithmSettings, OptimizerSettings
from ponder.training.execution import Execution, LossScale, Ranks, is_out_of_memory
from ponder.training.optimizer import Optimizer
from ponder.training.packing import Example, deal
from ponder.training.reward_update import RewardExample, reward_scores, reward_step
from ponder.training.update import Measured, batch_logprobs, supervised_step

# --- dealing -------------------------------------------------------------------------------------------------------


def rows(examples: list[Example], places: list[int]) -> int:
    """Rows that the places cost, neighbours with one prompt sharing it."""
    total, prompt = 0, None
    for place in places:
        shared = examples[place].prompt_ids == prompt
        prompt = examples[place].prompt_ids
        total += len(examples[place].reply_ids) + (0 if shared else len(prompt))
    return total


GROUPS = st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(1, 60), min_size=1, max_size=8)), min_size=1)


@given(groups=GROUPS, ranks=st.integers(1, 5), budget=st.integers(1, 200))
def test_every_example_is_dealt_once_and_evenly(groups: list[tuple[int, list[int]]], ranks: int, budget: int) -> None:
    examples = [
        Example((number,) * prompt, (1,) * reply)
        for number, (prompt, replies) in enumerate(groups)
        for reply in replies
    ]
    dealt = deal(examples, budget, ranks)
    assert sorted(place for places in dealt for place in places) == list(range(len(examples)))
    assert all(places == sorted(places) for places in dealt)
    assert dealt == deal(examples, budget, ranks)
    # greedy: nobody is ahead of the one with least by more than one piece, which is an example or a bounded group
    longest = max(len(e.prompt_ids) + len(e.reply_ids) for e in examples)
    total = sum(len(e.prompt_ids) + len(e.reply_ids) for e in examples)
    load = [rows(examples, places) for places in dealt]
    most = max(longest, min(budget, -(-total // (4 * ranks))))
    assert ranks == 1 or max(load) - min(load) <= most + 9 * len(examples)  # a prompt is shared again where pieces meet


def test_groups_stay_whole_where_there_are_many_and_are_cut_where_there_are_few() -> None:
    many = [Example((group, 0), (1,) * 10) for group in range(16) for _ in range(4)]
    dealt = deal(many, 1000, 2)
    assert [len(places) for places in dealt] == [32, 32]
    assert all({p // 4 for p in dealt[0]}.isdisjoint({p // 4 for p in dealt[1]}) for _ in dealt)
    few = [Example((0, 0), (1,) * 10) for _ in range(16)]
    assert [len(places) for places in deal(few, 1000, 4)] == [4, 4, 4, 4]
    assert deal(few, 1000, 1) == [list(range(16))]


def test_in_lockstep_every_rank_makes_as_many_passes() -> None:
    examples = [Example((1,), (2,) * length) for length in (50, 3, 20, 20, 20, 20)]
    shares = [list(Ranks(rank, 3, lockstep=True).share(examples, 25)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    counting = [batch for share in shares for batch, counts in share if counts]
    assert sorted(m for batch in counting for m in batch.members) == list(range(6))
    empty = [batch.members for share in shares for batch, counts in share if not counts]
    assert empty == [(1,)] * len(empty)
    assert empty
    assert [len(list(Ranks(rank, 3).share(examples, 25))) for rank in range(3)] != [len(s) for s in shares]


# --- memory --------------------------------------------------------------------------------------------------------


def run_out_above(limit: int, message: str = "") -> Callable[..., Tensor]:
    """A layer that has no memory for more than `limit` rows."""
    plain = Layer._compute

    def compute(self: Layer, x: Tensor, *rest: Any) -> Tensor:
        if x.shape[0] > limit:
            raise RuntimeError(message) if message else torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, x, *rest)

    return compute


@pytest.mark.parametrize("message", ["", "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."])
def test_a_step_that_ran_out_of_memory_is_repeated_with_half(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    ends, updates = [], []
    trajectories = make_trajectories(make_decoder(double=False))
    for limit in (10_000, 45):
        monkeypatch.setattr(Layer, "_compute", run_out_above(limit, message))
        model = make_decoder(double=False)
        optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 3)
        updates.append([step(model, optimizer, trajectories, AlgorithmSettings(), budget=200) for _ in range(2)])
        ends.append(flat_weights(model))
        monkeypatch.undo()
    assert float((ends[0] - ends[1]).abs().max()) < 1e-6
    for plain, repeated in zip(*updates, strict=True):
        assert repeated.loss == pytest.approx(plain.loss, abs=1e-6)
        assert repeated.trained_tokens == plain.trained_tokens
    # 200 tokens do not fit, neither do 100; the second step starts with what did
    assert optimizer.execution.limit == 50
    assert [note.split(":")[0] for note in optimizer.execution.notes] == [
        "out of memory with micro-batches of 200 tokens",
        "out of memory with micro-batches of 100 tokens",
    ]
    assert "tokens_per_micro_batch" in optimizer.execution.notes[1]


def test_a_single_sequence_that_does_not_fit_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_decoder(double=False)
    examples = [t.example for t in make_trajectories(model)]
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 3)
    monkeypatch.setattr(Layer, "_compute", run_out_above(20))
    with pytest.raises(UsageError, match=r"one sequence at a time, which a smaller tokens_per_micro_batch"):
        supervised_step(model, optimizer, examples, 200)
    assert [note[:46] for note in optimizer.execution.notes] == [
        f"out of memory with micro-batches of {tokens} tokens" for tokens in (200, 100)
    ]


def test_another_error_is_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_decoder(double=False)
    trajectories = make_trajectories(model)
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 3)
    monkeypatch.setattr(Layer, "_compute", run_out_above(45, "shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        step(model, optimizer, trajectories, AlgorithmSettings())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"))
    assert not is_out_of_memory(ValueError("no"))


# --- half precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_about_the_same_and_keeps_weights_whole(precision: Any) -> None:
    ends, gaps = [], []
    for half in ("fp32", precision):
        model = make_decoder(double=False)
        trajectories = make_trajectories(model, gap=0.0)
        model.compute_in(half)
        optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 3, Execution(fp16=half == "fp16"))
        results = [
            step(model, optimizer, trajectories, AlgorithmSettings(entropy_bonus=0.01), budget=60) for _ in range(3)
        ]
        assert all(result.finite for result in results)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert {x.dtype for state in optimizer.moments().values() for x in state.values()} == {torch.float32}
        gaps.append(results[0].logprob_gap)
        ends.append(flat_weights(model))
    assert gaps[0] < 1e-5
    assert 1e-4 < gaps[1] < 0.2  # it did compute otherwise
    moved = ends[0] - flat_weights(make_decoder(double=False))
    assert float((ends[1] - ends[0]).norm() / moved.norm()) < 0.2


def test_log_probabilities_are_fp32_in_half_precision() -> None:
    model = make_decoder(double=False)
    model.compute_in("bf16")
    example = make_trajectories(make_decoder(double=False))[0].example
    from ponder.training.packing import pack

    logprobs, entropies = batch_logprobs(model, pack([example], [0]), with_entropy=True)
    assert logprobs.dtype == entropies.dtype == torch.float32
    logprobs.sum().backward()
    assert model.embedding.weight.grad is not None
    assert model.embedding.weight.grad.dtype == torch.float32


def test_the_loss_scale_halves_at_an_overflow_and_grows_again() -> None:
    scale = LossScale(fp16=True)
    first = scale.value
    assert first == 2.0**16
    scale.observe(loss=True, gradients=False)
    assert (scale.value, scale.lowered) == (first / 2, True)
    for _ in range(999):
        scale.observe(loss=True, gradients=True)
    assert (scale.value, scale.lowered) == (first / 2, False)
    scale.observe(loss=True, gradients=True)
    assert scale.value == first
    unscaled = LossScale(fp16=False)
    unscaled.observe(loss=True, gradients=False)
    assert (unscaled.value, unscaled.lowered) == (1, False)


def test_the_loss_scale_is_no_excuse_at_its_floor_nor_for_a_loss_that_is_not_finite() -> None:
    scale = LossScale(fp16=True)
    excused = 0
    while True:
        scale.observe(loss=True, gradients=False)
        if not scale.lowered:
            break
        excused += 1
    assert (scale.value, excused) == (1, 16)
    scale.value = 8.0
    scale.observe(loss=False, gradients=False)
    assert (scale.value, scale.lowered) == (8, False)


def test_an_overflow_costs_a_step_and_nothing_else() -> None:
    model = make_decoder(double=False)
    trajectories = make_trajectories(model)
    model.compute_in("fp16")
    optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 30, Execution(fp16=True))
    optimizer.execution.scale.value = 2.0**32
    before = flat_weights(model)
    skipped = step(model, optimizer, trajectories, AlgorithmSettings())
    assert (skipped.grad_norm, skipped.overflow, skipped.finite) == (None, True, True)
    assert torch.equal(flat_weights(model), before)
    assert optimizer.execution.scale.value == 2.0**31
    assert not optimizer.moments()
    for _ in range(25):
        result = step(model, optimizer, trajectories, AlgorithmSettings())
        if not result.overflow:
            break
    plain = make_decoder(double=False)
    expected = step(plain, Optimizer(plain, OptimizerSettings(lr=1e-3), 30), trajectories, AlgorithmSettings())
    assert result.grad_norm == pytest.approx(expected.grad_norm, rel=0.02)  # the scale is taken out again
    state = optimizer.state_dict()
    other = Optimizer(make_decoder(double=False), OptimizerSettings(lr=1e-3), 30, Execution(fp16=True))
    other.load_state_dict(state)
    assert other.execution.scale.value == optimizer.execution.scale.value


# --- activation checkpointing --------------------------------------------------------------------------------------


def test_activations_computed_again_give_the_same_weights_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    plain = Layer._compute

    def counted(self: Layer, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return plain(self, *arguments)

    monkeypatch.setattr(Layer, "_compute", counted)
    ends, counts = [], []
    for enabled in (False, True):
        model = make_decoder(double=False)
        model.checkpoint_activations(enabled)
        optimizer = Optimizer(model, OptimizerSettings(lr=1e-3), 3)
        trajectories = make_trajectories(model)
        calls = 0
        for _ in range(2):
            step(model, optimizer, trajectories, AlgorithmSettings(), budget=60)
        counts.append(calls)
        ends.append(flat_weights(model))
    assert torch.equal(ends[0], ends[1])
    assert counts[1] == 2 * counts[0]


def test_the_fallback_refuses_what_it_cannot_do() -> None:
    model = FallbackDecoder.__new__(FallbackDecoder)
    torch.nn.Module.__init__(model)
    with pytest.raises(UsageError, match="activation_checkpointing"):
        model.checkpoint_activations(True)


# --- devices -------------------------------------------------------------------------------------------------------


class OneDevice(TorchDispatchMode):
    """Raises where an operation mixes devices, as a GPU would; numbers on the CPU, copies and indices may."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim]
        free = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if not free and len({x.device for x in tensors}) > 1:
            raise RuntimeError(f"{func} mixes devices")
        return func(*args, **(kwargs or {}))


def test_an_update_stays_on_the_models_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model on the device `meta`, which is not the CPU and computes nothing, forward and backward.

    A step asks for numbers (is the loss finite?), which are not to be had there: they are taken for zeros.
    """
    plain_list, plain_float, plain_cpu = Tensor.tolist, Tensor.__float__, Tensor.cpu
    monkeypatch.setattr(Tensor, "tolist", lambda x: [0.0] * x.numel() if x.is_meta else plain_list(x))
    monkeypatch.setattr(Tensor, "__float__", lambda x: 0.0 if x.is_meta else plain_float(x))
    monkeypatch.setattr(Tensor, "cpu", lambda x: torch.zeros(x.shape) if x.is_meta else plain_cpu(x))
    trajectories = make_trajectories(make_decoder(double=False))
    model, reference = (make_decoder(double=False).to("meta") for _ in range(2))
    model.checkpoint_activations(True)
    optimizer = Optimizer(model, OptimizerSettings(), 3)
    devices: list[torch.device | None] = []
    monkeypatch.setattr(optimizer, "step", lambda loss: devices.extend(p.grad.device for p in optimizer.parameters))
    settings = AlgorithmSettings.model_validate(
        {"kl": {"beta": 0.1}, "entropy_bonus": 0.1, "importance": {"mode": "token_truncate"}}
    )
    with OneDevice():
        step(model, optimizer, trajectories, settings, 60, reference)
        supervised_step(model, optimizer, [t.example for t in trajectories], 60)
        put_scalar_head(model).to("meta")
        replies = [Scored(t.example.prompt_ids, t.example.reply_ids) for t in trajectories]
        reward_step(model, optimizer, [RewardExample((reply,)) for reply in replies], 60)
        assert len(reward_scores(model, optimizer.execution, replies, 60)) == len(replies)
    assert devices == [torch.device("meta")] * 3 * len(optimizer.parameters)
    with OneDevice(), pytest.raises(RuntimeError, match="mixes devices"):  # the check itself
        packing = Packing.of_lengths([3])
        model.hidden(torch.tensor([1, 2, 3]), packing.positions, PackedAttention(packing))


def test_nothing_is_measured_as_zeros() -> None:
    assert [float(x) for x in Measured.nothing(torch.device("cpu"))] == [0.0] * len(Measured._fields)
    assert rotation_table(make_decoder(double=False).config).device.type == "cpu"
