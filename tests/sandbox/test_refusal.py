"""Without a working sandbox nothing runs, unless a setting with `unsafe` in its name says so."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sandbox_helpers import left_on_host

import ponder.sandbox
from ponder.errors import RefusedError
from ponder.sandbox import Limits, Program, Sandbox, get_sandbox, probe, python_program
from ponder.sandbox.box import Box, BoxStartError, Launcher


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without bubblewrap; what is put in the folder is found as a program, by any user."""
    monkeypatch.delenv("PONDER_UNSAFE_NO_SANDBOX", raising=False)
    monkeypatch.setattr(ponder.sandbox, "_sandbox", None)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # those of pytest are private
        Path(folder).chmod(0o755)
        monkeypatch.setenv("PATH", folder)
        yield Path(folder)


@pytest.fixture
def unsafe(bare_machine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setenv("PONDER_UNSAFE_NO_SANDBOX", "1")
    sandbox = get_sandbox()
    yield sandbox
    sandbox.close()


def install_bubblewrap(folder: Path, script: str) -> None:
    bubblewrap = folder / "bwrap"
    bubblewrap.write_text(f"#!/bin/sh\n{script}\n")
    bubblewrap.chmod(0o755)


@pytest.mark.parametrize("value", [None, "", "0", "yes"])
def test_refuses_without_a_sandbox(bare_machine: Path, monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    if value is not None:
        monkeypatch.setenv("PONDER_UNSAFE_NO_SANDBOX", value)
    with pytest.raises(RefusedError, match=r"bubblewrap is not installed.*PONDER_UNSAFE_NO_SANDBOX=1") as refusal:
        get_sandbox()
    assert "\n" not in str(refusal.value)


def test_refuses_a_sandbox_that_does_not_work(bare_machine: Path) -> None:
    install_bubblewrap(bare_machine, "echo 'bwrap: setting up uid map: Permission denied' >&2\nexit 1")
    with pytest.raises(RefusedError, match="Permission denied"):
        get_sandbox()


def test_refuses_a_sandbox_that_hides_nothing(bare_machine: Path) -> None:
    install_bubblewrap(bare_machine, 'while [ "$1" != -- ]; do shift; done\nshift\nexec "$@"')
    with pytest.raises(RefusedError, match="not the first process of a namespace"):
        get_sandbox()


def test_unsafe_runs_programs_with_limits_of_time_memory_and_output(unsafe: Sandbox) -> None:
    assert not unsafe.isolated
    assert unsafe.run(python_program("print(input() * 2)", "ab")).stdout == b"abab\n"
    assert unsafe.run(python_program("while True: pass"), Limits(wall_s=0.5)).status == "timeout"
    assert unsafe.run(python_program("x = bytearray(2**34)")).status == "memory"
    assert unsafe.run(python_program("while True: print('x' * 99)"), Limits(output_bytes=500)).status == "output"
    assert unsafe.run(Program(("sh", "-c", "echo $((6 * 7)); exit 3"))).exit_code == 3


def test_unsafe_kills_its_own_group_only(unsafe: Sandbox) -> None:
    marker = f"7{time.monotonic_ns() % 10**8}"
    assert unsafe.run(Program(("sh", "-c", f"sleep {marker} & sleep {marker}")), Limits(wall_s=0.5)).status == "timeout"
    assert left_on_host(marker) == []
    assert unsafe.run(python_program("print('this test lives')")).stdout == b"this test lives\n"


def test_probe_says_what_is_missing(launcher: Launcher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe().problem == ""
    monkeypatch.setattr("ponder.sandbox.probing.filter_program", lambda: None)
    found = probe()
    assert found.launcher is not None and found.launcher.seccomp is None
    assert any("ponder[sandbox]" in line for line in found.missing)


def test_a_box_that_does_not_start_says_why(launcher: Launcher) -> None:
    with pytest.raises(BoxStartError, match="no-such-python"):
        Box(replace(launcher, python=Path("/usr/bin/no-such-python")), 2**20, warm=False)
