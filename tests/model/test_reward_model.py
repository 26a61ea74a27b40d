"""A scalar head on a decoder: equal to transformers' own, however packed; and what of a reply is scored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import BrokenInputError, UsageError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.fallback import FallbackDecoder
from ponder.model.folder import LoadedModel, load_folder, save_folder
from ponder.model.reward_model import (
    Norm,
    RewardModel,
    Scored,
    load_reward_model,
    micro_batches,
    save_reward_model,
)
from ponder.model.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": 480,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "pad_token_id": 0,
    # large weights: an error in any of them must show in the scores
    "initializer_range": 0.3,
}
WORDS = "User: some words Assistant: some more words, and others"

Make = Callable[..., RewardModel]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS] * 3, 470)


@pytest.fixture
def make(tokenizer: Tokenizer) -> Make:
    def build(shape: dict[str, Any] | None = None, **how: Any) -> RewardModel:
        config = DecoderConfig.from_hf({**SHAPE, "model_type": "llama", "tie_word_embeddings": True, **(shape or {})})
        decoder = Decoder(config)
        decoder.initialise(1)
        settings = {"kind": "pairwise", "score": "answer", "template": "User: {prompt}\nAssistant:", **how}
        return RewardModel.on(LoadedModel(decoder, tokenizer, config, {}), 2, **settings)

    return build


def ids(example: Scored) -> torch.Tensor:
    return torch.tensor([[*example.prompt_ids, *example.reply_ids]])


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_gives_the_same_scores(family: str, tied: bool, make: Make, tmp_path: Path) -> None:
    model = make({"model_type": family, "tie_word_embeddings": tied, "head_dim": 8})
    save_reward_model(tmp_path / "model", model)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    assert type(theirs).__name__ == f"{family.capitalize()}ForSequenceClassification"
    assert theirs.config.num_labels == 1
    examples = [Scored((5, 6, 7), (8, 9, 1)), Scored((5, 6, 7), (10, 1)), Scored((11,), (12, 13, 14, 15, 1))]
    ours = model.raw_scores(examples)
    assert max(ours) - min(ours) > 0.1
    with torch.no_grad():
        alone = [float(theirs(input_ids=ids(example)).logits) for example in examples]
        padded = torch.zeros(3, 6, dtype=torch.long)
        for row, example in zip(padded, examples, strict=True):
            row[: example.num_tokens] = ids(example)[0]
        together = theirs(input_ids=padded, attention_mask=(padded != 0).long()).logits.squeeze(1).tolist()
    assert ours == pytest.approx(alone, abs=1e-4)
    assert ours == pytest.approx(together, abs=1e-4)


def test_a_folder_gives_back_what_was_saved(make: Make, tmp_path: Path) -> None:
    model = make(score="reply", kind="pointwise", shape={"tie_word_embeddings": False})
    model.norm = Norm(1.5, 2.0, -3.0)
    model.figures = {"accuracy/mean": 0.75}
    save_reward_model(tmp_path / "stage" / "model", model)
    for place in (tmp_path / "stage", tmp_path / "stage" / "model"):
        loaded = load_reward_model(place)
        assert (loaded.kind, loaded.score, loaded.template) == ("pointwise", "reply", model.template)
        assert (loaded.norm, loaded.figures) == (model.norm, model.figures)
        assert loaded.score_replies(["some"], ["more"]) == pytest.approx(model.score_replies(["some"], ["more"]))
        mine, others = model.state_dict(), loaded.state_dict()
        assert mine.keys() == others.keys()
        assert all(torch.equal(weight, others[name]) for name, weight in mine.items())


def test_a_template_file_is_not_needed_later(make: Make, tmp_path: Path) -> None:
    (tmp_path / "template.txt").write_text("Ask: {prompt}\nSay:")
    model = make(template=str(tmp_path / "template.txt"))
    save_reward_model(tmp_path / "model", model)
    (tmp_path / "template.txt").unlink()
    loaded = load_reward_model(tmp_path / "model")
    assert loaded.example("x", "y") == model.example("x", "y")


def test_what_is_no_reward_model_is_said(make: Make, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = make()
    base = Decoder(model.decoder.config)
    base.initialise(1)
    save_folder(tmp_path / "plain", base, tokenizer)
    with pytest.raises(BrokenInputError, match=r"holds no reward\.json"):
        load_reward_model(tmp_path / "plain")
    save_reward_model(tmp_path / "model", model)
    with pytest.raises(BrokenInputError, match=r"score\.weight"):
        load_folder(tmp_path / "model")  # it is no language model
    (tmp_path / "model" / "reward.json").write_text('{"kind": "pairwise"}')
    with pytest.raises(BrokenInputError, match=r"reward\.json lacks or garbles a key"):
        load_reward_model(tmp_path / "model")
    save_folder(tmp_path / "headless", base, tokenizer)
    (tmp_path / "headless" / "reward.json").write_text("{}")
    with pytest.raises(BrokenInputError, match=r"lack score\.weight"):
        load_reward_model(tmp_path / "headless")


def test_bases_that_cannot_carry_a_head_are_refused(make: Make, tokenizer: Tokenizer) -> None:
    decoder = make().decoder
    endless = Tokenizer(tokenizer.backend, {}, eos_ids=())
    with pytest.raises(UsageError, match="no end token"):
        RewardModel(decoder, endless, kind="pairwise", score="answer", template="chat")
    shape = {"vocab_size": 480, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "eos_token_id": 1}
    other = FallbackDecoder(transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=None)))
    with pytest.raises(UsageError, match="needs a llama, qwen2 or qwen3 model, not gpt2"):
        RewardModel(other, tokenizer, kind="pairwise", score="answer", template="chat")


# --- what is scored --------------------------------------------------------------------------------------------------


def text(model: RewardModel, prompt: str, reply: str) -> str:
    example = model.example(prompt, reply)
    assert example is not None
    assert example.reply_ids[-1] == model.tokenizer.eos_ids[0]
    return model.tokenizer.decode(example.prompt_ids) + "|" + model.tokenizer.decode(example.reply_ids)


@pytest.mark.parametrize(
    "reply", ["<think>\nwhy\n</think>\n\nmore words", "<think>x</think><answer>more words</answer>"]
)
def test_the_answer_alone_or_the_whole_reply(reply: str, make: Make) -> None:
    assert text(make(), "some", reply) == "User: some\nAssistant:|more words"
    assert text(make(score="reply"), "some", reply) == f"User: some\nAssistant:|{reply}"


def test_a_whole_reply_opens_its_own_block(make: Make) -> None:
    """A template that opens the block already must not open it a second time."""
    model = make(score="reply", template="User: {prompt}\nAssistant: <think>\n")
    assert text(model, "some", "<think>\nwhy\n</think>\n\nwords") == (
        "User: some\nAssistant: |<think>\nwhy\n</think>\n\nwords"
    )


@pytest.mark.parametrize("reply", ["<think> still thinking", "", "<think>\n\n</think>", "<answer>cut"])
def test_a_reply_without_an_answer_gets_the_lowest_score_that_was_seen(reply: str, make: Make) -> None:
    model = make()
    model.norm = Norm(mean=1.0, deviation=2.0, lowest=-5.0)
    assert model.example("some", reply) is None
    assert model.score_replies(["some", "some"], [reply, "words"])[0] == -3.0
    assert make(score="reply").example("some", reply) is not None


def test_scores_are_normed(make: Make) -> None:
    model = make()
    prompts, replies = ["some", "others", "some"], ["words", "more words", "others"]
    raw = model.raw_scores([e for p, r in zip(prompts, replies, strict=True) if (e := model.example(p, r))])
    assert model.score_replies(prompts, replies) == pytest.approx(raw)
    model.norm = Norm.of(raw)
    scores = torch.tensor(model.score_replies(prompts, replies), dtype=torch.float64)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-6)
    assert float(scores.std()) == pytest.approx(1)
    assert scores.argsort().tolist() == torch.tensor(raw).argsort().tolist()
    assert model.score_replies(prompts, replies) == scores.tolist()
    assert model.score_replies([], []) == []


def test_what_exceeds_the_context_loses_its_beginning(make: Make) -> None:
    model = make(score="reply")
    long = "some more words " * 60
    assert model.score_replies(["some " * 80], ["words"]) != model.score_replies(["some " * 80], ["others"])
    assert model.score_replies(["some"], [long]) == pytest.approx(model.score_replies(["other"], [long]))


# --- packing ----------------------------------------------------------------------------------------------------------

EXAMPLES = st.builds(
    Scored,
    st.sampled_from([(5, 6, 7), (5, 6), (9,) * 11]),
    st.lists(st.integers(2, 450), min_size=1, max_size=12).map(tuple),
)


@given(st.lists(EXAMPLES, max_size=12), st.integers(1, 60))
def test_micro_batches_keep_order_and_budget(examples: list[Scored], budget: int) -> None:
    batches = list(micro_batches(examples, budget))
    assert [example for batch in batches for example in batch] == examples
    for batch in batches:
        rows, shared = 0, None
        for example in batch:
            rows += len(example.reply_ids) + (len(example.prompt_ids) if example.prompt_ids != shared else 0)
            shared = example.prompt_ids
        assert rows <= budget or len(batch) == 1


def test_scores_do_not_depend_on_what_is_packed_together(make: Make) -> None:
    model = make()
    generator = torch.Generator().manual_seed(0)
    examples = [
        Scored(prompt, tuple(torch.randint(2, 450, (length,), generator=generator).tolist()))
        for prompt in ((5, 6, 7), (8,), (5, 6, 7))
        for length in (1, 2, 9, 14)
    ]
    alone = [model.raw_scores([example])[0] for example in examples]
    for budget in (1, 20, 1000):
        assert model.raw_scores(examples, budget) == pytest.approx(alone, abs=1e-4)


def test_frozen_layers_get_no_gradient_and_the_rest_the_same(make: Make) -> None:
    examples = [Scored((5, 6), (7, 8, 1)), Scored((5, 6), (9, 1))]
    free, frozen = make(), make()
    frozen.decoder.freeze(1)
    for model in (free, frozen):
        model.scores(examples).sum().backward()
    for (name, mine), (_, other) in zip(free.named_parameters(), frozen.named_parameters(), strict=True):
        if name.startswith(("decoder.embedding", "decoder.layers.0.")):
            assert other.grad is None and mine.grad is not None
        else:
            assert mine.grad is not None and other.grad is not None
            assert torch.allclose(mine.grad, other.grad, atol=1e-5)
