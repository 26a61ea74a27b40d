"""The chat in the terminal: streams apart, turns kept, Ctrl-C stops a reply only."""

from __future__ import annotations

import io
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving_helpers import Script
from typer.testing import CliRunner

from ponder.cli import app
from ponder.errors import UsageError
from ponder.model.embedded import FOLDERS
from ponder.recipe import load_recipe
from ponder.run import RunFolder, StageRecord
from ponder.serving import terminal
from ponder.serving.generation import Wish
from ponder.serving.models import ServedModel
from ponder.serving.replies import Piece
from ponder.serving.terminal import NEW, Conversation, LocalModel, chat, visible

THOUGHT = "<think>\n3 and 4\n</think>\n\nIt is 7."


@pytest.fixture
def conversation(qwen: ServedModel) -> Conversation:
    return Conversation(LocalModel(qwen, Wish(max_tokens=60, seed=0, splits_thinking=True)))


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))


def test_in_a_pipe_answers_go_to_output_and_thinking_to_errors(
    conversation: Conversation, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(THOUGHT)
    say(monkeypatch, "What is 3 + 4?", "", "And again?")
    chat(conversation)
    out, err = capsys.readouterr()
    assert out == "It is 7.\nIt is 7.\n"
    assert err.count("3 and 4") == 2
    assert "\x1b" not in out + err
    assert [turn["content"] for turn in conversation.turns] == ["What is 3 + 4?", "It is 7.", "And again?", "It is 7."]


def test_new_forgets_and_an_unfinished_reply_says_so(
    conversation: Conversation,
    qwen: ServedModel,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script("<think>on and on", ends=False)
    conversation.partner = LocalModel(qwen, Wish(max_tokens=4, splits_thinking=True))
    say(monkeypatch, "hello", "/new")
    chat(conversation)
    assert "--max-tokens" in capsys.readouterr().err
    assert conversation.turns == []


def test_a_reply_that_ends_while_it_thinks_is_not_blamed_on_its_length(
    conversation: Conversation, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script("<think>on and on")
    say(monkeypatch, "hello")
    chat(conversation)
    assert "[it ended while it was thinking]" in capsys.readouterr().err


def test_an_unknown_command_on_a_terminal_gets_the_help_and_not_a_reply(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["/help", "/new", "7/2?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said, None) or (_ for _ in ()).throw(EOFError))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    assert list(terminal._inputs()) == ["/new", "7/2?"]
    assert capsys.readouterr().err.count("Ctrl-D ends") == 2


def test_ctrl_c_stops_the_reply_and_the_chat_goes_on(
    conversation: Conversation, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script("It is 7, I am sure of that.")
    real = terminal._LocalReply.__iter__
    interrupted = []

    def pieces(self: Any) -> Iterator[Piece]:
        for number, piece in enumerate(real(self)):
            yield piece
            if number == 1 and not interrupted:
                interrupted.append(True)
                raise KeyboardInterrupt

    monkeypatch.setattr(terminal._LocalReply, "__iter__", pieces)
    say(monkeypatch, "first", "second")
    chat(conversation)
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert second == "It is 7, I am sure of that."
    assert second.startswith(first) and first != second
    assert "[stopped]" in err
    assert len(conversation.turns) == 4


def test_on_a_terminal_text_is_streamed_and_thinking_dimmed(
    conversation: Conversation, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(THOUGHT)
    shown: list[tuple[str, bool]] = []
    monkeypatch.setattr(terminal.typer, "secho", lambda text, dim, err, nl=True: shown.append((text, dim)))
    monkeypatch.setattr(terminal.typer, "echo", lambda text="", err=False, nl=True: shown.append((text, False)))
    screen = terminal._Screen(streams=True)
    for piece in conversation.ask("x"):
        screen.show(piece)
    screen.end(None)
    dimmed = "".join(text for text, dim in shown if dim)
    plain = "".join(text for text, dim in shown if not dim)
    assert (dimmed, plain.strip()) == ("3 and 4", "It is 7.")
    assert len([text for text, dim in shown if not dim and text]) > 2


def test_too_long_a_conversation_ends_the_turn_and_not_the_chat(
    conversation: Conversation, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script("7")
    say(monkeypatch, "word " * 2000, "short")
    with pytest.raises(UsageError, match=NEW):  # in a pipe
        chat(conversation)
    monkeypatch.setattr(terminal, "_inputs", lambda: iter(["word " * 2000, "short"]))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    chat(conversation)
    out, err = capsys.readouterr()
    assert NEW in err
    assert out == "7\n"


class Api:
    """An endpoint that says what a test gives it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                api.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                api.keys.append(self.headers["Authorization"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write("".join(f"data: {event}\n\n" for event in api.events).encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join(10)
    made.server.server_close()


def delta(finish: str | None = None, **parts: str) -> str:
    return json.dumps({"choices": [{"delta": parts, "finish_reason": finish}]})


def test_an_endpoint_is_talked_to_as_a_model_is(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.events = [
        delta(reasoning="3 and 4"),
        delta(content="It "),
        delta(content="is 7.\x1b[2J"),
        delta("stop"),
        "[DONE]",
    ]
    monkeypatch.setenv("SOME_KEY", "sesame")
    options = ["--endpoint-model", "m", "--api-key-env", "SOME_KEY", "--seed", "5", "--thinking-budget", "9"]
    done = CliRunner().invoke(app, ["chat", api.url, *options], input="first\nsecond\n")
    assert (done.exit_code, done.stdout) == (0, "It is 7.\ufffd[2J\n" * 2)
    assert done.stderr.count("3 and 4") == 2
    assert api.keys == ["Bearer sesame"] * 2
    first, second = api.asked
    assert first == {
        "model": "m",
        "messages": [{"role": "user", "content": "first"}],
        "seed": 5,
        "thinking": {"type": "enabled", "budget_tokens": 9},
        "stream": True,
    }
    assert [m["role"] for m in second["messages"]] == ["user", "assistant", "user"]
    assert "3 and 4" not in second["messages"][1]["content"]


def test_what_an_endpoint_does_wrong_is_one_sentence(api: Api) -> None:
    api.events = [delta(content="It "), '{"error": {"message": "out of luck"}}']
    failed = CliRunner().invoke(app, ["chat", api.url, "--endpoint-model", "m", "--no-thinking"], input="x\n")
    assert failed.exit_code == 2
    assert "ponder: out of luck" in failed.stderr
    assert api.asked[0]["thinking"] == {"type": "disabled"}
    api.events = [delta("length", content="It "), "[DONE]"]
    cut = CliRunner().invoke(app, ["chat", api.url, "--endpoint-model", "m"], input="x\n")
    assert (cut.exit_code, cut.stdout) == (0, "It\n")
    assert "--max-tokens" in cut.stderr
    nobody = CliRunner().invoke(app, ["chat", "http://127.0.0.1:9/v1", "--endpoint-model", "m"], input="x\n")
    assert nobody.exit_code == 2
    assert "cannot be reached" in nobody.stderr
    nameless = CliRunner().invoke(app, ["chat", api.url], input="x\n")
    assert nameless.exit_code == 2
    assert "--endpoint-model" in nameless.stderr


def test_hostile_text_cannot_steer_the_terminal() -> None:
    assert visible("a\x1b[2Jb\r\x07\u202ec\n\td") == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\n\td"


def test_the_command_answers_in_a_pipe(script: Script) -> None:
    script("7")
    done = CliRunner().invoke(app, ["chat", "mini-qwen", "--no-thinking"], input="What is 3 + 4?\n")
    assert (done.exit_code, done.stdout) == (0, "7\n")
    refused = CliRunner().invoke(app, ["chat", "no-such-model"])
    assert refused.exit_code == 4


def test_a_model_may_be_named_by_its_run_and_stage(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "runs" / "tiny")
    with run.lock():
        zero = {"verb": "reinforce", "model": "mini", "tasks": {"countdown": {}}, "template": "mini"}
        run.prepare(load_recipe({"name": "tiny", "stages": {"zero": zero}}))
        run.set_record("zero", StageRecord(verb="reinforce", state="done"))
    shutil.copytree(FOLDERS["mini-qwen"], run.stage_folder("zero") / "model")
    monkeypatch.chdir(tmp_path)
    script("7")
    done = CliRunner().invoke(app, ["chat", "tiny:zero", "--no-thinking"], input="What is 3 + 4?\n")
    assert (done.exit_code, done.stdout) == (0, "7\n")
    refused = CliRunner().invoke(app, ["serve", "tiny:one"])
    assert refused.exit_code == 2
    assert "give one of zero" in refused.stderr


def test_serving_beyond_this_machine_without_a_key_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PONDER_API_KEY", raising=False)
    refused = CliRunner().invoke(app, ["serve", "mini-qwen", "--host", "0.0.0.0"])
    assert refused.exit_code == 2
    assert "PONDER_API_KEY" in refused.stderr
