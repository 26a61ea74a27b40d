"""A reply of an OpenAI-compatible endpoint as it comes, for those who talk to one: the page Chat and `ponder chat`.

What an endpoint sends is untrusted: it is read as events, taken apart by the one parser where it holds tags of
thinking, bounded in size and time, and written anew in this server's words.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from ponder.model.parser import ThinkingSplitter
from ponder.serving.errors import ApiError

SILENCE_S = 110.0
"""An endpoint that sends nothing for so long is given up, a little before the page gives up on its own server."""

MAX_BYTES = 32 * 2**20
MAX_LINE = 2**20
_MAX_REASON = 300


def check_url(url: str) -> None:
    """Raises `ApiError` 400 for what is no web address."""
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # such as a port that is no number
        is_web = False
    if not is_web:
        raise ApiError(400, "the base URL must look like http://127.0.0.1:8001/v1", param="url")


def open_reply(url: str, key: str, request: dict[str, Any]) -> IO[bytes]:
    """The reply to the body of a chat completion, as it begins; `url` is the base, as in `http://127.0.0.1:8001/v1`.

    Raises `ApiError` with the endpoint's own sentence where it refuses, or where it cannot be reached.
    """
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps({**request, "stream": True}).encode()
    address = f"{url.rstrip('/')}/chat/completions"
    try:
        response: IO[bytes] = _OPENER.open(urllib.request.Request(address, body, headers), timeout=SILENCE_S)
    except urllib.error.HTTPError as error:
        with error:
            status = error.code if error.code in (401, 404, 429, 503) else 502
            raise ApiError(status, f"the endpoint says {error.code}: {_reason(error)}", "endpoint_refused") from error
    except (OSError, HTTPException, ValueError) as error:
        raise ApiError(502, f"the endpoint cannot be reached: {str(error)[:_MAX_REASON]}", "no_endpoint") from error
    return response


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is meant for the address that was given, and for no other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def read_events(response: IO[bytes]) -> Iterator[dict[str, Any] | None]:
    """The reply as events of a chat stream, thinking apart; None is a sign of life.

    One that holds `error` is the last: the endpoint failed, or what it sends is no reply.
    """
    splitter = ThinkingSplitter()
    size = 0
    with response:
        try:
            while line := response.readline(MAX_LINE):
                size += len(line)
                if size > MAX_BYTES:
                    raise ValueError("it says too much")
                if not line.startswith(b"data:"):
                    yield None
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    break
                event = json.loads(data)
                if "error" in event:
                    yield _failure(_message(event))
                    return
                yield from _rewritten(event, splitter)
            else:
                yield _failure("the endpoint ended in the middle of its reply")
                return
        except (OSError, HTTPException, ValueError, AttributeError, TypeError, LookupError) as error:
            yield _failure(f"the endpoint failed: {str(error)[:_MAX_REASON]}")
            return
    yield from map(_piece, splitter.finish())


def _rewritten(event: dict[str, Any], splitter: ThinkingSplitter) -> Iterator[dict[str, Any]]:
    """One event with thinking apart, whether the endpoint names it or writes it between tags."""
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        thinking = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thinking, str):
            yield _piece(("thinking", thinking))
        if isinstance(delta.get("content"), str):
            yield from map(_piece, splitter.feed(delta["content"]))
        if choice.get("finish_reason"):
            yield {"choices": [{"delta": {}, "finish_reason": str(choice["finish_reason"])}]}
    if event.get("usage"):
        yield {"choices": [], "usage": event["usage"]}


def _piece(piece: tuple[str, str]) -> dict[str, Any]:
    kind, text = piece
    delta = {"thinking": {"reasoning_content": text}, "restart": {"restart": True}}.get(kind, {"content": text})
    return {"choices": [{"delta": delta}]}


def _failure(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return _message(json.loads(error.read(MAX_LINE)))
    except (OSError, HTTPException, ValueError):
        return str(error.reason)


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:_MAX_REASON]
