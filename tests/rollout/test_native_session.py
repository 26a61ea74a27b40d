"""What a session adds to the engine: requests and weights that come between two tokens."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from test_native import assert_same, logits_after, make_decoder, make_requests

from ponder.model.decoder import Decoder
from ponder.rollout.base import Completion, Sampling
from ponder.rollout.native import NativeEngine, NativeSession, run_to_end

SEED = 11
SAMPLING = Sampling(20, stop_ids=(3,))


@pytest.fixture
def decoder() -> Decoder:
    return make_decoder()


def other_weights(decoder: Decoder) -> dict[str, torch.Tensor]:
    other = copy.deepcopy(decoder)
    other.initialise(2)
    return other.state_dict()


def test_requests_that_come_later_are_numbered_on_and_sampled_alike(decoder: Decoder) -> None:
    requests = make_requests([4, 7, 2, 9])
    expected = NativeEngine(decoder).generate(requests, SAMPLING, SEED)
    session = NativeSession(decoder)
    session.add(requests[:1], SAMPLING, SEED)
    found: list[dict[int, Completion]] = [{} for _ in requests]
    steps = 0
    while not session.idle or steps < 3:
        for request, sample, completion in session.step():
            found[request][sample] = completion
        steps += 1
        if steps == 3:
            session.add(requests[1:], SAMPLING, SEED)
    assert_same([[group[sample] for sample in range(3)] for group in found], expected)


def test_each_request_keeps_its_own_sampling(decoder: Decoder) -> None:
    requests = make_requests([4, 7])
    greedy = Sampling(20, temperature=0.0, stop_ids=(3,))
    session = NativeSession(decoder)
    session.add(requests[:1], SAMPLING, SEED)
    session.add(requests[1:], greedy, SEED)
    found = run_to_end(session, requests)
    engine = NativeEngine(decoder)
    assert_same(found[:1], engine.generate(requests[:1], SAMPLING, SEED))
    assert_same(found[1:], engine.generate(requests[1:], greedy, SEED))


def test_an_empty_step_does_nothing(decoder: Decoder) -> None:
    session = NativeSession(decoder)
    assert session.idle
    assert session.step() == []


def test_every_token_knows_the_weights_it_was_drawn_from(decoder: Decoder) -> None:
    """Five tokens under the first weights, the rest under the second: keys and values stay, the weights are new."""
    requests = make_requests([6], num_samples=2)
    session = NativeSession(decoder, version=7)
    session.add(requests, Sampling(12), SEED)
    for _ in range(5):
        assert session.step() == []
    prompt = requests[0].prompt_ids
    first = copy.deepcopy(decoder)
    session.load_weights(8, other_weights(decoder))
    completions = [completion for group in run_to_end(session, requests) for completion in group]
    for completion in completions:
        assert completion.versions == [(0, 7), (5, 8)]
        assert completion.oldest_version == 7
        expected = logits_after(first, prompt, completion.ids).log_softmax(-1)
        found = torch.tensor(completion.logprobs, dtype=torch.float64)
        old = expected.gather(1, torch.tensor(completion.ids)[:, None]).squeeze(1)
        torch.testing.assert_close(found[:5], old[:5], atol=1e-5, rtol=0)
        assert not torch.allclose(found[5:], old[5:], atol=1e-3)


def test_what_has_not_begun_is_computed_under_the_new_weights(decoder: Decoder) -> None:
    """One row only, so that the second sample waits with its prompt computed before the change."""
    requests = make_requests([6], num_samples=2)
    weights = other_weights(decoder)
    session = NativeSession(decoder, max_rows=1)
    session.add(requests, Sampling(4), SEED)
    session.step()
    session.load_weights(1, weights)
    ((_, second),) = run_to_end(session, requests)
    assert second.versions == [(0, 1)]
    fresh = make_decoder()
    fresh.load_state_dict(weights)
    ((_, expected),) = NativeEngine(fresh).generate(requests, Sampling(4), SEED)
    assert second.ids == expected.ids
    assert second.logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_what_has_ended_is_forgotten_though_others_go_on(decoder: Decoder) -> None:
    """Asynchronous sampling is never idle: what it kept of each request would add up."""
    session = NativeSession(decoder)
    session.add(make_requests([6], num_samples=1), Sampling(30), SEED)
    (short,) = make_requests([4], num_samples=2)
    gone = weakref.ref(short)
    session.add([short], Sampling(3), SEED)
    del short
    for _ in range(4):
        session.step()
    assert not session.idle
    gc.collect()
    assert gone() is None


def test_an_engine_names_the_version_of_its_weights(decoder: Decoder) -> None:
    engine = NativeEngine(decoder)
    engine.version = 5
    ((completion,),) = engine.generate(make_requests([3], num_samples=1), Sampling(4), SEED)
    assert completion.versions == [(0, 5)]


def test_every_token_knows_the_entropy_it_was_drawn_under(decoder: Decoder) -> None:
    requests = make_requests([5], num_samples=2)
    sampling = Sampling(10, temperature=0.7, top_k=5)
    for completion in NativeEngine(decoder).generate(requests, sampling, SEED)[0]:
        logits = logits_after(decoder, requests[0].prompt_ids, completion.ids) / 0.7
        expected = torch.distributions.Categorical(logits=logits).entropy()
        assert completion.entropies == pytest.approx(expected.tolist(), abs=1e-4)
