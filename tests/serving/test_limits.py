"""Who is let in, how much they may send, and how long it may take."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from serving_helpers import Script, Serve, ask, wait_until
from starlette.types import Message, Receive, Scope, Send

from ponder.errors import UsageError
from ponder.serving import limits
from ponder.serving.limits import BodyLimit, check_address
from ponder.serving.settings import ServeSettings


def test_other_addresses_need_a_key() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        check_address(ServeSettings(host=host))
    for host in ("0.0.0.0", "192.168.1.2", "::"):
        with pytest.raises(UsageError, match="PONDER_API_KEY"):
            check_address(ServeSettings(host=host))
        check_address(ServeSettings(host=host, api_key="k"))


def test_key_is_asked_for_everywhere_but_health(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def constant_time(a: bytes, b: bytes) -> bool:
        compared.append(a)
        return a == b

    monkeypatch.setattr(limits.hmac, "compare_digest", constant_time)
    with serve(api_key="geheim-数") as client:
        assert client.get("/health").status_code == 200
        basic = base64.b64encode("me:geheim-数".encode()).decode()
        wrong = ["", "Bearer", "Bearer nope", "geheim-数", "Basic !!", f"Digest {basic}"]
        for path in ("/v1/models", "/metrics", "/api/anything", "/"):
            for header in wrong:
                response = client.get(path, headers={"Authorization": header.encode()})
                assert response.status_code == 401, (path, header)
                assert response.json()["error"]["code"] == "invalid_api_key"
        assert client.post("/v1/chat/completions", json=ask()).status_code == 401
        right = ["Bearer geheim-数", "bearer  geheim-数", f"Basic {basic}"]
        for header in right:
            assert client.get("/v1/models", headers={"Authorization": header.encode()}).status_code == 200
        assert client.get("/v1/models").headers["www-authenticate"].startswith("Bearer")
        assert client.get("/").headers["www-authenticate"].startswith("Basic")
    assert "geheim-数".encode() in compared


def test_without_a_key_only_this_machines_names_are_answered(serve: Serve) -> None:
    with serve() as client:
        for host in ("127.0.0.1", "127.0.0.1:8000", "localhost:8000", "[::1]:8000", "[::1]"):
            assert client.get("/health", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
            assert client.get("/health", headers={"Host": host}).status_code == 400, host


def test_a_form_from_another_page_is_no_request(serve: Serve) -> None:
    with serve() as client:
        response = client.post("/v1/chat/completions", content=b"{}", headers={"Content-Type": "text/plain"})
        assert response.status_code == 400


def test_large_bodies_are_refused(serve: Serve) -> None:
    with serve(max_body_bytes=500) as client:
        assert client.post("/v1/chat/completions", json=ask(user="x" * 600)).status_code == 413
        # one that does not say how long it is
        response = client.post("/v1/chat/completions", content=iter([b"x" * 300, b"x" * 300]))
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert client.post("/v1/chat/completions", json=ask(max_tokens=1)).status_code == 200


def test_a_body_that_does_not_come_gets_408() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("passed on")

    async def receive() -> Message:
        await asyncio.sleep(600)
        raise AssertionError("waited")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(BodyLimit(never, ServeSettings(body_timeout_s=0.05))(scope, receive, send))
    assert sent[0]["status"] == 408


def test_prompt_and_reply_lengths_are_limited(serve: Serve) -> None:
    with serve(max_prompt_tokens=5, max_tokens=7) as client:
        response = client.post("/v1/chat/completions", json=ask())
        assert response.json()["error"]["code"] == "context_length_exceeded"
        completion = {"model": "mini-qwen", "prompt": "User:", "temperature": 0}
        assert client.post("/v1/completions", json={**completion, "max_tokens": 8}).status_code == 400
        usage = client.post("/v1/completions", json=completion).json()["usage"]
        assert usage["completion_tokens"] <= 7


def test_beyond_places_and_queue_requests_get_429(serve: Serve, script: Script, slow: None) -> None:
    script("word " * 300)
    with serve(concurrency=1, queue=1) as client:
        assert client.post("/v1/chat/completions", json=ask(n=3)).status_code == 400
        with (
            client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as first,
            client.stream("POST", "/v1/chat/completions", json=ask(stream=True)) as second,
        ):
            assert first.status_code == second.status_code == 200
            refused = client.post("/v1/chat/completions", json=ask())
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["type"] == "rate_limit_error"
        wait_until(lambda: client.app.state.gate.inside == 0)  # type: ignore[attr-defined]
        assert client.post("/v1/chat/completions", json=ask(max_tokens=1)).status_code == 200


def test_the_deadline_ends_replies_whole_or_streamed(serve: Serve, script: Script, slow: None) -> None:
    script("word " * 300)
    with serve(timeout_s=0.3) as client:
        response = client.post("/v1/chat/completions", json=ask())
        assert response.status_code == 504
        assert response.json()["error"]["type"] == "timeout_error"
    with serve(timeout_s=2) as client:  # in which at least a word comes
        streamed = client.post("/v1/chat/completions", json=ask(stream=True)).text
        assert '"content":"w' in streamed
        assert '"timeout_error"' in streamed
        assert "[DONE]" not in streamed
        wait_until(lambda: "ponder_replies_running 0.0" in client.get("/metrics").text)


def test_while_stopping_nobody_is_let_in(serve: Serve) -> None:
    with serve() as client:
        app: Any = client.app
        app.state.gate.stopping = True
        response = client.post("/v1/chat/completions", json=ask())
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "stopping"
        assert client.get("/health").status_code == 503


def test_what_is_refused_holds_no_place(serve: Serve) -> None:
    with serve(concurrency=1, queue=0) as client:
        for _ in range(3):
            assert client.post("/v1/chat/completions", json=ask(model="nope")).status_code == 404
            assert client.post("/v1/completions", json={"model": "mini-qwen", "prompt": ""}).status_code == 400
        assert client.app.state.gate.inside == 0  # type: ignore[attr-defined]
        assert client.post("/v1/chat/completions", json=ask(max_tokens=1)).status_code == 200
