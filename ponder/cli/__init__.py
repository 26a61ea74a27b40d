"""The command `ponder`. Each command parses its arguments, calls one function, and prints what it returns.

Exit codes: 0 done, 2 wrong use, 3 refused by preflight or gate, 4 broken input, 5 interrupted but resumable, 1 anything
else. A `PonderError`, or an error about a file, is one sentence on standard error; any other exception is a defect and
keeps its traceback.
"""

from __future__ import annotations

# each adds its commands, in the order of `ponder --help`
# isort: off
from ponder.cli import recipes, runs, judging, models  # noqa: F401
from ponder.cli.app import app
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line of this process; never returns."""
    app(prog_name="ponder")
