"""Over a real socket: the official client, clients that vanish, and the end on SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import openai
import pytest
from serving_helpers import Script, ServeHttp, ask, wait_until

TURN: Any = [{"role": "user", "content": "What is 3 + 4?"}]
THOUGHT = "<think>\n3 and 4, 数 👋🏽\n</think>\n\nIt is 7."


@pytest.fixture
def client(serve_http: ServeHttp) -> Iterator[openai.OpenAI]:
    with serve_http(api_key="k") as url, openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        yield client


def test_chat_whole(client: openai.OpenAI, script: Script) -> None:
    script(THOUGHT)
    reply = client.chat.completions.create(model="mini-qwen", messages=TURN, logprobs=True, top_logprobs=1)
    message: Any = reply.choices[0].message
    assert (message.content, message.reasoning_content, message.reasoning) == (
        "It is 7.",
        "3 and 4, 数 👋🏽",
        "3 and 4, 数 👋🏽",
    )
    assert reply.usage is not None and reply.usage.completion_tokens_details is not None
    assert reply.usage.completion_tokens_details.reasoning_tokens
    assert reply.choices[0].logprobs is not None and reply.choices[0].logprobs.content


def test_chat_streamed(client: openai.OpenAI, script: Script) -> None:
    script(THOUGHT)
    said = {"content": "", "reasoning_content": "", "reasoning": ""}
    usage = None
    stream = client.chat.completions.create(
        model="mini-qwen", messages=TURN, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            for name in said:
                said[name] += getattr(choice.delta, name, None) or ""
    assert said == {
        "content": "It is 7.",
        "reasoning_content": "3 and 4, 数 👋🏽",
        "reasoning": "3 and 4, 数 👋🏽",
    }
    assert usage is not None and usage.completion_tokens > 0


def test_stream_helper_thinking_off_and_the_next_turn(client: openai.OpenAI, script: Script) -> None:
    script("7")
    with client.chat.completions.stream(
        model="mini-qwen", messages=TURN, extra_body={"chat_template_kwargs": {"thinking": False}}
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    assert message.content == "7"
    turns = [*TURN, {"role": "assistant", "content": message.content}, *TURN]
    assert client.chat.completions.create(model="mini-qwen", messages=turns).choices[0].message.content == "7"


def test_completions_and_models(client: openai.OpenAI, script: Script) -> None:
    script("one", "two")
    body = client.completions.create(model="mini-qwen", prompt="x", n=2, stop="t")
    assert [choice.text for choice in body.choices] == ["one", ""]
    chunks = client.completions.create(model="mini-qwen", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "one"
    assert [model.id for model in client.models.list()] == ["mini-qwen"]
    assert client.models.retrieve("mini-qwen").owned_by == "ponder"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=TURN)
    sent_back: Any = [*TURN, {"role": "assistant", "content": "7", "reasoning_content": "hm"}, *TURN]
    with pytest.raises(openai.BadRequestError, match="reasoning_content"):
        client.chat.completions.create(model="mini-qwen", messages=sent_back)
    with pytest.raises(openai.AuthenticationError, match="PONDER_API_KEY"):
        client.with_options(api_key="wrong").models.list()


def connect(url: str, body: dict[str, Any]) -> socket.socket:
    """Send a request by hand, so that the connection can be dropped at any moment."""
    address = urlsplit(url)
    text = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n"
    )
    made = socket.create_connection((address.hostname, address.port), timeout=120)
    made.sendall(head.encode() + text)
    return made


def metric(url: str, name: str) -> float:
    text = urlopen(f"{url}/metrics", timeout=120).read().decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_its_slot(serve_http: ServeHttp, script: Script, slow: None, stream: bool) -> None:
    script("word " * 500)  # ten seconds
    with serve_http(concurrency=1, queue=0) as url:
        leaving = connect(url, ask(stream=stream))
        wait_until(lambda: metric(url, "ponder_replies_running") == 1)
        if stream:
            assert leaving.recv(100)
        leaving.close()
        wait_until(lambda: metric(url, "ponder_replies_running") == 0)
        assert metric(url, "ponder_cancelled_total") == 1
        after = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert after.chat.completions.create(model="mini-qwen", messages=TURN, max_tokens=2).usage is not None


def test_many_streams_at_once_say_what_one_says_alone(serve_http: ServeHttp) -> None:
    with serve_http(concurrency=8, queue=32) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def ask_once() -> str:
            stream = client.chat.completions.create(
                model="mini-qwen", messages=TURN, temperature=0, max_tokens=20, stream=True
            )
            return "".join(c.delta.content or "" for chunk in stream for c in chunk.choices)

        alone, said = ask_once(), []
        threads = [threading.Thread(target=lambda: said.append(ask_once())) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert said == [alone] * 24
        assert metric(url, "ponder_replies_running") == 0


def test_sigterm_lets_running_replies_end_and_takes_no_new_ones(repository: Path) -> None:
    code = "import sys; sys.argv = ['ponder', 'serve', 'mini-qwen', '--port', '0']; from ponder.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    environment.pop("PONDER_API_KEY", None)
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split(" at ")[1].strip().removesuffix("/v1")
            messages = [{"role": "user", "content": "Who are you?"}]
            with connect(url, ask(messages=messages, stream=True, n=16, temperature=2, max_tokens=400)) as running:
                received = running.recv(1000)
                process.send_signal(signal.SIGTERM)
                while part := running.recv(65536):
                    received += part
            assert b"data: [DONE]" in received
            assert process.wait(120) == 0
            with pytest.raises(OSError):
                connect(url, ask())
        finally:
            process.kill()
