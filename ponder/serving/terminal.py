"""A conversation in the terminal: thinking dimmed on standard error, answers on standard output.

On a terminal both are streamed; in a pipe each line of input is a turn and each answer comes whole. Model output is
untrusted: control characters, with which it could take the terminal over, are made visible.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module

import typer

from ponder.errors import UsageError
from ponder.rollout.stepping import Stepper
from ponder.serving.batching import Choice, listen
from ponder.serving.generation import Prompt, Wish, make_choices
from ponder.serving.models import ServedModel
from ponder.serving.replies import Piece

NEW = "/new"
"""Typed instead of a message, it forgets the conversation."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Conversation:
    """What has been said to a model, and how it is to reply."""

    model: ServedModel
    wish: Wish
    thinking: bool = True
    system: str | None = None
    turns: list[dict[str, str]] = field(default_factory=list)

    def begin(self, text: str) -> Choice:
        """A reply to `text`, not yet computed. Raises `UsageError` when the conversation has become too long."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*opening, *self.turns, {"role": "user", "content": text}]
        tokenizer, room = self.model.loaded.tokenizer, self.model.loaded.config.max_positions
        prompt = self.model.chat.render(messages, self.thinking, tokenizer)
        ids = tuple(tokenizer.encode_prompt(prompt))
        if len(ids) >= room:
            raise UsageError(f"{len(ids)} tokens fill the model's {room} positions: start anew with {NEW}")
        (choice,) = make_choices(self.model, [Prompt(ids, prompt)], self.wish)
        return choice

    def pieces(self, choice: Choice) -> Iterator[Piece]:
        """Compute the reply, piece by piece; it may be left at any of them."""
        stepper = Stepper(self.model.loaded.decoder)
        stepper.join([choice.sequence])
        while choice.finish_reason is None:
            for _, token in stepper.step():  # nothing while a long prompt is computed
                delta = listen(choice, token)
                yield from delta.pieces if delta is not None else ()

    def remember(self, text: str, answer: str) -> None:
        """Add a turn; one without an answer is forgotten, as no template has a place for it."""
        if answer:
            self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def chat(conversation: Conversation) -> None:
    """Talk until the input ends. Ctrl-C stops the reply, not the chat."""
    for text in _inputs():
        if text == NEW:
            conversation.turns.clear()
            continue
        try:
            conversation.remember(text, _reply(conversation, text))
        except UsageError as error:
            typer.echo(f"ponder: {error}", err=True)


def _reply(conversation: Conversation, text: str) -> str:
    """Have one message answered and show the reply; returns the answer, as far as it came."""
    choice = conversation.begin(text)
    screen = _Screen(streams=sys.stdout.isatty())
    try:
        for piece in conversation.pieces(choice):
            screen.show(piece)
    except KeyboardInterrupt:
        screen.end("stopped")
    else:
        unfinished = choice.finish_reason == "length"
        screen.end("unfinished: raise --max-tokens" if unfinished else None)
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
    typer.secho(f"{NEW} forgets the conversation, Ctrl-C stops a reply, Ctrl-D ends", dim=True, err=True)
    while True:
        try:
            text = input("> ").strip()
        except KeyboardInterrupt:
            typer.echo(err=True)
            continue
        except EOFError:
            typer.echo(err=True)
            return
        if text:
            yield text
