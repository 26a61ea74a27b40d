"""The client of an endpoint, against servers on this machine that fail in every way."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ponder.curation.endpoint import Endpoint
from ponder.errors import InterruptedRunError, UsageError
from ponder.recipe import EndpointSettings
from ponder.rollout import endpoint

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """A server on a free port; `answer` handles each parsed request."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *request: object) -> None:
            """A client that has given up is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, body: str, status: int = 200, kind: str = "application/json") -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body.encode())))
    handler.end_headers()
    handler.wfile.write(body.encode())


def completion(content: str | None) -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]})


def client(url: str, **settings: Any) -> Endpoint:
    return Endpoint(EndpointSettings.model_validate({"base_url": url, "model": "m", "timeout_s": 60, **settings}))


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", "another service's key")


def test_replies_come_in_order_with_progress_and_with_the_settings_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")  # no key at all is fine, too
    seen: list[dict[str, Any]] = []

    def echo(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        seen.append(request)
        text = request["messages"][-1]["content"]
        time.sleep(0.05 if text == "0" else 0)  # the first to be asked is the last to be answered
        send(handler, completion(f"<{text}>"))

    counted: list[int] = []
    with serving(echo) as url:
        replies = client(url, temperature=0.5, max_tokens=7).ask_all([user(str(n)) for n in range(6)], counted.append)
    assert replies == [f"<{n}>" for n in range(6)]
    assert sum(counted) == 6
    assert {(r["model"], r["temperature"], r["max_tokens"]) for r in seen} == {("m", 0.5, 7)}


def test_no_more_requests_at_once_than_the_recipe_allows() -> None:
    changed, running, most = threading.Condition(), 0, 0

    def slow(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        nonlocal running, most
        with changed:
            running += 1
            most = max(most, running)
            changed.notify_all()
            changed.wait_for(lambda: most >= 3, timeout=60)  # the first wait for one another
        time.sleep(0.03)
        with changed:
            running -= 1
        send(handler, completion("x"))

    with serving(slow) as url:
        client(url, concurrency=3).ask_all([user("x")] * 9)
    assert most == 3


def test_the_key_comes_from_its_variable_and_from_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str | None] = []

    def note(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        keys.append(handler.headers["Authorization"])
        send(handler, completion("x"))

    monkeypatch.setenv("MY_KEY", "secret")
    with serving(note) as url:
        client(url).ask(user("x"))
        client(url, api_key_env="MY_KEY").ask(user("x"))
        monkeypatch.delenv("MY_KEY")
        with pytest.raises(UsageError, match="MY_KEY is not set"):
            client(url, api_key_env="MY_KEY")
    assert keys == [None, "Bearer secret"]


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (500, "{}", "application/json"),
        (429, "slow down", "text/plain"),
        (200, "<html>a proxy</html>", "text/html"),
        (200, "{", "application/json"),
        (200, '{"choices": []}', "application/json"),
        (200, "[" * 100_000, "application/json"),
    ],
)
def test_what_may_pass_is_tried_again(status: int, body: str, kind: str) -> None:
    tries = 0

    def fail_twice(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            send(handler, body, status, kind)
        else:
            send(handler, completion("at last"))

    with serving(fail_twice) as url:
        assert client(url, retries=2).ask(user("x")) == "at last"
        tries = 0
        with pytest.raises(InterruptedRunError, match="tried 2 times"):
            client(url, retries=1).ask(user("x"))


@pytest.mark.parametrize(("status", "setting"), [(401, "api_key_env"), (404, "model or base_url")])
def test_what_the_settings_cause_is_said_at_once(status: int, setting: str) -> None:
    tries = []

    def refuse(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        tries.append(1)
        send(handler, "{}", status)

    with serving(refuse) as url, pytest.raises(UsageError, match=f"{status}: see its `{setting}`"):
        client(url).ask(user("x"))
    assert len(tries) == 1


def test_a_request_that_is_refused_or_answered_by_nothing_costs_the_others_nothing() -> None:
    def choose(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        text = request["messages"][-1]["content"]
        if text == "too long":
            send(handler, "{}", 400)
        else:
            send(handler, completion(None if text == "thought for ever" else text))

    with serving(choose) as url:
        assert client(url).ask_all([user("too long"), user("thought for ever"), user("fine")]) == ["", "", "fine"]


def test_a_server_that_never_answers_is_given_up() -> None:
    with (
        serving(lambda handler, request: time.sleep(600)) as url,
        pytest.raises(InterruptedRunError, match=r"no reply within 0\.1 s"),
    ):
        client(url, timeout_s=0.1, retries=1).ask(user("x"))


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte starts the time-out of a read anew: only the deadline for everything ends this."""

    def trickle(handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(900):
            handler.wfile.write(b" ")
            time.sleep(0.05)

    monkeypatch.setattr(endpoint, "GRACE_S", 0.3)
    with serving(trickle) as url, pytest.raises(InterruptedRunError, match="no reply within 0 s"):
        client(url, timeout_s=0.1, retries=0).ask(user("x"))


def test_an_address_where_nobody_listens_is_said() -> None:
    with pytest.raises(InterruptedRunError, match=r"127\.0\.0\.1:9/v1 fails: the connection failed.*run the same"):
        client("http://127.0.0.1:9/v1", retries=0).ask(user("x"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UsageError, match=r"ponder\[endpoint\]"):
        client("http://127.0.0.1:9/v1")
