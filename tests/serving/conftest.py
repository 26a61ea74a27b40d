"""A small real model behind the API, made to say what a test needs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from serving_helpers import Script, Serve, ServeHttp, wait_until
from starlette.testclient import TestClient

from ponder.rollout.stepping import Stepper
from ponder.serving import generation, terminal
from ponder.serving.app import create_app
from ponder.serving.batching import Choice
from ponder.serving.models import ModelSource, ServedModel, ServedModels
from ponder.serving.settings import ServeSettings


@pytest.fixture(scope="session")
def models() -> ServedModels:
    """`mini-qwen`, which stays loaded."""
    return ServedModels({"mini-qwen": ModelSource("mini-qwen")})


@pytest.fixture(scope="session")
def qwen(models: ServedModels) -> ServedModel:
    return models.acquire("mini-qwen")


@pytest.fixture
def serve(models: ServedModels) -> Serve:
    """An app with these settings, as a client sees it."""

    @contextmanager
    def serving(served: ServedModels = models, **settings: Any) -> Iterator[TestClient]:
        app = create_app(served, ServeSettings(**settings))
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
            yield client

    return serving


@pytest.fixture
def client(serve: Serve) -> Iterator[TestClient]:
    with serve() as client:
        yield client


@pytest.fixture
def serve_http(models: ServedModels) -> ServeHttp:
    """A real server on a free port, for what only a socket shows; yields its address."""

    @contextmanager
    def serving(**settings: Any) -> Iterator[str]:
        app = create_app(models, ServeSettings(**settings))
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        server.should_exit = True
        thread.join(120)
        assert not thread.is_alive()

    return serving


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Make the model say `text` (or these ids), then end; a reply of several takes the next text each."""

    real = generation.make_choices

    def scripted(*texts: str | Sequence[int], ends: bool = True) -> None:
        def make_choices(model: ServedModel, *rest: Any) -> list[Choice]:
            choices = real(model, *rest)
            tokenizer = model.loaded.tokenizer
            for choice in choices:
                text = texts[choice.index % len(texts)]
                choice.sequence.forced.extend(tokenizer.encode(text) if isinstance(text, str) else text)
                choice.sequence.forced.extend(tokenizer.eos_ids[:1] if ends else ())
            return choices

        monkeypatch.setattr(generation, "make_choices", make_choices)
        monkeypatch.setattr(terminal, "make_choices", make_choices)

    return scripted


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes 20 ms, so that a long reply is still under way when a test looks."""
    step = Stepper.step

    def slow_step(self: Stepper) -> Any:
        time.sleep(0.02)
        return step(self)

    monkeypatch.setattr(Stepper, "step", slow_step)
