"""Chat and plain completions: what a request may say, and what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_helpers import Script, Serve, ask
from starlette.testclient import TestClient

THOUGHT = "<think>\n3 and 4, 数 👋🏽\n</think>\n\nIt is 7."


def events(response: Any) -> list[dict[str, Any]]:
    """The JSON of each event; the stream must end with [DONE]."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def joined(chunks: list[dict[str, Any]], index: int = 0) -> dict[str, str]:
    texts = {"content": "", "reasoning_content": "", "reasoning": ""}
    for choice in (c for chunk in chunks for c in chunk["choices"] if c["index"] == index):
        if choice["delta"].get("restart"):
            texts["content"] = ""
        for name in texts:
            texts[name] += choice["delta"].get(name) or ""
    return texts


def test_reply_has_thinking_under_both_names_and_counts(client: TestClient, script: Script) -> None:
    script(THOUGHT)
    body = client.post("/v1/chat/completions", json=ask()).json()
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "It is 7.",
        "reasoning_content": "3 and 4, 数 👋🏽",
        "reasoning": "3 and 4, 数 👋🏽",
    }
    assert choice["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens_details"]["reasoning_tokens"] < usage["completion_tokens"]
    assert body["object"] == "chat.completion"
    assert body["model"] == "mini-qwen"


words = ["<think>", "</think>", "<answer>", "</answer>", "<th", " ", "\n", "数", "👋🏽", "wait", "<"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(st.sampled_from(words), max_size=12))
def test_stream_says_what_the_whole_says(client: TestClient, script: Script, parts: list[str]) -> None:
    script("".join(parts))
    whole = client.post("/v1/chat/completions", json=ask()).json()
    chunks = events(client.post("/v1/chat/completions", json=ask(stream=True, stream_options={"include_usage": True})))
    message, said = whole["choices"][0]["message"], joined(chunks)
    assert said["content"] == message["content"]
    assert said["reasoning_content"] == said["reasoning"] == (message["reasoning_content"] or "")
    reasons = [c["finish_reason"] for chunk in chunks for c in chunk["choices"]]
    assert [reason for reason in reasons if reason] == [whole["choices"][0]["finish_reason"]]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("said", "thinking", "content", "finish"),
    [
        ("just 7", None, "just 7", "stop"),
        ("<think>\n\n</think>\n\n7", None, "7", "stop"),
        ("<think>3 and 4", "3 and 4", "", "length"),
        ("<think>a</think> so <answer>7</answer> end", "a", "7", "stop"),
        ("", None, "", "stop"),
    ],
)
def test_no_tag_empty_block_missing_close(
    client: TestClient, script: Script, said: str, thinking: str | None, content: str, finish: str
) -> None:
    script(said)
    (choice,) = client.post("/v1/chat/completions", json=ask()).json()["choices"]
    message = choice["message"]
    assert (message["reasoning_content"], message["content"]) == (thinking, content)
    assert choice["finish_reason"] == finish


@pytest.mark.parametrize(
    "off",
    [
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "enabled", "budget_tokens": 0}},
        {"chat_template_kwargs": {"thinking": False}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ],
)
def test_thinking_off_closes_the_block_in_the_prompt(client: TestClient, script: Script, off: dict[str, Any]) -> None:
    script("7 <think>")
    on = client.post("/v1/chat/completions", json=ask()).json()
    body = client.post("/v1/chat/completions", json=ask(**off)).json()
    assert body["choices"][0]["message"]["content"] == "7 <think>"  # a tag that opens nothing any more
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert body["usage"]["prompt_tokens"] > on["usage"]["prompt_tokens"]


def test_budget_closes_the_block_and_the_answer_follows(client: TestClient, script: Script) -> None:
    script("<think>one two three", ends=False)
    thinking = {"type": "enabled", "budget_tokens": 4}
    body = client.post("/v1/chat/completions", json=ask(thinking=thinking, temperature=0)).json()
    (choice,), usage = body["choices"], body["usage"]
    assert choice["message"]["reasoning_content"].startswith("one")
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"]
    # the script goes on for a few tokens, since what is forced comes first; then the block is closed
    assert usage["completion_tokens_details"]["reasoning_tokens"] < 20


def test_n_stop_and_max_tokens(client: TestClient, script: Script) -> None:
    script("one END two", "three")
    body = client.post("/v1/chat/completions", json=ask(n=2, stop="END")).json()
    assert [c["message"]["content"] for c in body["choices"]] == ["one ", "three"]
    assert [c["finish_reason"] for c in body["choices"]] == ["stop", "stop"]
    chunks = events(client.post("/v1/chat/completions", json=ask(n=2, stop=["END"], stream=True)))
    assert [joined(chunks, i)["content"] for i in (0, 1)] == ["one ", "three"]
    for name in ("max_tokens", "max_completion_tokens"):
        body = client.post("/v1/chat/completions", json=ask(**{name: 2})).json()
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 2


def test_seed_repeats_and_temperature_zero_is_greedy(client: TestClient) -> None:
    def said(**fields: Any) -> str:
        choice = client.post("/v1/chat/completions", json=ask(max_tokens=20, **fields)).json()["choices"][0]
        return choice["message"]["content"] + str(choice["message"]["reasoning"])

    assert said(seed=1, temperature=2) == said(seed=1, temperature=2)
    assert said(seed=1, temperature=2) != said(seed=2, temperature=2)
    assert said(temperature=0) == said(temperature=0)


def test_logprobs_keep_thinking_apart_and_spell_the_text(client: TestClient, script: Script) -> None:
    script(THOUGHT)
    fields = ask(logprobs=True, top_logprobs=2)
    whole = client.post("/v1/chat/completions", json=fields).json()["choices"][0]["logprobs"]
    assert b"".join(bytes(t["bytes"] or []) for t in whole["content"]).decode().strip() == "It is 7."
    assert whole["reasoning_content"][0]["token"] == "<think>"
    for token in whole["content"]:
        assert token["logprob"] <= 0
        assert len(token["top_logprobs"]) == 2
        assert token["top_logprobs"][0]["logprob"] >= max(token["logprob"], token["top_logprobs"][1]["logprob"])
    streamed: dict[str, list[Any]] = {"content": [], "reasoning_content": []}
    for chunk in events(client.post("/v1/chat/completions", json={**fields, "stream": True})):
        for choice in chunk["choices"]:
            for name in streamed:
                streamed[name] += (choice.get("logprobs") or {}).get(name) or []
    assert {name: [t["token"] for t in tokens] for name, tokens in streamed.items()} == {
        name: [t["token"] for t in whole[name]] for name in streamed
    }


def test_completions_continue_text_as_it_is(client: TestClient, script: Script) -> None:
    script("<think>a</think> b", "c")
    fields = {"model": "mini-qwen", "prompt": ["x", "y"], "max_tokens": 50, "logprobs": 1}
    body = client.post("/v1/completions", json=fields).json()
    assert [c["text"] for c in body["choices"]] == ["<think>a</think> b", "c"]
    logprobs = body["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == "<think>a</think> b"
    assert logprobs["text_offset"][:2] == [0, len("<think>")]
    chunks = events(client.post("/v1/completions", json={**fields, "stream": True}))
    for index, text in enumerate(["<think>a</think> b", "c"]):
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(part["text"] for part in parts) == text
        assert [o for part in parts for o in part["logprobs"]["text_offset"]] == (
            body["choices"][index]["logprobs"]["text_offset"]
        )


def test_completions_take_ids_and_default_to_sixteen_tokens(client: TestClient) -> None:
    for prompt in ([5, 6, 7], [[5, 6], [7]]):
        response = client.post("/v1/completions", json={"model": "mini-qwen", "prompt": prompt})
        assert response.status_code == 200
        assert response.json()["usage"]["completion_tokens"] <= 16 * len(prompt)
    assert client.post("/v1/completions", json={"model": "mini-qwen", "prompt": [99999]}).status_code == 400


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "messages"),
    (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "y", "reasoning_content": "z"},
                {"role": "user", "content": "x"},
            ]
        },
        "messages",
    ),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"messages": [{"role": "user", "content": "long " * 2000}]}, "messages"),
    ({"messages": [{"role": "system", "content": "x"}]}, "user"),
]


@pytest.mark.parametrize(("fields", "named"), REFUSED)
def test_what_cannot_be_done_is_refused_by_name(client: TestClient, fields: dict[str, Any], named: str) -> None:
    response = client.post("/v1/chat/completions", json=ask(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert named in f"{error['param']} {error['message']}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"model": ', "the body is no JSON: Expecting value at character 10"),
        ("[1]", "the body must be a JSON object, sent as Content-Type: application/json"),
        (
            json.dumps({"model": "m", "messages": []}),
            "messages: List should have at least 1 item after validation, not 0",
        ),
        (
            json.dumps({"model": "m", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            "messages.0.content.0.type: Input should be 'text'",
        ),
        (json.dumps({"model": "m", "messages": [{"role": "user"}], "stop": 5}), "stop: Input should be a valid"),
    ],
)
def test_a_body_that_makes_no_sense_is_told_where(client: TestClient, body: str, message: str) -> None:
    response = client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


def test_half_a_character_in_the_request_is_refused(client: TestClient) -> None:
    body = json.dumps(ask()).replace("What", "\\ud800")
    headers = {"content-type": "application/json"}
    assert client.post("/v1/chat/completions", content=body, headers=headers).status_code == 400
    assert client.post("/v1/chat/completions", content="{", headers=headers).status_code == 400


def test_reasoning_under_its_newer_name_is_accepted_and_not_shown(client: TestClient, script: Script) -> None:
    script("7")
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning": "z" * 500, "reasoning_content": None},
        {"role": "user", "content": "What is 3 + 4?"},
    ]
    with_past = client.post("/v1/chat/completions", json=ask(messages=turns)).json()
    assert with_past["usage"]["prompt_tokens"] < 100


def test_unknown_model_and_unknown_path(client: TestClient) -> None:
    response = client.post("/v1/chat/completions", json=ask(model="gpt-4"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert client.get("/v1/models/gpt-4").status_code == 404
    assert client.get("/v1/models/mini-qwen").json()["id"] == "mini-qwen"
    assert client.get("/nowhere").json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/chat/completions").status_code == 405


def test_health_models_metrics(client: TestClient, script: Script) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == ["mini-qwen"]
    script(THOUGHT)
    usage = client.post("/v1/chat/completions", json=ask()).json()["usage"]
    client.get("/nowhere")
    text = client.get("/metrics").text
    assert 'ponder_requests_total{path="/v1/chat/completions",status="200"} 1.0' in text
    assert 'ponder_requests_total{path="other",status="404"} 1.0' in text
    assert f'ponder_tokens_total{{kind="completion"}} {float(usage["completion_tokens"])}' in text
    assert "ponder_first_token_seconds_count 1.0" in text
    assert "ponder_replies_running 0.0" in text


# --- Open WebUI: what it sends, as its sources of 2025 and 2026 show ---------------------------------------------


def test_open_webui_lists_models_and_streams(serve: Serve, script: Script) -> None:
    with serve(api_key="k") as client:
        client.headers["Authorization"] = "Bearer k"
        listed = client.get("/v1/models").json()
        assert all(model["id"] for model in listed["data"])
        script(THOUGHT)
        request = {
            "stream": True,
            "model": "mini-qwen",
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "What is 3 + 4?"}]},
            ],
            "stream_options": {"include_usage": True},
            "user": {"name": "Ada", "id": "1", "email": "ada@example.com", "role": "admin"},
            "params": {},
        }
        assert joined(events(client.post("/v1/chat/completions", json=request)))["content"] == "It is 7."
        title = {
            "model": "mini-qwen",
            "messages": [{"role": "user", "content": "### Task:\nGenerate a title"}],
            "stream": False,
            "max_completion_tokens": 1000,
        }
        assert client.post("/v1/chat/completions", json=title).json()["choices"][0]["message"]["content"] == "It is 7."


def test_librechat_fetches_models_and_streams(serve: Serve, script: Script) -> None:
    """Its documented default parameters, with the name that a preset adds to messages."""
    with serve(api_key="k") as client:
        client.headers["Authorization"] = "Bearer k"
        assert client.get("/v1/models").json()["object"] == "list"
        script(THOUGHT)
        request = {
            "model": "mini-qwen",
            "temperature": 1,
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "user": "65f0c0ffee",
            "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [
                {"role": "system", "content": "Be kind.", "name": "Ponder"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "Hello.", "name": "Ponder", "reasoning_content": ""},
                {"role": "user", "content": "What is 3 + 4?"},
            ],
        }
        said = joined(events(client.post("/v1/chat/completions", json=request)))
        assert said["content"] == "It is 7."
        assert said["reasoning_content"].startswith("3 and 4")
