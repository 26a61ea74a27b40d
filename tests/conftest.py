"""What all tests share: no network, small threads, and no test that is skipped in silence.

Where `PONDER_CI` or `CI` is set, a skip whose reason is not listed in `ALLOWED_SKIPS` counts as a failure, whether one
test is skipped or a whole file: a test that must run there cannot vanish unnoticed.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

ALLOWED_SKIPS = (
    "../shared",  # example data that lies beside the repository, where it lies at all
    "no GPU",
    "no cgroup v2",
    "no network namespaces",
)
"""Beginnings of the reasons for which a test may be skipped in CI; each names something that a CI machine may lack."""

# Tests never download: whatever asks the Hub fails at once. Set before huggingface_hub is imported anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
# Their servers are on this machine, whatever proxy leads out of it, and what is printed is compared as a pipe gets it.
for _name in ("http_proxy", "https_proxy", "all_proxy", "columns", "force_color", "py_colors", "github_actions"):
    for _spelled in (_name, _name.upper()):
        os.environ.pop(_spelled, None)
# The models of the tests are tiny: more threads only get into each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Sums are compared bit for bit, and workers that reserve no GPU are tested: a GPU that nobody names stays out of sight.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# The same examples on every run, and no deadline an example: a busy machine must not fail a test.
settings.register_profile("ponder", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("ponder")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of example data beside the repository; skips where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained model of one layer; a third of all tokens end its replies, as it hits one rarely."""
    from ponder.model.config import DecoderConfig
    from ponder.model.decoder import Decoder
    from ponder.model.folder import save_folder
    from ponder.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.train(["0123456789+-* wait"], vocab_size=470)
    config = DecoderConfig(
        family="llama",
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        max_positions=512,
        eos_ids=tokenizer.eos_ids,
    )
    decoder = Decoder(config)
    decoder.initialise(0)
    tokenizer.eos_ids = tuple(range(0, tokenizer.vocab_size, 3))
    folder = tmp_path_factory.mktemp("models") / "tiny model"
    save_folder(folder, decoder, tokenizer)
    return folder


Answer = Callable[[dict[str, Any]], tuple[int, str] | None]
"""What a fake API says to a request: HTTP status and body; None closes the connection without a word."""


@pytest.fixture
def chat_server() -> Generator[Callable[[Answer], str], None, None]:
    """Starts servers on this machine that answer chat completions by a function; gives their address up to `/v1`."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                said = answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                if said is None:
                    return
                status, body = said
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body.encode())))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *request: None  # type: ignore[method-assign]  # a client may have given up
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def forbidden_skip(report: pytest.TestReport | pytest.CollectReport) -> str | None:
    """The reason of a skip that may not happen here, or None."""
    in_ci = os.environ.get("PONDER_CI") or os.environ.get("CI")
    if not in_ci or not report.skipped or hasattr(report, "wasxfail") or not isinstance(report.longrepr, tuple):
        return None
    reason = report.longrepr[2].removeprefix("Skipped: ")
    return None if reason.startswith(ALLOWED_SKIPS) else reason


def _fail_forbidden_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = forbidden_skip(report)
    if reason is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped, but must run in CI (allowed reasons: ALLOWED_SKIPS in tests/conftest.py): {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a forbidden skip of one test into a failure."""
    report = yield
    _fail_forbidden_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a forbidden skip of a whole file into a failure."""
    report = yield
    _fail_forbidden_skip(report)
    return report
