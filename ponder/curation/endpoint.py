"""A client of any OpenAI-compatible chat-completions API: the model that judges and rewrites.

What the endpoint says is untrusted and may never come. Each request has its time, failed ones are tried again after
growing pauses, and there is a deadline for everything: the workers are daemon threads, so that even a server that sends
one byte a minute can neither hold up the stage nor the end of the program.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ponder.errors import InterruptedRunError, PonderError, UsageError
from ponder.recipe import EndpointSettings

if TYPE_CHECKING:
    import openai

Messages = Sequence[dict[str, str]]
"""A conversation: {role, content}, in order."""

Progress = Callable[[int], None]
"""Told how many requests have just been answered."""

FIRST_PAUSE_S = 1.0
"""Before the second try; each further pause is twice as long, up to `LONGEST_PAUSE_S`."""

LONGEST_PAUSE_S = 30.0

GRACE_S = 10.0
"""Added to the time that all tries of one request may take, before the endpoint counts as hung."""

_Outcomes = queue.SimpleQueue[tuple[int, str | PonderError | None]]
"""(number, reply or failure) of each request, in the order in which they ended."""

_PASSING = (408, 409, 425, 429)
"""HTTP errors below 500 that may pass: time-out, conflict, too early, too many requests."""

_NOT_THIS_ONE = (400, 413, 422)
"""HTTP errors that speak of the one request, such as a prompt too long for the model: others may still be answered."""


class Client(Protocol):
    """What judging and rewriting need of an endpoint."""

    def ask_all(self, conversations: Sequence[Messages], on_progress: Progress | None = None) -> list[str]:
        """The replies, in order: see `Endpoint.ask_all`."""
        ...


class Endpoint:
    """A model behind an API. Safe to use from one thread; it runs `concurrency` requests at once itself."""

    def __init__(self, settings: EndpointSettings) -> None:
        """Raises `UsageError` when the extra `endpoint` is not installed or the key's variable is not set."""
        try:
            import openai
        except ImportError as error:
            raise UsageError(
                'judging and rewriting by an endpoint need the extra of that name: pip install "ponder[endpoint]"'
            ) from error
        key = _api_key(settings)
        self.settings = settings
        self._headers = None if key else {"Authorization": openai.omit}
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            # never None: the library would then send whatever key the environment holds for another service
            api_key=key or "none",
            timeout=settings.timeout_s,
            max_retries=0,
        )

    def ask(self, messages: Messages) -> str:
        """The reply to one conversation; see `ask_all`."""
        return self.ask_all([messages])[0]

    def ask_all(self, conversations: Sequence[Messages], on_progress: Progress | None = None) -> list[str]:
        """The replies, in order; empty where the model said nothing or the endpoint refused that one request.

        Raises `UsageError` when the endpoint refuses the key, the model or the address, and `InterruptedRunError` when
        it fails after all retries or does not answer in time.
        """
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(conversations)):
            waiting.put(number)
        answered: _Outcomes = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            while True:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome: str | PonderError | None = None
                try:
                    outcome = self._with_retries(conversations[number], stop)
                except PonderError as error:
                    outcome = error
                finally:  # a defect must not leave the collector waiting
                    answered.put((number, outcome))

        for _ in range(min(self.settings.concurrency, len(conversations))):
            threading.Thread(target=work, daemon=True, name="endpoint").start()
        try:
            return self._collect(answered, len(conversations), on_progress)
        finally:
            stop.set()

    def _collect(self, answered: _Outcomes, count: int, on_progress: Progress | None) -> list[str]:
        replies = [""] * count
        for _ in range(count):
            try:
                # while any request is under way, one of them must end within the time of all its tries
                number, reply = answered.get(timeout=self._longest_s())
            except queue.Empty as error:
                raise self._failed(f"no reply within {self._longest_s():.0f} s") from error
            if isinstance(reply, PonderError):
                raise reply
            if reply is None:
                raise RuntimeError("a request failed by a defect: its traceback stands above")
            replies[number] = reply
            if on_progress is not None:
                on_progress(1)
        return replies

    def _longest_s(self) -> float:
        """Seconds that one request may take with all its tries and pauses."""
        tries = self.settings.retries + 1
        return tries * self.settings.timeout_s + sum(map(_pause, range(tries - 1))) + GRACE_S

    def _with_retries(self, messages: Messages, stop: threading.Event) -> str:
        reason = ""
        for tried in range(self.settings.retries + 1):
            if tried:
                stop.wait(_pause(tried - 1))
            if stop.is_set():
                break
            try:
                return self._request(messages)
            except _PassingFailure as failure:
                reason = str(failure)
        raise self._failed(f"{reason} (tried {self.settings.retries + 1} times)")

    def _request(self, messages: Messages) -> str:
        """One try. Raises `_PassingFailure` where another may do better, `UsageError` where none will."""
        import openai

        settings = self.settings
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=settings.model,
                messages=list(messages),  # type: ignore[arg-type]
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                extra_headers=self._headers,
            )
            return _content(response.text)
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APITimeoutError as error:
            raise _PassingFailure(f"no reply within {settings.timeout_s:g} s") from error
        except openai.APIConnectionError as error:
            raise _PassingFailure(f"the connection failed: {error.__cause__ or error}") from error

    def _refused(self, error: openai.APIStatusError) -> str:
        """The empty reply where the refusal concerns this request alone."""
        status = error.status_code
        if status in _NOT_THIS_ONE:
            return ""
        if status >= 500 or status in _PASSING:
            raise _PassingFailure(f"HTTP error {status}") from error
        hint = {401: "api_key_env", 403: "api_key_env", 404: "model or base_url"}.get(status, "base_url")
        raise UsageError(f"the endpoint {self.settings.base_url} answers HTTP error {status}: see its `{hint}`")

    def _failed(self, reason: str) -> InterruptedRunError:
        return InterruptedRunError(
            f"the endpoint {self.settings.base_url} fails: {reason}; see its `base_url` and `timeout_s`, "
            "and run the same command again to go on"
        )


class _PassingFailure(Exception):  # noqa: N818  it is no error before the last try
    """A try that failed, where the next may succeed."""


def _api_key(settings: EndpointSettings) -> str | None:
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env)
    if not key:
        raise UsageError(f"api_key_env: the environment variable {settings.api_key_env} is not set")
    return key


def _pause(number: int) -> float:
    return min(FIRST_PAUSE_S * 2.0**number, LONGEST_PAUSE_S)


def _content(text: str) -> str:
    """The reply in the body of a chat completion. Raises `_PassingFailure` when it is no such body."""
    try:
        content: Any = json.loads(text)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise _PassingFailure("the reply is no chat completion") from error
    # a model that spent its tokens on thinking leaves no content
    return content if isinstance(content, str) else ""
