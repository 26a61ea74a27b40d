"""Reward models on several ranks against one process: the same gradients, statistics, scores and weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_pool import RankPool
from test_ranks import SHARDINGS, Recorder, short_of_memory, whole
from torch import Tensor
from torch.nn.functional import logsigmoid

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder, Layer
from ponder.model.reward_model import Scored, pack_scored, put_scalar_head, score_rows
from ponder.recipe import OptimizerSettings
from ponder.training import reward_update
from ponder.training.execution import Ranks
from ponder.training.rank import RankRewardTrainer
from ponder.training.reward_update import RewardExample, RewardStatistics
from ponder.training.sharding import Sharding
from ponder.training.trainer import LocalRewardTrainer, TrainerSettings

BUDGET = 50
"""Tokens: at least two micro-batches on each of two ranks."""


def settings(budget: int = BUDGET, **changes: Any) -> TrainerSettings:
    return TrainerSettings(OptimizerSettings(lr=1e-3, grad_clip=0.5), 8, budget, **changes)


def make_model() -> Decoder:
    """Two layers and a head that is not zero; large weights, so that an error in any of them shows in the scores."""
    decoder = Decoder(DecoderConfig("qwen3", 23, 16, 24, 2, 4, 2, 4, 64, initializer_range=0.3, qk_norm=True))
    put_scalar_head(decoder).initialise(0)
    return decoder


def make_examples(kind: str) -> list[RewardExample]:
    """Pairs, three a prompt of five prompts; or their replies, labelled by turns."""
    generator = torch.Generator().manual_seed(0)

    def ids(least: int, most: int) -> tuple[int, ...]:
        count = int(torch.randint(least, most, (), generator=generator))
        return tuple(torch.randint(23, (count,), generator=generator).tolist())

    prompts = [ids(1, 7) for _ in range(5)]
    pairs = [tuple(Scored(prompt, ids(1, 16)) for _ in range(2)) for prompt in prompts for _ in range(3)]
    if kind == "pairs":
        return [RewardExample(pair) for pair in pairs]
    replies = [reply for pair in pairs for reply in pair]
    return [RewardExample((reply,), number % 3 == 0) for number, reply in enumerate(replies)]


REPLIES = [reply for example in make_examples("pairs") for reply in example.replies]


def make_trainer(rank: int, size: int, sharding: Sharding, of: TrainerSettings) -> RankRewardTrainer:
    model = make_model()
    return RankRewardTrainer(rank, size, model.config, model.state_dict() if rank == 0 else None, of, sharding)


# --- the whole step, written out --------------------------------------------------------------------------------------


def score(model: Decoder, reply: Scored) -> Tensor:
    """Of one reply alone: nothing is packed."""
    return (model.logits(torch.tensor([[*reply.prompt_ids, *reply.reply_ids]])))[0, -1, 0]


def mean_loss(model: Decoder, examples: list[RewardExample]) -> tuple[Tensor, float]:
    """R1's losses as they are defined, and the share of examples that are right."""
    losses, right = [], []
    for example in examples:
        first, *others = (score(model, reply) for reply in example.replies)
        margin = first - others[0] if others else first if example.label else -first
        losses.append(-logsigmoid(margin))
        right.append(bool(margin > 0))
    return torch.stack(losses).mean(), sum(right) / len(right)


def trained_at_once(kind: str) -> tuple[list[tuple[float, float, float]], dict[str, Tensor], dict[str, Tensor]]:
    """Two steps in this process: (loss, accuracy, norm) of each, gradients of the first, weights."""
    model = make_model()
    optimizer = LocalRewardTrainer(model, settings()).optimizer
    told, first = [], {}
    for _ in range(2):
        loss, accuracy = mean_loss(model, make_examples(kind))
        loss.backward()
        gradients = {name: whole(p.grad) for name, p in model.named_parameters()}
        first = first or gradients
        told.append(
            (float(loss.detach()), accuracy, float(torch.cat([g.flatten() for g in gradients.values()]).norm()))
        )
        optimizer.step(told[-1][0])
    return told, first, model.state_dict()


Outcome = tuple[list[RewardStatistics], dict[str, Tensor], dict[str, Tensor], list[float]]


def trained_on_ranks(rank: int, size: int, sharding: Sharding, of: TrainerSettings, kind: str) -> Outcome:
    trainer = make_trainer(rank, size, sharding, of)
    recorder = Recorder(trainer.model, trainer.optimizer)
    updates = [trainer.reward_update(make_examples(kind))]
    first = recorder.gradients
    updates.append(trainer.reward_update(make_examples(kind)))
    return updates, first, dict(trainer.weights()), trainer.raw_scores(REPLIES)


@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("kind", ["pairs", "replies"])
def test_two_ranks_by_two_micro_batches_are_one_batch(ranks: RankPool, sharding: Sharding, kind: str) -> None:
    passes = [len(list(Ranks(rank, 2).share(make_examples(kind), BUDGET, reward_update._pack))) for rank in (0, 1)]
    assert min(passes) >= 2
    told, gradients, weights = trained_at_once(kind)
    found = ranks.run(2, trained_on_ranks, sharding, settings(), kind)
    model = make_model()
    model.load_state_dict(weights)
    with torch.no_grad():
        scores = [float(score(model, reply)) for reply in REPLIES]
    largest = max(float(g.abs().max()) for g in gradients.values())
    for updates, theirs, _, raw in found:
        assert theirs.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert float((theirs[name] - gradient).abs().max()) < 1e-5 * largest, name
        for one, (loss, accuracy, norm) in zip(updates, told, strict=True):
            assert one.loss == pytest.approx(loss, rel=1e-5)
            assert one.accuracy == accuracy
            assert one.grad_norm == pytest.approx(norm, rel=1e-4)
        assert raw == pytest.approx(scores, abs=1e-3)
    assert found[0][0] == found[1][0]
    assert found[0][3] == found[1][3]
    assert not found[1][2]
    assert found[0][2].keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(found[0][2][name], weight, rtol=0, atol=3e-5)
    assert float((weights["head.weight"] - make_model().head_weight.detach()).abs().max()) > 1e-3  # it has moved


def test_a_pair_stays_whole_and_its_head_reads_the_last_tokens() -> None:
    pairs = make_examples("pairs")
    for rank in range(3):
        for batch, _ in Ranks(rank, 3).share(pairs, 30, reward_update._pack):
            replies = [reply for member in batch.members for reply in pairs[member].replies]
            assert batch.tokens[batch.predictors].tolist() == [reply.reply_ids[-1] for reply in replies]
            assert batch.targets.tolist() == [1.0, 0.0] * len(batch.members)
            assert batch.sequence_ids.tolist() == [n for n in range(len(batch.members)) for _ in range(2)]
            assert len(batch.tokens) <= 30 or len(batch.members) == 1
    with pytest.raises(ValueError, match="one prompt"):
        RewardExample((Scored((1,), (2,)), Scored((3,), (2,))))


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_one_rank_does_what_one_process_does_bit_for_bit(ranks: RankPool, sharding: Sharding) -> None:
    local = LocalRewardTrainer(make_model(), settings())
    updates = [local.reward_update(make_examples("pairs")) for _ in range(2)]
    ((found, _, weights, scores),) = ranks.run(1, trained_on_ranks, sharding, settings(), "pairs")
    assert found == updates
    assert scores == local.raw_scores(REPLIES)
    assert all(torch.equal(weights[name], weight) for name, weight in local.weights().items())


# --- frozen layers ----------------------------------------------------------------------------------------------------


def trained_frozen(rank: int, size: int, sharding: Sharding) -> tuple[Outcome, set[str], Counter[int]]:
    """And how often each layer is computed in a step in which the backward pass computes them again."""
    outcome = trained_on_ranks(rank, size, sharding, settings(frozen_layers=1), "pairs")
    trainer = make_trainer(rank, size, sharding, settings(10_000, frozen_layers=1, activation_checkpointing=True))
    plain, calls = Layer._compute, Counter[int]()

    def counted(self: Layer, *arguments: Any) -> Tensor:
        calls[self.index] += 1
        return plain(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Layer, "_compute", counted)
        trainer.reward_update(make_examples("pairs"))
    return outcome, set(trainer.optimizer.moments()), calls


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_frozen_layers_keep_their_weights_and_cost_no_backward_pass(ranks: RankPool, sharding: Sharding) -> None:
    _, gradients, _ = trained_at_once("pairs")
    largest = max(float(g.abs().max()) for g in gradients.values())
    before = make_model().state_dict()
    frozen = {name for name in before if name.startswith(("embedding.", "layers.0."))}
    found = ranks.run(2, trained_frozen, sharding)
    weights = found[0][0][2]
    assert {name for name, weight in weights.items() if torch.equal(weight, before[name])} == frozen
    for (_, theirs, _, _), moved, calls in found:
        assert moved == theirs.keys() == before.keys() - frozen
        assert all(float((theirs[name] - gradients[name]).abs().max()) < 1e-5 * largest for name in theirs)
        assert calls == {0: 1, 1: 2}


# --- checkpoints ------------------------------------------------------------------------------------------------------


def everything(trainer: RankRewardTrainer) -> dict[str, Any]:
    found: dict[str, Any] = {name: whole(p.detach()) for name, p in trainer.model.named_parameters()}
    for name, state in trainer.optimizer.moments().items():
        found |= {f"{name} {key}": whole(value) for key, value in state.items()}
    return found | {"lr": trainer.lr}


def train_and_save(rank: int, size: int, sharding: Sharding, of: TrainerSettings, folder: Path) -> Any:
    trainer = make_trainer(rank, size, sharding, of)
    trainer.reward_update(make_examples("pairs"))
    trainer.raw_scores(REPLIES)  # leaves whole weights behind, which must not be what is saved
    trainer.reward_update(make_examples("pairs"))
    state, found = trainer.save_state(folder, "trainer-2"), everything(trainer)
    return state, found, trainer.reward_update(make_examples("pairs")), trainer.raw_scores(REPLIES)


def load_and_train(rank: int, size: int, sharding: Sharding, of: TrainerSettings, folder: Path, state: Any) -> Any:
    trainer = make_trainer(rank, size, sharding, of)
    trainer.load_state(folder, state)
    return everything(trainer), trainer.reward_update(make_examples("pairs")), trainer.raw_scores(REPLIES)


@pytest.mark.parametrize(
    ("before", "after", "frozen"),
    [((2, "fsdp2"), (2, "fsdp2"), 0), ((2, "fsdp2"), (3, "fsdp2"), 1), ((3, "fsdp2"), (1, "ddp"), 0)],
)
def test_another_number_of_ranks_goes_on_from_the_same(
    ranks: RankPool, tmp_path: Path, before: tuple[int, Sharding], after: tuple[int, Sharding], frozen: int
) -> None:
    of = settings(frozen_layers=frozen)
    state, expected, update, scores = ranks.run(before[0], train_and_save, before[1], of, tmp_path)[0]
    assert len(state["parts"]) == before[0]
    for found, went_on, told in ranks.run(after[0], load_and_train, after[1], of, tmp_path, state):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value, name
        if before == after:
            assert (went_on, told) == (update, scores)
        else:
            assert went_on.loss == pytest.approx(update.loss, rel=1e-5)
            assert told == pytest.approx(scores, abs=2e-3)


# --- other ways to compute --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_computes_about_the_same_and_scores_in_fp32(ranks: RankPool, precision: Any) -> None:
    local = LocalRewardTrainer(make_model(), settings(precision=precision))
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    exact = LocalRewardTrainer(make_model(), settings()).raw_scores(REPLIES)
    for scores in (local.raw_scores(REPLIES), ranks.run(2, scored_in, "fsdp2", precision)[1]):
        gap = (torch.tensor(scores) - torch.tensor(exact)).abs().max()
        assert 1e-4 < gap < 0.1 * float(torch.tensor(exact).std())
        assert not torch.equal(torch.tensor(scores).to(half).float(), torch.tensor(scores))
    ends = [[local.reward_update(make_examples("pairs")) for _ in range(2)]]
    assert {p.dtype for p in local.model.parameters()} == {torch.float32}
    ends += [ranks.run(2, trained_on_ranks, s, settings(precision=precision), "pairs")[0][0] for s in SHARDINGS]
    plain = LocalRewardTrainer(make_model(), settings()).reward_update(make_examples("pairs"))
    assert plain.grad_norm is not None
    for first, second in ends:
        assert first.loss == pytest.approx(plain.loss, rel=0.02)
        assert first.loss != plain.loss
        assert first.grad_norm == pytest.approx(plain.grad_norm, rel=0.05)
        assert second.loss < first.loss


def scored_in(rank: int, size: int, sharding: Sharding, precision: Any) -> list[float]:
    return make_trainer(rank, size, sharding, settings(precision=precision)).raw_scores(REPLIES)


def trained_short_of_memory(rank: int, size: int, sharding: Sharding, where: str) -> Any:
    """Rank 1 alone runs out of memory, for micro-batches of more than 45 rows, or 4 replies."""
    trainer = make_trainer(rank, size, sharding, settings(100))
    context, layer, _ = short_of_memory(where, 45)
    plain = score_rows

    def head(model: Decoder, rows: Tensor) -> Tensor:
        if len(rows) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return plain(model, rows)

    with context as patch:
        if rank == 1 and where != "nowhere":
            patch.setattr(*((reward_update, "score_rows", head) if where == "head" else (Layer, "_compute", layer)))
        if where != "backward":
            assert len(trainer.raw_scores(REPLIES)) == len(REPLIES)
            trainer.execution.limit = None
        return trainer.reward_update(make_examples("pairs")), trainer.execution.limit, trainer.drain_notes()


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_all_ranks_halve_when_memory_runs_out_on_one(ranks: RankPool, sharding: Sharding) -> None:
    ((expected, limit, notes), _) = ranks.run(2, trained_short_of_memory, sharding, "nowhere")
    assert (limit, notes) == (None, [])
    for where in ("forward", "backward", "head"):
        for update, limit, notes in ranks.run(2, trained_short_of_memory, sharding, where):
            assert limit in (50, 25)
            assert notes[0].startswith("out of memory with micro-batches of 100 tokens: the step is repeated with 50")
            assert update.loss == pytest.approx(expected.loss, abs=1e-5)
            assert update.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)


def test_packed_rows_are_those_of_single_replies() -> None:
    tokens, _, ends = pack_scored([Scored((5, 6), (7,)), Scored((5, 6), (8, 1)), Scored((9,), (1,))])
    assert tokens.tolist() == [5, 6, 7, 8, 1, 9, 1]
    assert ends.tolist() == [2, 4, 6]
