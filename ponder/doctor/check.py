"""What a check says, and how a check asks another program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]
"""Fine; slower or riskier than it need be; or the run would stop."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's."""

    name: str
    state: State
    found: str
    advice: str = ""
    """What to do where `state` is not ok."""
    node: str = ""
    """The machine of a cluster that it was found on; empty for this machine, or for all of them together."""


def ask(command: Sequence[str], deadline_s: float) -> tuple[str, str]:
    """(standard output, why it failed): a program that hangs, as one beside a broken GPU may, is killed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {deadline_s:g} s"
    except OSError as error:
        return "", error.strerror or str(error)
    if done.returncode == 0:
        return done.stdout.strip(), ""
    said = (done.stderr or done.stdout).strip().splitlines()
    return "", said[-1] if said else f"exit status {done.returncode}"
