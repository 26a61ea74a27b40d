"""A conversation in the terminal: thinking dimmed on standard error, answers on standard output.

On a terminal both are streamed; in a pipe each line of input is a turn and each answer comes whole. Model output is
untrusted: control characters, with which it could take the terminal over, are made visible.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import IO, Any, Protocol

import typer

from ponder.errors import UsageError
from ponder.model.decoder import Decoder
from ponder.rollout.stepping import Stepper
from ponder.serving.batching import Choice, listen
from ponder.serving.endpoint import check_url, open_reply, read_events
from ponder.serving.errors import ApiError
from ponder.serving.generation import Prompt, Wish, make_choices
from ponder.serving.models import ServedModel
from ponder.serving.replies import Piece

NEW = "/new"
"""Typed instead of a message, it forgets the conversation."""

HELP = f"{NEW} forgets the conversation, Ctrl-C stops a reply, Ctrl-D ends"
CUT = "unfinished: raise --max-tokens"

_COMMAND = re.compile(r"/[a-z?]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Incoming(Protocol):
    """A reply on its way: iterated over, it is computed or comes, piece by piece, and may be left at any of them."""

    @property
    def fault(self) -> str | None:
        """Once it has ended: why it is not whole."""

    def __iter__(self) -> Iterator[Piece]: ...


class Partner(Protocol):
    """Who replies."""

    def reply(self, messages: Sequence[Mapping[str, str]], thinking: bool) -> Incoming:
        """Begin a reply. Raises `UsageError` where there can be none."""


@dataclass(frozen=True)
class LocalModel:
    """A model in this process."""

    model: ServedModel
    wish: Wish

    def reply(self, messages: Sequence[Mapping[str, str]], thinking: bool) -> Incoming:
        """Raises `UsageError` when the conversation has become too long."""
        tokenizer, room = self.model.loaded.tokenizer, self.model.loaded.config.max_positions
        prompt = self.model.chat.render(messages, thinking, tokenizer)
        ids = tuple(tokenizer.encode_prompt(prompt))
        if len(ids) >= room:
            raise UsageError(f"{len(ids)} tokens fill the model's {room} positions: start anew with {NEW}")
        (choice,) = make_choices(self.model, [Prompt(ids, prompt)], self.wish)
        return _LocalReply(self.model.loaded.decoder, choice)


@dataclass
class _LocalReply:
    decoder: Decoder
    choice: Choice

    @property
    def fault(self) -> str | None:
        if self.choice.finish_reason == "stop":
            return None
        sequence = self.choice.sequence
        return CUT if len(sequence.ids) == len(sequence.uniforms) else "it ended while it was thinking"

    def __iter__(self) -> Iterator[Piece]:
        stepper = Stepper(self.decoder)
        stepper.join([self.choice.sequence])
        while self.choice.finish_reason is None:
            for _, token in stepper.step():  # nothing while a long prompt is computed
                delta = listen(self.choice, token)
                yield from delta.pieces if delta is not None else ()


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible API; what is None or empty is left to it."""

    url: str
    model: str
    key: str = field(default="", repr=False)
    wish: Mapping[str, float | None] = field(default_factory=dict)
    """`temperature`, `max_tokens` and `seed`."""
    thinking_budget: int | None = None

    def reply(self, messages: Sequence[Mapping[str, str]], thinking: bool) -> Incoming:
        """Raises `UsageError` where the endpoint refuses or cannot be reached."""
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        body |= {name: value for name, value in self.wish.items() if value is not None}
        if not thinking:
            # vLLM's way and DeepSeek's
            body["chat_template_kwargs"] = {"thinking": False, "enable_thinking": False}
            body["thinking"] = {"type": "disabled"}
        elif self.thinking_budget is not None:
            body["thinking"] = {"type": "enabled", "budget_tokens": self.thinking_budget}
        try:
            check_url(self.url)
            return _EndpointReply(open_reply(self.url, self.key, body))
        except ApiError as error:
            raise UsageError(str(error)) from error


@dataclass
class _EndpointReply:
    response: IO[bytes]
    fault: str | None = None

    def __iter__(self) -> Iterator[Piece]:
        """Raises `UsageError` where the endpoint fails in the middle."""
        for event in read_events(self.response):
            if event is None:
                continue
            if "error" in event:
                raise UsageError(event["error"]["message"])
            for choice in event["choices"]:
                delta = choice["delta"]
                if choice.get("finish_reason") == "length":
                    self.fault = CUT
                if "restart" in delta:
                    yield Piece("restart", "")
                elif "reasoning_content" in delta:
                    yield Piece("thinking", delta["reasoning_content"])
                elif "content" in delta:
                    yield Piece("answer", delta["content"])


@dataclass
class Conversation:
    """What has been said to a partner."""

    partner: Partner
    thinking: bool = True
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> Incoming:
        """The reply to `text`. Raises `UsageError` as `Partner.reply` does."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return self.partner.reply([*opening, *self.turns, {"role": "user", "content": text}], self.thinking)

    def remember(self, text: str, answer: str) -> None:
        """Add a turn; one without an answer is forgotten, as no template has a place for it."""
        if answer:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def chat(conversation: Conversation) -> None:
    """Talk until the input ends. Ctrl-C stops the reply, not the chat.

    On a terminal a message that cannot be answered leaves the chat open; in a pipe its `UsageError` is raised.
    """
    for text in _inputs():
        if text == NEW:
            conversation.turns.clear()
            continue
        try:
            conversation.remember(text, _reply(conversation, text))
        except UsageError as error:
            if not sys.stdin.isatty():
                raise
            typer.echo(f"ponder: {error}", err=True)


def _reply(conversation: Conversation, text: str) -> str:
    """Have one message answered and show the reply; returns the answer, as far as it came."""
    screen = _Screen(streams=sys.stdout.isatty())
    remark = None
    try:
        reply = conversation.ask(text)
        for piece in reply:
            screen.show(piece)
        remark = reply.fault
    except KeyboardInterrupt:
        remark = "stopped"
    screen.end(remark)
    return screen.answer


class _Screen:
    """Shows one reply."""

    def __init__(self, streams: bool) -> None:
        self._streams = streams
        self._last: str | None = None
        self.answer = ""

    def show(self, piece: Piece) -> None:
        text = visible(piece.text)
        if self._last == "thinking" and piece.kind != "thinking":
            typer.echo("\n", err=True)
        self._last = piece.kind
        if piece.kind == "thinking":
            typer.secho(text, dim=True, err=True, nl=False)
        elif piece.kind == "restart":
            self.answer = ""
            if self._streams:
                typer.echo()
        else:
            self.answer += piece.text
            if self._streams:
                typer.echo(text, nl=False)

    def end(self, remark: str | None) -> None:
        if self._last == "thinking":
            typer.echo(err=True)
        if not self._streams:
            typer.echo(visible(self.answer))
        elif self.answer:
            typer.echo()
        if remark:
            typer.secho(f"[{remark}]", dim=True, err=True)


def visible(text: str) -> str:
    """Text without characters that move the cursor, colour the screen or turn the reading direction."""
    return _CONTROL.sub("\ufffd", text)


def _inputs() -> Iterator[str]:
    """What the user says, line by line; empty lines say nothing."""
    if not sys.stdin.isatty():
        yield from filter(None, (line.strip() for line in sys.stdin))
        return
    import_module("readline")  # gives input() its line editing
    typer.secho(HELP, dim=True, err=True)
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            typer.echo(err=True)
            continue
        except EOFError:
            typer.echo(err=True)
            return
        if _COMMAND.fullmatch(text) and text != NEW:
            typer.secho(HELP, dim=True, err=True)
        elif text:
            yield text
