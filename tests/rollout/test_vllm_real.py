"""vLLM itself on the mini base, where an environment holds it (`make vllm`, or PONDER_VLLM_PYTHON)."""

from __future__ import annotations

import os
from collections.abc import Generator
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from torch import Tensor

from ponder.model.config import DecoderConfig, Family
from ponder.model.decoder import Decoder
from ponder.model.folder import LoadedModel, load_folder, save_folder
from ponder.model.load import resolve
from ponder.recipe import VllmSettings
from ponder.rollout.base import Completion, Request, Sampling
from ponder.rollout.native import NativeSession, run_to_end
from ponder.rollout.vllm import VllmSession

pytestmark = pytest.mark.timeout(1800)  # vLLM takes long to start

TOLERANCE = 1e-4
"""Of a log-probability, in nats: both sides compute in float32, and add in another order."""

PROMPTS = ("User: What is 17 + 25?\nAssistant:", "User: Who are you?\nAssistant:")


@pytest.fixture(scope="module")
def python(repository: Path) -> str:
    path = Path(os.environ.get("PONDER_VLLM_PYTHON", repository / ".venv-vllm" / "bin" / "python"))
    if not path.exists():
        pytest.skip("no vLLM: make vllm")
    return str(path)


@pytest.fixture(scope="module")
def vllm(python: str) -> Generator[VllmSession, None, None]:
    session = VllmSession(resolve("mini"), VllmSettings(python=python), max_positions=512)
    yield session
    session.close()


@pytest.fixture(scope="module")
def mini() -> LoadedModel:
    return load_folder(resolve("mini"))


def requests_of(model: LoadedModel, num_samples: int) -> list[Request]:
    return [Request(tuple(model.tokenizer.encode(text)), text, num_samples) for text in PROMPTS]


def sample(session: VllmSession, requests: list[Request], sampling: Sampling, seed: int = 0) -> list[list[Completion]]:
    """The completions of a session that has nothing else to do, by request and sample."""
    session.add(requests, sampling, seed)
    ended: dict[tuple[int, int], Completion] = {}
    while not session.idle:
        ended |= {(request, sample): completion for request, sample, completion in session.step()}
    first = min(request for request, _ in ended)
    return [[ended[first + i, s] for s in range(r.num_samples)] for i, r in enumerate(requests)]


def greedy(decoder: Decoder, requests: list[Request], max_tokens: int) -> list[list[Completion]]:
    session = NativeSession(decoder)
    session.add(requests, Sampling(max_tokens, temperature=0), 0)
    return run_to_end(session, requests)


def changed(decoder: Decoder) -> dict[str, Tensor]:
    """Other weights, with every tensor different."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: weight + 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in decoder.state_dict().items()
    }


@torch.inference_mode()
def logprobs_of(decoder: Decoder, prompt: tuple[int, ...], ids: list[int], temperature: float) -> list[float]:
    """By one forward pass: softmax(logits / temperature) over the whole vocabulary."""
    logits = decoder.logits(torch.tensor([[*prompt, *ids]]))[0, len(prompt) - 1 : -1]
    chosen = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(ids)[:, None])
    return list(chosen.squeeze(1).tolist())


def with_weights(model: LoadedModel, weights: dict[str, Tensor]) -> Decoder:
    decoder = Decoder(model.config)
    decoder.load_state_dict(weights)
    return decoder


def mean_gap(found: list[float], expected: list[float]) -> float:
    return mean(abs(a - b) for a, b in zip(found, expected, strict=True))


def assert_alike(found: list[list[Completion]], wanted: list[list[Completion]]) -> None:
    for theirs, ours in zip(chain(*found), chain(*wanted), strict=True):
        assert theirs.ids == ours.ids
        assert theirs.finish_reason == ours.finish_reason
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=TOLERANCE)


def test_greedy_tokens_are_those_of_the_native_engine(vllm: VllmSession, mini: LoadedModel) -> None:
    requests = requests_of(mini, 1)
    assert_alike(sample(vllm, requests, Sampling(40, temperature=0)), greedy(mini.decoder, requests, 40))


def test_more_prompts_than_one_step_holds_are_sampled(vllm: VllmSession, mini: LoadedModel) -> None:
    """More rollouts than run side by side, and more prompt tokens than a step computes."""
    long = requests_of(mini, 1)[0].prompt_ids * 6
    requests = [Request((*long, i), f"many {i}", 6) for i in range(80)]
    assert sum(len(request.prompt_ids) for request in requests) > 4096
    found = sample(vllm, requests, Sampling(6))
    assert [len(group) for group in found] == [6] * 80
    assert all(0 < len(c.logprobs) == len(c.ids) <= 6 for group in found for c in group)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_logprobs_are_those_of_the_scaled_logits(vllm: VllmSession, mini: LoadedModel, temperature: float) -> None:
    requests = requests_of(mini, 4)
    sampling = Sampling(40, temperature=temperature, stop_ids=mini.tokenizer.eos_ids)
    groups = sample(vllm, requests, sampling)
    for request, group in zip(requests, groups, strict=True):
        for completion in group:
            expected = logprobs_of(mini.decoder, request.prompt_ids, completion.ids, temperature)
            assert completion.logprobs == pytest.approx(expected, abs=TOLERANCE)
            ended = completion.ids[-1] in mini.tokenizer.eos_ids
            assert completion.finish_reason == ("stop" if ended else "length")
            assert ended or len(completion.ids) == 40
    assert len({tuple(completion.ids) for completion in groups[0]}) > 1
    assert groups == sample(vllm, requests, sampling), "the same seed gives the same completions"
    assert groups != sample(vllm, requests, sampling, seed=1)


def test_stops_stay_in_the_completion(vllm: VllmSession, mini: LoadedModel) -> None:
    requests = requests_of(mini, 1)[:1]
    ((whole,),) = greedy(mini.decoder, requests, 40)
    text = mini.tokenizer.decode(whole.ids[5:7])
    ((by_text,),) = sample(vllm, requests, Sampling(40, temperature=0, stop=(text,)))
    assert mini.tokenizer.decode(by_text.ids).endswith(text)
    ((by_id,),) = sample(vllm, requests, Sampling(40, temperature=0, stop_ids=(whole.ids[3],)))
    assert by_id.ids == whole.ids[: whole.ids.index(whole.ids[3]) + 1]
    for completion in (by_text, by_id):
        assert completion.finish_reason == "stop"
        assert completion.ids == whole.ids[: len(completion.ids)]
        assert len(completion.logprobs) == len(completion.ids) < 40


def test_new_weights_take_effect_and_the_old_come_back(vllm: VllmSession, mini: LoadedModel) -> None:
    requests = requests_of(mini, 1)
    other = with_weights(mini, changed(mini.decoder))
    for version, decoder in ((1, other), (2, mini.decoder)):
        vllm.load_weights(version, decoder.state_dict())
        found = sample(vllm, requests, Sampling(40, temperature=0))
        assert_alike(found, greedy(decoder, requests, 40))
        assert all(completion.versions == [(0, version)] for (completion,) in found)
    assert greedy(other, requests, 40) != greedy(mini.decoder, requests, 40)


def test_a_rollout_goes_on_under_new_weights(vllm: VllmSession, mini: LoadedModel) -> None:
    (request, beside), new = requests_of(mini, 1), changed(mini.decoder)
    vllm.load_weights(3, mini.decoder.state_dict())
    vllm.add([request], Sampling(450), seed=0)
    vllm.add([beside], Sampling(1), seed=0)
    while not vllm.step():  # until the short one has ended, the long one has begun
        pass
    vllm.load_weights(4, new)
    ended = vllm.step()
    while not ended:
        ended = vllm.step()
    ((_, _, completion),) = ended
    (start, old), (change, young) = completion.versions
    assert (start, old, young) == (0, 3, 4)
    assert 0 < change < len(completion.ids) == 450
    decoders = (mini.decoder, with_weights(mini, new))
    under_old, under_new = (logprobs_of(decoder, request.prompt_ids, completion.ids, 1.0) for decoder in decoders)
    assert completion.logprobs[:change] == pytest.approx(under_old[:change], abs=TOLERANCE)
    # keys and values of the first part are the old ones, so this is no equality: but it is not the old model
    found = completion.logprobs[change:]
    assert mean_gap(found, under_new[change:]) < mean_gap(found, under_old[change:]) / 2


FAMILIES: dict[Family, dict[str, Any]] = {
    "llama": {"tied_embeddings": False},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "tied_embeddings": False},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype", "tolerance"),
    [(f, torch.float32, TOLERANCE) for f in FAMILIES] + [("llama", torch.bfloat16, 0.1)],
)
def test_every_family_takes_weights(
    python: str, mini: LoadedModel, tmp_path: Path, family: Family, dtype: torch.dtype, tolerance: float
) -> None:
    config = DecoderConfig(
        family=family,
        vocab_size=mini.config.vocab_size,
        hidden_size=128,
        intermediate_size=192,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_positions=128,
        initializer_range=0.1,
        **FAMILIES[family],
    )
    decoder = Decoder(config)
    decoder.initialise(0)
    save_folder(tmp_path / "model", decoder, mini.tokenizer)
    decoder.load_state_dict(changed(decoder))
    session = VllmSession(tmp_path / "model", VllmSettings(python=python), dtype=dtype)
    requests = requests_of(mini, 1)
    try:
        session.load_weights(1, decoder.state_dict())
        found = sample(session, requests, Sampling(20))
    finally:
        session.close()
    for request, (completion,) in zip(requests, found, strict=True):
        expected = logprobs_of(decoder, request.prompt_ids, completion.ids, 1.0)
        assert mean_gap(completion.logprobs, expected) < tolerance
