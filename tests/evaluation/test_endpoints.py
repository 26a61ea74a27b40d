"""What an API says, made into replies that are judged like a local model's; and the log that outlives a kill."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import InterruptedRunError, UsageError
from ponder.evaluation.endpoints import EndpointSampler, whole_text
from ponder.evaluation.replies import Reply, ReplyLog
from ponder.evaluation.samplers import Wanted
from ponder.model.parser import split_thinking
from ponder.recipe import EvaluatedEndpoint, SamplingSettings
from ponder.rollout import endpoint
from ponder.tasks.base import Problem

Serve = Callable[[Callable[[dict[str, Any]], tuple[int, str] | None]], str]

SAMPLING = SamplingSettings(temperature=0.6, top_p=0.95, max_tokens=99, stop=("END",))
PROBLEMS = [Problem("t", f"What is {n}?", str(n), f"{n}", id=f"p{n}") for n in range(3)]
WANTED = [Wanted(problem, (0, 1)) for problem in PROBLEMS]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(endpoint, "GRACE_S", 0.3)


def completion(content: Any = "4", finish: str | None = "stop", usage: Any = None, **message: Any) -> tuple[int, str]:
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    return 200, json.dumps({"choices": [choice], "usage": usage})


def ask(url: str, wanted: list[Wanted] = WANTED, **settings: Any) -> list[Reply]:
    sampler = EndpointSampler(EvaluatedEndpoint(base_url=url, model="m", **{"retries": 3, "timeout_s": 60, **settings}))
    replies: list[Reply] = []
    sampler.sample(wanted, SAMPLING, 5, "stage", replies.extend)
    return sorted(replies, key=lambda reply: (reply.problem, reply.sample))


def test_each_sample_is_a_request_of_its_own_with_the_settings_and_a_seed(chat_server: Serve) -> None:
    seen: list[dict[str, Any]] = []

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        seen.append(request)
        return completion(usage={"prompt_tokens": 7, "completion_tokens": 3})

    url = chat_server(answer)
    replies = ask(url)
    assert [(reply.problem, reply.sample) for reply in replies] == [(f"p{n}", s) for n in range(3) for s in (0, 1)]
    assert {(reply.text, reply.finish_reason, reply.length, reply.prompt_tokens) for reply in replies} == {
        ("4", "stop", 3, 7)
    }
    settings = ("model", "temperature", "top_p", "max_tokens", "stop")
    assert {tuple(map(str, (request[name] for name in settings))) for request in seen} == {
        ("m", "0.6", "0.95", "99", "['END']")
    }
    seeds = {request["seed"] for request in seen}
    assert len(seeds) == 6
    assert {request["messages"][0]["content"] for request in seen} == {problem.prompt for problem in PROBLEMS}
    seen.clear()
    ask(url)
    assert {request["seed"] for request in seen} == seeds


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thinking_that_comes_apart_is_never_judged(chat_server: Serve, field: str) -> None:
    url = chat_server(lambda request: completion("\\boxed{4}", **{field: "2 + 2, so \\boxed{5}"}))
    split = split_thinking(ask(url)[0].text)
    assert (split.thinking, split.answer) == ("2 + 2, so \\boxed{5}", "\\boxed{4}")


def test_what_was_cut_in_its_thinking_has_no_answer(chat_server: Serve) -> None:
    url = chat_server(lambda request: completion(None, "length", reasoning_content="still going"))
    reply = ask(url)[0]
    assert reply.finish_reason == "length"
    assert split_thinking(reply.text).answer == ""  # which no verifier accepts, and the cut makes it unfinished


@given(st.text(), st.text())
def test_thinking_cannot_pass_for_the_answer(reasoning: str, content: str) -> None:
    split = split_thinking(whole_text("x" + reasoning, content))
    assert split.answer is None or split.answer in (content.strip(), split_thinking(content).answer)
    assert reasoning.strip().replace("</think>", "</ think>") in split.thinking or "<" in reasoning


def test_a_closing_tag_in_the_thinking_closes_nothing() -> None:
    split = split_thinking(whole_text("a </think> \\boxed{1} </th</think>ink> \\boxed{2}", "\\boxed{3}"))
    assert split.answer == "\\boxed{3}"


def test_tags_in_the_text_itself_count() -> None:
    for text in ("<think>\nhm\n</think>\nfour", "hm</think>four"):
        split = split_thinking(whole_text("", text))
        assert (split.thinking, split.answer) == ("hm", "four")
    assert whole_text("", "just four") == "just four"


def test_every_passing_failure_is_tried_again(chat_server: Serve) -> None:
    failures: list[tuple[int, str] | None] = [(429, "{}"), (500, "{}"), None, (200, "{"), (200, '{"choices": []}')]

    def answer(request: dict[str, Any]) -> tuple[int, str] | None:
        return failures.pop() if failures else completion()

    replies = ask(chat_server(answer), concurrency=2, retries=5)
    assert (len(replies), failures) == (6, [])


def test_replies_that_came_are_kept_when_the_endpoint_fails(chat_server: Serve) -> None:
    count = 0

    def answer(request: dict[str, Any]) -> tuple[int, str]:
        nonlocal count
        count += 1
        return completion() if count <= 4 else (503, "{}")

    kept: list[Reply] = []
    sampler = EndpointSampler(EvaluatedEndpoint(base_url=chat_server(answer), model="m", retries=1, concurrency=1))
    with pytest.raises(InterruptedRunError, match=r"HTTP error 503.*run the same command again"):
        sampler.sample(WANTED, SAMPLING, 5, "stage", kept.extend)
    assert len(kept) == 4


def test_one_refused_prompt_is_wrong_and_the_others_go_on(chat_server: Serve) -> None:
    def answer(request: dict[str, Any]) -> tuple[int, str]:
        too_long = request["messages"][0]["content"] == "What is 1?"
        return (400, '{"error": {"message": "prompt too long"}}') if too_long else completion()

    replies = ask(chat_server(answer))
    assert [reply.refusal is not None for reply in replies] == [False, False, True, True, False, False]
    assert "prompt too long" in str(replies[2].refusal)


def test_where_most_are_refused_the_settings_are_at_fault(chat_server: Serve) -> None:
    url = chat_server(lambda request: (400, '{"error": {"message": "max_tokens is too large"}}'))
    with pytest.raises(UsageError, match=r"refuses 6 of 6 requests \(.*max_tokens is too large.*sampling\.max_tokens"):
        ask(url)


def test_an_endpoint_that_does_not_count_leaves_the_length_open(chat_server: Serve) -> None:
    for usage in (None, {}, {"completion_tokens": "many"}, {"completion_tokens": True}):
        url = chat_server(lambda request, usage=usage: completion(usage=usage))  # type: ignore[misc]
        assert ask(url, WANTED[:1])[0].length is None


# --- the log -----------------------------------------------------------------------------------------------------

REPLIES = [Reply("p", n, f"line\nbreak \u2028 {n}", "stop", n, None) for n in range(3)]


def test_the_log_gives_back_what_was_added(tmp_path: Path) -> None:
    log = ReplyLog(tmp_path / "log.jsonl")
    assert log.read() == {}
    log.add(REPLIES[:2])
    log.add(REPLIES[2:])
    log.add([])
    assert list(ReplyLog(log.path).read().values()) == REPLIES


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_that_was_cut_short_is_dropped_for_good(tmp_path: Path, cut: int) -> None:
    log = ReplyLog(tmp_path / "log.jsonl")
    log.add(REPLIES)
    log.path.write_bytes(log.path.read_bytes()[:-cut])
    assert list(log.read().values()) == REPLIES[:2]
    log.add(REPLIES[2:])
    assert list(log.read().values()) == REPLIES
