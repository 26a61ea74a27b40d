"""Write docs/cli.md from the help of the command line: `python tools/make_cli_docs.py`.

A test compares the two, so the page cannot drift from the program.
"""

from __future__ import annotations

import os
from pathlib import Path

from typer.testing import CliRunner

from ponder.cli import app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"

_HEAD = """# The command line

Made from `ponder --help` by `tools/make_cli_docs.py`; edit the help in `ponder/cli/`, not this page.
"""


def render() -> str:
    """The page: the help of `ponder` and of each of its commands, 80 columns wide."""
    parts = [_HEAD, _section("ponder", [])]
    parts += [_section(f"ponder {name}", [name]) for name in _commands()]
    return "\n".join(parts)


def _section(title: str, arguments: list[str]) -> str:
    return f"## {title}\n\n```text\n{_help(arguments)}\n```\n"


def _commands() -> list[str]:
    lines = _help([]).partition("Commands:\n")[2].splitlines()
    return [line.split()[0] for line in lines]


def _help(arguments: list[str]) -> str:
    os.environ["COLUMNS"] = "80"  # the width of the help otherwise follows the terminal's
    return CliRunner().invoke(app, [*arguments, "--help"], prog_name="ponder").stdout.strip()


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
