"""What the tests of the server share besides fixtures."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from starlette.testclient import TestClient

Serve = Callable[..., AbstractContextManager[TestClient]]
ServeHttp = Callable[..., AbstractContextManager[str]]
Script = Callable[..., None]


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Look again until the condition holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.01)


def ask(**fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "mini-qwen", "messages": [{"role": "user", "content": "What is 3 + 4?"}], **fields}
