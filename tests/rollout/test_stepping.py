"""Stepping through a batch says what the engine says, whoever else joins, leaves or is told what to say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

import ponder
from ponder.api import Model
from ponder.model.decoder import Decoder
from ponder.rollout.base import Sampling, uniform_stream
from ponder.rollout.native import ComputedPrompt, prefill
from ponder.rollout.stepping import LiveSequence, Stepper, bytes_per_position

PROMPTS = ["User: What is 3 + 4?\nAssistant:", "User: Who are you?\nAssistant:", "1"]


@pytest.fixture(scope="module")
def model() -> Model:
    return ponder.load("mini-qwen")


def sequence(model: Model, prompt: str, temperature: float = 0.0, length: int = 24) -> LiveSequence:
    ids = tuple(model.tokenizer.encode_prompt(prompt))
    uniforms = uniform_stream(3, f"0\x1f{prompt}", 0, length)
    return LiveSequence(ids, Sampling(length, temperature, top_p=0.9), uniforms)


def run(model: Model, stepper: Stepper, wanted: LiveSequence) -> str:
    """Step until `wanted` ends; everyone else leaves when their numbers are used up."""
    for _ in range(200):
        for live, token in stepper.step():
            if token.id in model.tokenizer.eos_ids or len(live.ids) == len(live.uniforms):
                stepper.leave(live)
        if wanted.ids and wanted not in stepper.rows:
            return model.tokenizer.decode(wanted.ids)
    raise AssertionError("the sequence never ended")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_is_that_of_generate_beside_others_that_join_and_leave(
    model: Model, prompt: str, temperature: float
) -> None:
    expected = model.generate(prompt, temperature=temperature, top_p=0.9, max_tokens=24, seed=3)[0][0]
    stepper = Stepper(model.decoder)
    other, third = sequence(model, PROMPTS[1], 1.0), sequence(model, PROMPTS[0], 0.5)
    stepper.join([other, third])
    stepper.step()
    wanted = sequence(model, prompt, temperature)
    stepper.join([wanted])
    stepper.step()
    stepper.leave(other)
    stepper.join([sequence(model, PROMPTS[2], 0.3), sequence(model, PROMPTS[2], 0.3)])
    assert run(model, stepper, wanted) == expected


def test_equal_prompts_are_computed_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(decoder: Decoder, prompts: Sequence[tuple[int, ...]]) -> list[ComputedPrompt]:
        seen.append(len(prompts))
        return prefill(decoder, prompts)

    monkeypatch.setattr("ponder.rollout.stepping.prefill", counted)
    stepper = Stepper(model.decoder)
    stepper.join([sequence(model, PROMPTS[0]) for _ in range(5)])
    assert len(stepper.step()) == 5
    assert seen == [1]


def test_a_long_prompt_lets_others_speak_and_says_what_it_says_alone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder.rollout.stepping.PIECE_TOKENS", 16)
    prompt = PROMPTS[0] * 8
    expected = model.generate(prompt, temperature=0, max_tokens=24, seed=3)[0][0]
    stepper = Stepper(model.decoder)
    speaking, long, twin = sequence(model, PROMPTS[1]), sequence(model, prompt), sequence(model, prompt)
    late = sequence(model, PROMPTS[2])
    stepper.join([speaking])
    stepper.step()
    stepper.join([long, twin])
    pieces = -(-len(long.context_ids) // 16)
    assert pieces > 4
    for step in range(1, pieces):
        assert [row for row, _ in stepper.step() if row is not late] == [speaking]
        if step == 2:
            stepper.join([late])  # a short prompt does not wait for a long one
    assert len(late.ids) == pieces - 3
    assert len(stepper.step()) == 4
    stepper.leave(twin)
    assert run(model, stepper, long) == expected


def test_a_long_prompt_may_be_given_up_between_two_pieces(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponder.rollout.stepping.PIECE_TOKENS", 16)
    stepper = Stepper(model.decoder)
    given_up, other = sequence(model, PROMPTS[0] * 8), sequence(model, PROMPTS[1] * 8)
    stepper.join([given_up, other])
    stepper.step()
    stepper.leave(given_up)
    expected = model.generate(PROMPTS[1] * 8, temperature=0, max_tokens=24, seed=3)[0][0]
    assert run(model, stepper, other) == expected


def test_forced_tokens_come_next_and_the_rest_follows_from_them(model: Model) -> None:
    stepper = Stepper(model.decoder)
    live = sequence(model, PROMPTS[0])
    stepper.join([live])
    stepper.step()
    words = model.tokenizer.encode("</think>\n\n")
    live.forced.extend(words)
    for _ in range(len(words) + 1):
        stepper.step()
    assert live.ids[1 : 1 + len(words)] == words
    expected = model.logits([[*live.prompt_ids, *live.ids[:-1]]])[0, -1].argmax()
    assert live.ids[-1] == int(expected)


def test_logprobs_are_the_models_own_whatever_the_temperature(model: Model) -> None:
    stepper = Stepper(model.decoder)
    live = sequence(model, PROMPTS[0], temperature=1.7)
    live.num_top = 3
    stepper.join([live])
    ((_, token),) = stepper.step()
    logprobs = model.logits(live.prompt_ids)[0, -1].log_softmax(-1)
    assert token.logprob == pytest.approx(float(logprobs[token.id]), abs=1e-4)
    assert [i for i, _ in token.top] == logprobs.topk(3).indices.tolist()
    assert torch.allclose(torch.tensor([p for _, p in token.top]), logprobs.topk(3).values, atol=1e-4)


def test_an_idle_stepper_holds_no_cache(model: Model) -> None:
    stepper = Stepper(model.decoder)
    live = sequence(model, PROMPTS[0])
    stepper.join([live])
    stepper.step()
    c = model.config
    assert bytes_per_position(model.decoder) == 2 * c.num_layers * c.num_kv_heads * c.head_dim * 4
    assert stepper._cache.keys.numel() > 0
    stepper.leave(live)
    assert stepper._cache.keys.numel() == 0
    assert stepper.step() == []
