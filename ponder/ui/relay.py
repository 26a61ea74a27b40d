"""Endpoints that a person adds on the page Chat: the server asks them, since a page may only talk to its own server.

The address comes from the page, so only the person at this machine may name one: whoever could have a server fetch from
its own network would see what only that network should.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, SecretStr

from ponder.serving.endpoint import check_url, open_reply, read_events
from ponder.serving.errors import ApiError

_LOOPBACK = ("127.0.0.1", "::1")


class Address(BaseModel):
    """Where an endpoint is."""

    model_config = ConfigDict(extra="forbid")

    url: str
    """The base, as in `http://127.0.0.1:8001/v1`."""


class Relayed(Address):
    """A chat request for it."""

    key: SecretStr = SecretStr("")
    request: dict[str, Any]
    """The body of a streamed chat completion."""


def relay_routes() -> APIRouter:
    """The routes /api/relay, and /api/relay/check, which looks at an address and asks nobody."""
    routes = APIRouter(prefix="/api/relay", include_in_schema=False)

    @routes.post("/check")
    def check(address: Address, request: Request) -> dict[str, bool]:
        _check(address.url, request)
        return {"ok": True}

    @routes.post("")
    def relay(asked: Relayed, request: Request) -> Response:
        _check(asked.url, request)
        events = _events(open_reply(asked.url, asked.key.get_secret_value(), asked.request))
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    return routes


def _check(url: str, request: Request) -> None:
    """Raises `ApiError`: 403 for a person elsewhere, 400 for what is no web address."""
    if request.client is None or request.client.host not in _LOOPBACK:
        raise ApiError(403, "endpoints can be used only by a browser on the server's own machine", "not_local")
    check_url(url)


def _events(response: IO[bytes]) -> Iterator[str]:
    """The reply as it is sent; an error in the middle comes as an event too."""
    for event in read_events(response):
        yield ": still here\n\n" if event is None else f"data: {json.dumps(event)}\n\n"
        if event is not None and "error" in event:
            return
    yield "data: [DONE]\n\n"
