"""The engine against the plainest loop there is, and a rollout's independence of everything but its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from ponder.errors import UsageError
from ponder.model.config import DecoderConfig
from ponder.model.decoder import Decoder
from ponder.rollout.base import Completion, Finished, Request, Sampling, uniform_stream
from ponder.rollout.native import NativeEngine, NativeSession

SEED = 11


def make_decoder(vocab_size: int = 50, num_kv_heads: int = 2, family: str = "llama") -> Decoder:
    """Random weights large enough that the next token is neither certain nor arbitrary."""
    config = DecoderConfig(
        family=family,  # type: ignore[arg-type]
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        max_positions=256,
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        initializer_range=0.2,
    )
    decoder = Decoder(config)
    decoder.initialise(1)
    return decoder


def make_requests(lengths: Sequence[int], num_samples: int = 3, vocab_size: int = 50) -> list[Request]:
    generator = np.random.default_rng(5)
    return [
        Request(tuple(generator.integers(0, vocab_size, n).tolist()), f"step/{i}", num_samples)
        for i, n in enumerate(lengths)
    ]


@torch.no_grad()
def logits_after(decoder: Decoder, prompt: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
    """(len(ids), V) in float64: what each of `ids` was drawn from, by one full forward pass."""
    whole = torch.tensor([[*prompt, *ids]])
    return decoder.logits(whole)[0, len(prompt) - 1 : -1].double()


def flat(groups: list[list[Completion]]) -> list[Completion]:
    return [c for group in groups for c in group]


def assert_same(found: list[list[Completion]], expected: list[list[Completion]]) -> None:
    assert [[c.ids for c in g] for g in found] == [[c.ids for c in g] for g in expected]
    for a, b in zip(flat(found), flat(expected), strict=True):
        assert a.finish_reason == b.finish_reason
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


# --- against the plain loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("vocab_size", [7, 50, 300])
def test_greedy_equals_one_sequence_at_a_time(family: str, num_kv_heads: int, vocab_size: int) -> None:
    decoder = make_decoder(vocab_size, num_kv_heads, family)
    requests = make_requests([1, 9, 4], 1, vocab_size)
    stop = 3
    sampling = Sampling(20, temperature=0.0, stop_ids=(stop,))
    for request, (found,) in zip(requests, NativeEngine(decoder).generate(requests, sampling, SEED), strict=True):
        ids: list[int] = []
        while len(ids) < 20 and stop not in ids:
            with torch.no_grad():
                ids.append(int(decoder.logits(torch.tensor([[*request.prompt_ids, *ids]]))[0, -1].argmax()))
        assert found.ids == ids
        assert found.finish_reason == ("stop" if stop in ids else "length")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("vocab_size", "num_kv_heads"), [(5, 1), (50, 4), (300, 2)])
def test_sampled_tokens_and_logprobs_are_those_of_a_full_pass(
    vocab_size: int, num_kv_heads: int, temperature: float
) -> None:
    """Token t is where the running sum of probabilities passes the t-th uniform number of the rollout's stream."""
    decoder = make_decoder(vocab_size, num_kv_heads)
    requests = make_requests([3, 17, 1, 60], 3, vocab_size)
    groups = NativeEngine(decoder, max_rows=5).generate(requests, Sampling(40, temperature=temperature), SEED)
    variety = set()
    for request, group in zip(requests, groups, strict=True):
        assert len(group) == 3
        for sample, completion in enumerate(group):
            log_p = torch.log_softmax(logits_after(decoder, request.prompt_ids, completion.ids) / temperature, -1)
            ids = torch.tensor(completion.ids)
            chosen = log_p.gather(1, ids[:, None]).squeeze(1).numpy()
            np.testing.assert_allclose(completion.logprobs, chosen, atol=1e-5)
            ends = log_p.exp().cumsum(-1).gather(1, ids[:, None]).squeeze(1).numpy()
            uniforms = uniform_stream(SEED, request.key, sample, 40)
            assert (uniforms <= ends + 1e-5).all()
            assert (uniforms >= ends - np.exp(chosen) - 1e-5).all()
            variety.add(tuple(completion.ids))
    assert len(variety) == 12


def test_the_cache_grows_past_its_blocks() -> None:
    """Prompts on both sides of a block's end, and completions that cross several."""
    decoder = make_decoder()
    requests = make_requests([63, 64, 65, 2], 2)
    groups = NativeEngine(decoder, max_rows=3).generate(requests, Sampling(150), SEED)
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            assert len(completion.ids) == 150
            log_p = torch.log_softmax(logits_after(decoder, request.prompt_ids, completion.ids), -1)
            chosen = log_p.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
            np.testing.assert_allclose(completion.logprobs, chosen, atol=1e-5)


def test_the_last_position_can_be_used() -> None:
    decoder = make_decoder()
    (request,) = make_requests([250], 1)
    ((completion,),) = NativeEngine(decoder).generate([request], Sampling(6), SEED)
    assert len(completion.ids) == 6


def test_it_samples_from_the_present_weights() -> None:
    decoder = make_decoder()
    engine, requests = NativeEngine(decoder), make_requests([4], 2)
    before = engine.generate(requests, Sampling(10), SEED)
    with torch.no_grad():
        decoder.embedding.weight.mul_(-1)
    after = engine.generate(requests, Sampling(10), SEED)
    assert [c.ids for c in flat(before)] != [c.ids for c in flat(after)]


# --- a rollout depends on (seed, key, sample) alone ----------------------------------------------------------------

ENDING = Sampling(60, stop_ids=(3, 7, 9))
"""Sequences end at very different lengths, so that rows are freed and taken again in every order."""


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return make_decoder()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return make_requests([5, 1, 33, 5, 12], 4)


@pytest.fixture(scope="module")
def expected(decoder: Decoder, requests: list[Request]) -> list[list[Completion]]:
    groups = NativeEngine(decoder).generate(requests, ENDING, SEED)
    lengths = [len(c.ids) for c in flat(groups)]
    assert max(lengths) > 20
    assert min(lengths) < 5
    return groups


@pytest.mark.parametrize("max_rows", [1, 3, 4, 7, 19, 20])
def test_the_number_of_rows_does_not_matter(
    decoder: Decoder, requests: list[Request], expected: list[list[Completion]], max_rows: int
) -> None:
    assert_same(NativeEngine(decoder, max_rows=max_rows).generate(requests, ENDING, SEED), expected)


@pytest.mark.parametrize("max_rows", [3, 256])
def test_the_order_of_requests_does_not_matter(
    decoder: Decoder, requests: list[Request], expected: list[list[Completion]], max_rows: int
) -> None:
    order = [3, 0, 4, 2, 1]
    found = NativeEngine(decoder, max_rows=max_rows).generate([requests[i] for i in order], ENDING, SEED)
    assert_same(found, [expected[i] for i in order])


def test_the_company_does_not_matter(
    decoder: Decoder, requests: list[Request], expected: list[list[Completion]]
) -> None:
    for request, group in zip(requests, expected, strict=True):
        assert_same(NativeEngine(decoder).generate([request], ENDING, SEED), [group])
        fewer = Request(request.prompt_ids, request.key, 2)
        assert_same(NativeEngine(decoder).generate([fewer], ENDING, SEED), [group[:2]])


def test_when_the_others_end_does_not_matter(
    decoder: Decoder, requests: list[Request], expected: list[list[Completion]]
) -> None:
    """Cut one request's samples early: the others are what they were, and these the beginnings of what they were."""

    def limit(request: int, sample: int) -> int:
        return 1 + sample if request == 2 else 60

    found = NativeEngine(decoder, max_rows=6, length_limit=limit).generate(requests, ENDING, SEED)
    assert_same(found[:2] + found[3:], expected[:2] + expected[3:])
    for sample, (cut, whole) in enumerate(zip(found[2], expected[2], strict=True)):
        assert cut.ids == whole.ids[: 1 + sample]


def test_seed_key_and_sample_each_make_another_stream(
    decoder: Decoder, requests: list[Request], expected: list[list[Completion]]
) -> None:
    engine, request = NativeEngine(decoder), requests[2]
    (group,) = engine.generate([request], ENDING, SEED)
    (other_seed,) = engine.generate([request], ENDING, SEED + 1)
    (other_key,) = engine.generate([Request(request.prompt_ids, "another", 4)], ENDING, SEED)
    texts = {tuple(c.ids) for c in group + other_seed + other_key}
    assert len(texts) == 12
    # one key twice is one stream twice
    twice = engine.generate([request, request], ENDING, SEED)
    assert_same(twice, [expected[2], expected[2]])


def test_a_prompt_computed_in_parts_is_the_same(
    decoder: Decoder, requests: list[Request], expected: list[list[Completion]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ponder.rollout.native.PREFILL_TOKENS", 6)
    assert_same(NativeEngine(decoder).generate(requests, ENDING, SEED), expected)


# --- how a completion ends -----------------------------------------------------------------------------------------


def letters(ids: Sequence[int]) -> str:
    """A toy tokenizer: token i is one to three letters long."""
    return "".join(chr(ord("a") + i % 26) * (1 + i % 3) for i in ids)


def test_a_stop_token_is_kept_and_ends_the_completion(decoder: Decoder) -> None:
    requests = make_requests([4, 9], 8)
    free = flat(NativeEngine(decoder).generate(requests, Sampling(50), SEED))
    stopped = flat(NativeEngine(decoder).generate(requests, Sampling(50, stop_ids=(3, 8)), SEED))
    assert {c.finish_reason for c in stopped} == {"stop", "length"}
    for whole, cut in zip(free, stopped, strict=True):
        ends = [i for i, token in enumerate(whole.ids) if token in (3, 8)]
        length = ends[0] + 1 if ends else 50
        assert cut.ids == whole.ids[:length]
        np.testing.assert_allclose(cut.logprobs, whole.logprobs[:length], atol=1e-5)
        assert cut.finish_reason == ("stop" if ends else "length")


def test_a_stop_token_at_the_limit_is_a_stop(decoder: Decoder) -> None:
    (request,) = make_requests([4], 1)
    ((free,),) = NativeEngine(decoder).generate([request], Sampling(10), SEED)
    last = next(i for i in range(9, -1, -1) if free.ids[i] not in free.ids[:i])
    sampling = Sampling(last + 1, stop_ids=(free.ids[last],))
    ((found,),) = NativeEngine(decoder).generate([request], sampling, SEED)
    assert (found.ids, found.finish_reason) == (free.ids[: last + 1], "stop")


def test_a_stop_text_ends_the_completion_wherever_its_tokens_are_cut(decoder: Decoder) -> None:
    requests = make_requests([4, 9, 2], 8)
    free = flat(NativeEngine(decoder).generate(requests, Sampling(50), SEED))
    # texts that really occur, one within a token's letters and one across several tokens
    across = letters(free[0].ids[10:14])[1:-1]
    within = letters(free[5].ids[20:21])
    sampling = Sampling(50, stop=(across, within))
    stopped = flat(NativeEngine(decoder, letters).generate(requests, sampling, SEED))
    for whole, cut in zip(free, stopped, strict=True):
        ends = [n for n in range(1, 51) if any(text in letters(whole.ids[:n]) for text in (across, within))]
        assert cut.ids == whole.ids[: ends[0] if ends else 50]
        assert cut.finish_reason == ("stop" if ends else "length")
    assert stopped[0].finish_reason == stopped[5].finish_reason == "stop"


def test_stop_texts_of_several_bytes_are_found(decoder: Decoder) -> None:
    """A character may be spread over as many tokens as it has bytes."""
    text = "等等"
    spelled = list(text.encode())

    def decode(ids: Sequence[int]) -> str:
        return bytes(ids).decode(errors="replace")

    session = NativeSession(decoder, decode)
    assert not session._stops(spelled[:-1], (text,))
    assert session._stops(spelled, (text,))
    assert session._stops([200] * 30 + spelled, (text,))


def test_each_completion_is_handed_over_once_and_whole(decoder: Decoder, requests: list[Request]) -> None:
    calls: list[Sequence[Finished]] = []
    groups = NativeEngine(decoder, max_rows=6).generate(requests, ENDING, SEED, calls.append)
    assert all(calls)
    assert len(calls) > 1
    handed = {(request, sample): completion for call in calls for request, sample, completion in call}
    assert len(handed) == sum(map(len, calls)) == 20
    assert [[handed[r, s] for s in range(len(group))] for r, group in enumerate(groups)] == groups


def test_filters_reach_the_engine(decoder: Decoder) -> None:
    requests = make_requests([6, 3], 4)
    for request, group in zip(
        requests, NativeEngine(decoder).generate(requests, Sampling(30, top_k=2), SEED), strict=True
    ):
        for completion in group:
            logits = logits_after(decoder, request.prompt_ids, completion.ids)
            ranks = (logits > logits.gather(1, torch.tensor(completion.ids)[:, None])).sum(-1)
            assert ranks.max() == 1


def test_nothing_asked_is_nothing_given(decoder: Decoder) -> None:
    assert NativeEngine(decoder).generate([], Sampling(5), SEED) == []


@pytest.mark.parametrize(
    ("prompt", "sampling", "message"),
    [
        ((), Sampling(5), "empty prompt"),
        ((1,) * 250, Sampling(7), r"250 tokens .*max_tokens=7 .*256 positions: lower sampling\.max_tokens"),
        ((1,) * 300, Sampling(1), "256 positions"),
        ((1,), Sampling(5, stop=("a",)), "tokenizer"),
    ],
)
def test_what_cannot_be_sampled_is_said(
    decoder: Decoder, prompt: tuple[int, ...], sampling: Sampling, message: str
) -> None:
    good = Request((1, 2), "good")
    with pytest.raises(UsageError, match=message):
        NativeEngine(decoder).generate([good, Request(prompt, "k")], sampling, SEED)
