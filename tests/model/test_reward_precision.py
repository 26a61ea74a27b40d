"""Reward models whose weights are of half precision: the same ranks, and scores within a bound."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ponder.curation.preference_data import generate_items
from ponder.errors import UsageError
from ponder.model.decoder import DTYPES, Precision
from ponder.model.load import load_model
from ponder.model.parser import split_thinking
from ponder.model.reward_model import Norm, RewardModel, Scored, load_reward_model, save_reward_model
from ponder.store.datasets import PreferencePair

Trained = tuple[Path, list[Scored], Tensor]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A model that learnt to prefer replies to their words in disorder; 100 such pairs that it never saw (reply,
    disorder, reply ..), and their scores in fp32."""
    model = RewardModel.on(load_model("mini"), 0, kind="pairwise", score="reply", template="mini")
    examples: list[Scored] = []
    shuffled = random.Random(0)
    for item in generate_items("pairwise", 0, 700, {}):
        assert isinstance(item, PreferencePair)
        words = (split_thinking(item.chosen).answer or "").split()
        if len(words) < 4:
            continue
        disorder = shuffled.sample(words, len(words))
        examples += [e for text in (words, disorder) if (e := model.example(item.prompt, " ".join(text)))]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    for start in range(0, 640, 16):
        chosen, rejected = model.scores(examples[start : start + 16]).view(-1, 2).unbind(1)
        optimizer.zero_grad()
        (-logsigmoid(chosen - rejected).mean()).backward()
        optimizer.step()
    held_out = examples[640:840]
    scores = model.raw_scores(held_out)
    model.norm = Norm.of(scores)
    folder = tmp_path_factory.mktemp("rm") / "model"
    save_reward_model(folder, model)
    return folder, held_out, torch.tensor(scores)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.0), ("bf16", 0.06), ("fp16", 0.0075)])
def test_scores_of_half_precision_stay_within_a_bound_and_rank_alike(
    precision: Precision, bound: float, trained: Trained
) -> None:
    """`bound` is in standard deviations of the scores; bf16 has three bits less than fp16."""
    folder, examples, exact = trained
    model = load_reward_model(folder, DTYPES[precision])
    scores = torch.tensor(model.raw_scores(examples))
    assert (scores - exact).abs().max() <= bound * exact.std()
    margins, exact_margins = scores[0::2] - scores[1::2], exact[0::2] - exact[1::2]
    clear = exact_margins.abs() > 2 * bound * exact.std()
    assert clear.float().mean() > 0.7
    assert torch.equal(margins[clear] > 0, exact_margins[clear] > 0)
    assert (exact_margins > 0).float().mean() > 0.75  # it has learnt something


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_decoder_is_held_in_half_and_the_head_whole(precision: Precision, trained: Trained) -> None:
    model = load_reward_model(trained[0], DTYPES[precision])
    held = {name: weight.dtype for name, weight in model.named_parameters()}
    assert held.pop("decoder.head.weight") == torch.float32
    assert set(held.values()) == {DTYPES[precision]}
    assert model.scores(trained[1][:2]).dtype == torch.float32


def test_scores_beyond_fp16_are_refused(trained: Trained) -> None:
    model = load_reward_model(trained[0], torch.float16)
    with torch.no_grad():
        model.decoder.embedding.weight.fill_(60_000)
        model.decoder.layers[0].down.weight.fill_(60_000)
    with pytest.raises(UsageError, match=r"^precision: .* not finite; where it is fp16"):
        model.score_replies(["What is 2 + 3?"], ["<think>\n5\n</think>\n\n5"])
