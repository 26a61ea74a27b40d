"""One step of a reward model: the loss of the whole, whatever the micro-batches, in the direction of the labels."""

import math

import pytest
import torch

from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.folder import LoadedModel
from ponder.model.reward_model import RewardModel, Scored
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import OptimizerSettings
from ponder.training.optimizer import Optimizer
from ponder.training.reward_update import RewardExample, RewardStatistics, reward_step

PAIRS = [
    RewardExample((Scored((5, 6), (7, 8, 1)), Scored((5, 6), (9, 1)))),
    RewardExample((Scored((10,), (11, 1)), Scored((10,), (12, 13, 14, 1)))),
    RewardExample((Scored((5, 6), (15, 1)), Scored((5, 6), (16, 1)))),
]
REPLIES = [RewardExample((pair.replies[i],), label) for pair in PAIRS for i, label in ((0, True), (1, False))]


def make(scale: float = 1.0) -> RewardModel:
    tokenizer = Tokenizer.train(["words"], 470)
    config = DecoderConfig("llama", 470, 32, 48, 2, 4, 2, 8, 64, eos_ids=(1,), pad_id=0, initializer_range=0.3)
    decoder = Decoder(config)
    decoder.initialise(1)
    how = {"kind": "pairwise", "score": "answer", "template": "{prompt}"}
    model = RewardModel.on(LoadedModel(decoder, tokenizer, config, {}), 2, **how)
    model.decoder.head_weight.data *= scale
    return model


def step(model: RewardModel, examples: list[RewardExample], budget: int = 1000, lr: float = 1e-2) -> RewardStatistics:
    optimizer = Optimizer(model.decoder, OptimizerSettings(lr=lr, weight_decay=0.0, warmup_steps=0), 10)
    return reward_step(model.decoder, optimizer, examples, budget)


@pytest.mark.parametrize("examples", [PAIRS, REPLIES])
def test_micro_batches_do_not_change_the_step(examples: list[RewardExample]) -> None:
    results = []
    for budget in (1, 12, 1000):
        model = make()
        results.append((step(model, examples, budget), model.raw_scores([e.replies[0] for e in examples])))
    first, scores = results[-1]
    for other, other_scores in results:
        assert other.loss == pytest.approx(first.loss, abs=1e-5)
        assert other.accuracy == first.accuracy
        assert other.grad_norm == pytest.approx(first.grad_norm, rel=1e-3)
        # Adam's first step has the size of the learning rate whatever the gradient: roundings of tiny ones show
        assert other_scores == pytest.approx(scores, abs=0.1)


def test_a_new_head_knows_nothing_and_learns_the_order() -> None:
    model = make(scale=0.0)
    first = step(model, PAIRS)
    assert first.loss == pytest.approx(math.log(2))
    assert first.accuracy == 0.0  # equal scores are no right order
    after = step(model, PAIRS)
    assert after.accuracy == 1.0
    assert after.loss < first.loss


def test_labels_pull_scores_to_their_side() -> None:
    model = make(scale=0.0)
    optimizer = Optimizer(model.decoder, OptimizerSettings(lr=1e-2, weight_decay=0.0, warmup_steps=0), 40)
    first = reward_step(model.decoder, optimizer, REPLIES, 1000)
    assert first.loss == pytest.approx(math.log(2))
    for _ in range(20):
        last = reward_step(model.decoder, optimizer, REPLIES, 1000)
    assert last.accuracy == 1.0
    scores = model.raw_scores([e.replies[0] for e in REPLIES])
    assert all((score > 0) == e.label for score, e in zip(scores, REPLIES, strict=True))


def test_muon_takes_the_layers_matrices() -> None:
    model = make()
    settings = OptimizerSettings(name="muon", lr=1e-3, muon_lr=1e-2, warmup_steps=0)
    before = model.decoder.layers[0].qkv.weight.detach().clone()
    optimizer = Optimizer(model.decoder, settings, 10)
    reward_step(model.decoder, optimizer, PAIRS, 1000)
    assert len(optimizer.state_dict()["parts"][0]["state"]) == 2 * 4  # qkv, out, gate_up and down of each layer
    assert not torch.equal(before, model.decoder.layers[0].qkv.weight)


def test_a_loss_that_is_not_finite_moves_nothing() -> None:
    model = make()
    model.decoder.head_weight.data[0, 0] = math.inf
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    assert step(model, PAIRS).grad_norm is None
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
