"""What a small actor on each node of a cluster finds out, for the machine that will start the run.

A `NodeProbe` is plain Python, and `ponder.doctor.cluster` puts one on every node. Neither Ray nor torch is imported.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ponder.doctor.check import Check
from ponder.doctor.machine import EVERYWHERE, version
from ponder.doctor.needs import Needs

PACKAGES = ("ponder", "ray", "torch", "numpy", "safetensors", "tokenizers", "math-verify")
_CONNECT_S = 5.0


class NodeProbe:
    """Looks around on one node, and talks to the other probes over plain sockets."""

    def __init__(self) -> None:
        self.server: socket.socket | None = None
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # Ray hides GPUs from an actor that reserves none
            del os.environ["CUDA_VISIBLE_DEVICES"]

    def checks(self, needs: Needs) -> list[Check]:
        """The checks that every machine must pass."""
        return [check(needs) for check in EVERYWHERE]

    def versions(self) -> dict[str, str]:
        """What must be alike on all nodes."""
        return versions()

    def clock(self) -> float:
        """Seconds since 1970, by this node's clock."""
        return time.time()

    def listen(self, address: str, token: str) -> int:
        """Say `token` to whoever connects, until the actor ends; the port."""
        self.server = socket.create_server((address, 0))
        threading.Thread(target=_greet, args=(self.server, token.encode()), daemon=True).start()
        return int(self.server.getsockname()[1])

    def unreachable(self, others: Mapping[str, tuple[str, int]], token: str) -> dict[str, str]:
        """Which of the other probes, {node: (address, port)}, cannot be spoken with, and why."""
        with ThreadPoolExecutor(16) as threads:
            failures = threads.map(lambda place: _failure_to_hear(place, token.encode()), others.values())
            return {node: failure for node, failure in zip(others, failures, strict=True) if failure}

    def read(self, path: str) -> str:
        """What a small file holds, or why it cannot be read."""
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return f"{type(error).__name__}: {error}"

    def listings(self, paths: list[str]) -> dict[str, str]:
        """A model's files by name and size, in short; equal on two nodes that see the same folder."""
        return {path: listing(Path(path)) for path in paths}


def versions() -> dict[str, str]:
    """Python, packages, and a hash of Ponder's own source, which says more than a version does."""
    found = {package: version(package) or "none" for package in PACKAGES}
    return {"python": platform.python_version(), **found, "ponder's code": _source_hash()}


def listing(path: Path) -> str:
    """Hash of the names and sizes of a file, or of those in a folder; "missing" where there is none."""
    if not path.exists():
        return "missing"
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return _digest("".join(f"{file.name} {file.stat().st_size}\n" for file in files).encode())


def _source_hash() -> str:
    root = Path(__file__).parents[1]
    return _digest(b"".join(file.read_bytes() for file in sorted(root.rglob("*.py"))))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def _greet(server: socket.socket, token: bytes) -> None:
    while True:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(_CONNECT_S)
            connection.sendall(token)


def _failure_to_hear(place: tuple[str, int], token: bytes) -> str:
    """Why a probe does not answer as it should; empty if it does."""
    try:
        with socket.create_connection(place, timeout=_CONNECT_S) as connection:
            heard = connection.makefile("rb").read(len(token))
    except OSError as error:
        return error.strerror or str(error)
    return "" if heard == token else "another program answers there"
