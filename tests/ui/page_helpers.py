"""What the tests of the page share besides fixtures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from fastapi import FastAPI
from playwright.sync_api import expect

Serve = Callable[[FastAPI], AbstractContextManager[str]]

PATIENCE_MS = 60_000
"""For whatever the page is to do: only a failure takes so long, or a very busy machine."""

expect.set_options(timeout=PATIENCE_MS)
