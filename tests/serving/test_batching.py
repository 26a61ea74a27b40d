"""The worker thread: who is let in, who is let go, and what happens when a model fails."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import pytest
from serving_helpers import wait_until

from ponder.model.decoder import Decoder
from ponder.serving.batching import Batcher, Event, Failure, Job
from ponder.serving.generation import Prompt, Wish, make_choices
from ponder.serving.models import ServedModel


class Client:
    """A job and what it was told."""

    def __init__(self, model: ServedModel, text: str = "User: 3 + 4?\nAssistant:", **wish: Any) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ids = tuple(model.loaded.tokenizer.encode_prompt(text))
        self.choices = make_choices(model, [Prompt(ids, text)], Wish(**{"max_tokens": 30, **wish}))
        self.job = Job(model.loaded.decoder, self.choices, self.events.put)

    @property
    def has_ended(self) -> bool:
        return all(choice.finish_reason is not None for choice in self.choices)


def endless(model: ServedModel, **wish: Any) -> Client:
    """A client whose replies go on to their limit."""
    client = Client(model, **{"max_tokens": 900, **wish})
    for choice in client.choices:
        choice.stop_ids = frozenset()
    return client


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    made = Batcher(concurrency=2, cache_bytes=2**30)
    yield made
    made.close()
    assert not made.is_alive


def test_greedy_text_is_that_of_generate_however_many_share_the_batch(batcher: Batcher, qwen: ServedModel) -> None:
    import ponder

    prompts = ["User: What is 3 + 4?\nAssistant:", "User: Who are you?\nAssistant:", "User: 你好\nAssistant:"]
    expected = [texts[0] for texts in ponder.load("mini-qwen").generate(prompts, temperature=0, max_tokens=30)]
    clients = [Client(qwen, prompt, temperature=0) for prompt in prompts]
    for client in clients:
        batcher.submit(client.job)
    wait_until(lambda: all(client.has_ended for client in clients))
    assert [qwen.loaded.tokenizer.decode(c.choices[0].sequence.ids) for c in clients] == expected


def test_seeded_samples_are_those_of_generate(batcher: Batcher, qwen: ServedModel) -> None:
    import ponder

    prompt = "User: What is 3 + 4?\nAssistant:"
    expected = ponder.load("mini-qwen").generate(prompt, n=3, temperature=1.0, top_p=0.9, max_tokens=30, seed=7)[0]
    client = Client(qwen, prompt, n=3, temperature=1.0, top_p=0.9, seed=7)
    batcher.submit(client.job)
    wait_until(lambda: client.has_ended)
    assert [qwen.loaded.tokenizer.decode(choice.sequence.ids) for choice in client.choices] == expected


def test_third_waits_until_a_place_is_free(slow: None, batcher: Batcher, qwen: ServedModel) -> None:
    first, second, third = endless(qwen), endless(qwen), Client(qwen, max_tokens=2)
    for client in (first, second, third):
        batcher.submit(client.job)
    wait_until(lambda: batcher.num_running == 2 and batcher.num_waiting == 1)
    assert third.job.completion_tokens == 0
    batcher.cancel(first.job)
    wait_until(lambda: third.has_ended)
    length = first.job.completion_tokens
    wait_until(lambda: second.job.completion_tokens > length + 3)
    assert first.job.completion_tokens == length
    batcher.cancel(second.job)
    wait_until(lambda: batcher.num_running == 0)


def test_a_job_may_leave_while_it_waits_and_after_it_has_ended(batcher: Batcher, qwen: ServedModel) -> None:
    running, waiting = endless(qwen, n=2), Client(qwen)
    batcher.submit(running.job)
    batcher.submit(waiting.job)
    batcher.cancel(waiting.job)
    batcher.cancel(running.job)
    batcher.cancel(running.job)
    after = Client(qwen, max_tokens=2)
    batcher.submit(after.job)
    wait_until(lambda: after.has_ended)
    assert waiting.job.completion_tokens == 0


def test_cache_bound_lets_one_in_at_a_time(slow: None, qwen: ServedModel) -> None:
    batcher = Batcher(concurrency=8, cache_bytes=1)
    clients = [Client(qwen, max_tokens=3) for _ in range(3)]
    for client in clients:
        batcher.submit(client.job)
    seen = set()
    wait_until(lambda: seen.add(batcher.num_running) or all(client.has_ended for client in clients))
    assert max(seen) == 1
    batcher.close()


def test_a_model_that_fails_fails_its_jobs_and_not_the_worker(
    batcher: Batcher, qwen: ServedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "hidden", broken)
        client = Client(qwen)
        batcher.submit(client.job)
        assert isinstance(client.events.get(timeout=120), Failure)
    again = Client(qwen)
    batcher.submit(again.job)
    wait_until(lambda: again.has_ended)
    assert "out of memory" in caplog.text


def test_closing_fails_what_is_under_way(slow: None, qwen: ServedModel) -> None:
    batcher = Batcher(concurrency=2, cache_bytes=2**30)
    client = endless(qwen)
    batcher.submit(client.job)
    wait_until(lambda: batcher.num_running == 1)
    batcher.close()
    events = []
    while not client.events.empty():
        events.append(client.events.get())
    assert isinstance(events[-1], Failure)
