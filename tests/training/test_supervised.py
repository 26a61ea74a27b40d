"""Examples into tokens and batches: what is left out, what is refused, in which order they come."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import RefusedError, UsageError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.model.folder import LoadedModel
from ponder.model.load import load_model
from ponder.model.templates import render
from ponder.model.tokenizer import Tokenizer
from ponder.recipe import OptimizerSettings
from ponder.store import datasets
from ponder.training.packing import Example
from ponder.training.supervised import (
    ExampleBatches,
    Rendered,
    check_before_training,
    end_token,
    hold_out,
    mean_loss,
    part_padding_from_end,
    render_rows,
)
from ponder.training.trainer import LocalTrainer, TrainerSettings

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.fixture
def tokenizer() -> Tokenizer:
    """The mini base's own, so that no test changes what another one reads."""
    return load_model("mini").tokenizer


def row(thinking: str = "1+1 is 2", answer: str = "2", prompt: str = "1+1?", **more: Any) -> datasets.Example:
    return datasets.Example("id", "test", "math", "en", prompt, thinking, answer, **more)


def with_chat(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizer.backend, tokenizer.settings, CHAT_TEMPLATE)


# --- rendering -------------------------------------------------------------------------------------------------------


def test_an_example_as_sampling_will_see_it(tokenizer: Tokenizer) -> None:
    (example,) = render_rows([row()], "mini", tokenizer, 200).examples
    assert tokenizer.decode(example.prompt_ids) == "User: 1+1?\nAssistant:"
    assert list(example.prompt_ids) == tokenizer.encode_prompt(render("mini", "1+1?", tokenizer))
    assert tokenizer.decode(example.reply_ids, skip_special=False) == "<think>\n1+1 is 2\n</think>\n\n2<|end|>"
    assert example.reply_ids[-1] == 1


def test_a_chat_template_sees_earlier_turns_and_may_open_the_thinking(tokenizer: Tokenizer) -> None:
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    (example,) = render_rows([row(history=turns)], "chat", with_chat(tokenizer), 200).examples
    prompt = "<system>Be brief.<|end|><user>Hi<|end|><user>1+1?<|end|><assistant><think>\n"
    assert tokenizer.decode(example.prompt_ids, skip_special=False) == prompt
    assert tokenizer.decode(example.reply_ids, skip_special=False) == "1+1 is 2\n</think>\n\n2<|end|>"


def test_what_does_not_fit_is_left_out_and_counted(tokenizer: Tokenizer) -> None:
    rows = [
        row(),
        row(thinking="very " * 200),
        row(answer="2<|end|>3"),
        row(history=({"role": "user", "content": "Hi"},)),
        row(thinking="so </think> what"),
        row(answer=""),
    ]
    rendered = render_rows(rows, "mini", tokenizer, 100)
    assert rendered.rows == rows[:1]
    assert rendered.left_out == Counter(
        {
            "exceeding `context` (100 tokens)": 1,
            "an end token inside the reply": 1,
            "earlier turns, which only the template `chat` can render": 1,
            "tags that make thinking and answer read otherwise": 1,
            "an empty answer": 1,
        }
    )
    empty = render_rows([row(prompt=""), row()], "{prompt}", tokenizer, 100)
    assert empty.left_out == Counter({"an empty prompt": 1})


def test_an_example_of_just_the_context_stays(tokenizer: Tokenizer) -> None:
    (example,) = render_rows([row()], "mini", tokenizer, 200).examples
    length = len(example.prompt_ids) + len(example.reply_ids)
    assert len(render_rows([row()], "mini", tokenizer, length).examples) == 1
    with pytest.raises(RefusedError, match=rf"no example of `data`.*1 for exceeding `context` \({length - 1} tokens\)"):
        render_rows([row()], "mini", tokenizer, length - 1)


def test_no_data_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RefusedError, match="holds none"):
        render_rows([], "mini", tokenizer, 100)


def test_a_chat_template_that_is_not_there_is_said(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        render_rows([row()], "chat", tokenizer, 100)


# --- the end token and the checks ------------------------------------------------------------------------------------


def test_the_end_token_is_the_tokenizers_own_where_generation_stops_at_it(tokenizer: Tokenizer) -> None:
    def end(eos_token: Any, eos_ids: list[int]) -> int:
        return end_token(Tokenizer(tokenizer.backend, {"eos_token": eos_token}, eos_ids=eos_ids))

    assert end("<|end|>", [7, 1]) == 1
    assert end({"content": "<|end|>"}, [7, 1]) == 1
    assert end("<|end|>", [7]) == 7
    assert end(None, [7, 1]) == 7
    with pytest.raises(RefusedError, match=r"no end token.*eos_token"):
        end("<|end|>", [])


def model_of(tokenizer: Tokenizer) -> LoadedModel:
    config = DecoderConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        max_positions=200,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
    )
    decoder = Decoder(config)
    decoder.initialise(0)
    return LoadedModel(decoder, tokenizer, config, generation={})


def test_padding_that_is_the_end_is_given_another_token(tokenizer: Tokenizer) -> None:
    assert part_padding_from_end(model_of(tokenizer)) is None
    assert tokenizer.pad_id == 0
    tokenizer.settings["pad_token"] = "<|end|>"
    model = model_of(tokenizer)
    assert model.decoder.config.pad_id == 1
    assert part_padding_from_end(model) == "<|pad|>"
    assert tokenizer.pad_id == model.decoder.config.pad_id == 0


def test_padding_that_is_the_end_is_refused_where_no_token_is_to_spare(tokenizer: Tokenizer) -> None:
    alone = Tokenizer.train(["some text"], 452, special_tokens=("<|end|>", "<|bos|>"))
    alone.settings |= {"pad_token": "<|end|>", "eos_token": "<|end|>", "bos_token": "<|bos|>"}
    alone.eos_ids = (0,)
    with pytest.raises(RefusedError, match=r"padding and the end are the same token.*pad_token"):
        part_padding_from_end(model_of(alone))
    with pytest.raises(RefusedError, match=r"padding and the end are the same token.*pad_token"):
        check_before_training(render_rows([row()], "mini", alone, 200), "mini", alone, {})


def test_what_is_in_order_passes(tokenizer: Tokenizer) -> None:
    rendered = render_rows([row(), row(prompt="2+2?")], "mini", tokenizer, 200)
    for generation in ({}, {"eos_token_id": 1}, {"eos_token_id": [7, 1]}):
        check_before_training(rendered, "mini", tokenizer, generation)


@pytest.mark.parametrize("stated", [7, [7, 8]])
def test_a_generation_that_stops_elsewhere_is_refused(stated: Any, tokenizer: Tokenizer) -> None:
    rendered = render_rows([row()], "mini", tokenizer, 200)
    with pytest.raises(RefusedError, match=r"token 1, at which generation does not stop.*eos_token_id"):
        check_before_training(rendered, "mini", tokenizer, {"eos_token_id": stated})


def test_a_reply_without_the_end_in_its_labels_is_refused(tokenizer: Tokenizer) -> None:
    good = render_rows([row(), row()], "mini", tokenizer, 200)
    cut = Example(good.examples[1].prompt_ids, good.examples[1].reply_ids[:-1])
    broken = Rendered(good.rows, [good.examples[0], cut], Counter())
    with pytest.raises(RefusedError, match="'id' has no end token in its labels"):
        check_before_training(broken, "mini", tokenizer, {})


class ForgetfulTokenizer(Tokenizer):
    """Opens the first prompt that it is asked for, and then no more."""

    asked = 0

    def encode_prompt(self, text: str) -> list[int]:
        self.asked += 1
        return [*([5] if self.asked == 1 else []), *super().encode_prompt(text)]


def test_a_prompt_that_sampling_sees_otherwise_is_refused(tokenizer: Tokenizer) -> None:
    broken = ForgetfulTokenizer(tokenizer.backend, tokenizer.settings)
    rendered = render_rows([row()], "mini", broken, 200)
    with pytest.raises(RefusedError, match="'id' is trained on other tokens than sampling with `template`"):
        check_before_training(rendered, "mini", broken, {})


def test_another_template_than_that_of_training_is_refused(tokenizer: Tokenizer) -> None:
    rendered = render_rows([row()], "mini", tokenizer, 200)
    with pytest.raises(RefusedError, match="other tokens"):
        check_before_training(rendered, "r1-zero", tokenizer, {})


# --- order and batches -----------------------------------------------------------------------------------------------


def numbered(lengths: list[int]) -> list[Example]:
    """Prompts of one token that number the examples."""
    return [Example((i,), tuple(range(length - 1))) for i, length in enumerate(lengths)]


def walk(batches: ExampleBatches) -> list[list[Example]]:
    cursor, taken = 0, []
    for _ in range(batches.total_steps):
        batch, cursor = batches.take(cursor)
        taken.append(batch)
    return taken


def names(batch: list[Example]) -> list[int]:
    return [e.prompt_ids[0] for e in batch]


def size(batch: list[Example]) -> int:
    return sum(len(e.prompt_ids) + len(e.reply_ids) for e in batch)


LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 60), st.sampled_from([0.5, 1, 2, 2.5, 3]), st.integers(0, 5))
def test_epochs_read_everything_as_often_as_asked(lengths: list[int], tokens: int, epochs: float, seed: int) -> None:
    batches = ExampleBatches(numbered(lengths), tokens, seed, epochs=epochs)
    taken = walk(batches)
    assert all(taken)
    read = [name for batch in taken for name in names(batch)]
    assert len(read) == max(1, round(epochs * len(lengths)))
    for start in range(0, len(read), len(lengths)):
        part = read[start : start + len(lengths)]
        assert len(set(part)) == len(part)  # an epoch holds nothing twice
    for batch in taken[:-1]:
        assert size(batch) - size(batch[-1:]) < tokens <= size(batch)
    # no sliver at the end, unless it is all there is
    assert size(taken[-1]) >= tokens / 2 or len(taken) == 1
    assert size(taken[-1]) < 1.5 * tokens + 2 * max(lengths)


def test_batches_by_hand() -> None:
    # 4 examples of 10 tokens: 20 a step give 2 batches; 15 a step too; with 25, 30 and a rest of 10, which joins
    assert [len(b) for b in walk(ExampleBatches(numbered([10] * 4), 20, 0, epochs=1))] == [2, 2]
    assert [len(b) for b in walk(ExampleBatches(numbered([10] * 4), 15, 0, epochs=1))] == [2, 2]
    assert [len(b) for b in walk(ExampleBatches(numbered([10] * 4), 25, 0, epochs=1))] == [4]
    assert [len(b) for b in walk(ExampleBatches(numbered([10] * 5), 25, 0, epochs=1))] == [3, 2]
    assert [len(b) for b in walk(ExampleBatches(numbered([10] * 4), 25, 0, epochs=0.5))] == [2]


def test_the_order_is_new_each_epoch_and_follows_the_seed() -> None:
    def order(seed: int) -> list[int]:
        return [n for batch in walk(ExampleBatches(numbered([5] * 20), 10, seed, epochs=2)) for n in names(batch)]

    first, second = order(0)[:20], order(0)[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))
    assert order(0) == order(0)
    assert order(0) != order(1)


def test_a_batch_follows_from_its_cursor_alone() -> None:
    def batches() -> ExampleBatches:
        return ExampleBatches(numbered([3, 9, 4, 7, 2]), 12, 3, epochs=4)

    whole, cursor = batches(), 0
    for _ in range(whole.total_steps):
        batch, after = whole.take(cursor)
        assert batches().take(cursor) == (batch, after)
        cursor = after
    assert whole.epoch(cursor) == 4


def test_steps_go_round_as_often_as_they_must() -> None:
    batches = ExampleBatches(numbered([10] * 3), 20, 0, steps=6)
    taken = walk(batches)
    assert batches.total_steps == 6
    assert [len(b) for b in taken] == [2] * 6
    assert Counter(n for b in taken for n in names(b)) == {0: 4, 1: 4, 2: 4}


def test_no_examples_make_no_batches() -> None:
    with pytest.raises(ValueError, match="an example"):
        ExampleBatches([], 10, 0, steps=1)


def test_held_out_prompts_are_few_and_never_trained_on() -> None:
    examples = [Example((prompt,), (prompt, sample)) for prompt in range(500) for sample in range(4)]
    train, held_out = hold_out(examples)
    assert len(train) + len(held_out) == 2000
    assert 20 <= len(held_out) <= 120  # 64 expected, in fours
    assert not {e.prompt_ids for e in train} & {e.prompt_ids for e in held_out}
    assert set(hold_out(examples[::-1])[1]) == set(held_out)
    few = numbered([5] * 200)
    assert 2 <= len(hold_out(few)[1]) <= 20  # 10 expected


def test_nothing_is_held_out_where_nothing_would_be_left() -> None:
    parted = [hold_out([Example((i,), (1,))]) for i in range(100)]
    assert parted == [([Example((i,), (1,))], []) for i in range(100)]


def test_mean_loss_is_over_tokens(tokenizer: Tokenizer) -> None:
    decoder = model_of(tokenizer).decoder
    examples = [Example((3, 4), (5, 6, 7)), Example((8,), (9,))]
    total = 0.0
    for example in examples:
        ids = torch.tensor([[*example.prompt_ids, *example.reply_ids]])
        logprobs = decoder.logits(ids)[0].log_softmax(-1).detach()
        for i, target in enumerate(example.reply_ids, start=len(example.prompt_ids) - 1):
            total -= float(logprobs[i, target])
    before = copy.deepcopy(decoder.state_dict())
    trainer = LocalTrainer(decoder, TrainerSettings(OptimizerSettings(), total_steps=1, budget=4))
    assert mean_loss(trainer, examples) == pytest.approx(total / 4, rel=1e-5)
    assert math.isnan(mean_loss(trainer, []))
    assert all(torch.equal(a, b) for a, b in itertools.zip_longest(before.values(), decoder.state_dict().values()))
