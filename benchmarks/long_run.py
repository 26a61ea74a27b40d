"""A long `reinforce` run: do memory, open files and time a step stay flat, and the records within their caps?

    python benchmarks/long_run.py                              # 2,000 steps of the mini model in one process
    python benchmarks/long_run.py --cluster ray --steps 500    # rollout workers and trainers on this machine

Steps are tiny (2 prompts x 4 samples x 48 tokens, random rewards beside the verifier's), so that a leak of a few KiB a
step shows within minutes. The caps of the records are small, too: both are reached early and held for most of the run.

Every --every steps the run's process and all below it are looked at: resident memory, open files, number of processes;
and the run folder: bytes of rollouts.sqlite with its log, and of metrics.jsonl. Processes are told apart by their kind.
Shared memory has a row of its own: a process counts a page of Ray's object store once it has touched it, so that its
resident memory creeps up to the store's size, which Ray limits, without anything being taken.
Growth is that of a line through the samples from step --settled on (allocators and caches have filled up by then).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from measure import REPOSITORY, package_versions, save, table

STAGE = "long"
LOG = "log.txt"
PACE_STEPS = 200
"""Steps over which the time a step is taken, at both ends."""
MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    """What was found at a step; memory and files by kind of process."""

    step: int
    rss_mib: dict[str, float]
    """Resident, without what is shared."""
    shared_mib: float
    """Shared memory, of the process that has touched most."""
    open_files: dict[str, int]
    processes: int
    rollouts_mib: float
    metrics_mib: float


def recipe(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that a step does, as small as it gets."""
    return {
        "name": "long-run",
        "threads": 1,
        "cluster": options.cluster,
        "judging": {"workers": 1},
        "store": {"rollouts_mib": options.rollouts_mib, "metrics_mib": options.metrics_mib},
        "stages": {
            STAGE: {
                "verb": "reinforce",
                "model": "mini",
                "template": "mini",
                "tasks": {"arithmetic": {"languages": ["en", "zh"]}, "countdown": {}},
                "rewards": {"accuracy": 1, "format": 1, "random": 1},
                "steps": options.steps,
                "prompts_per_step": 2,
                "group_size": 4,
                "sampling": {"max_tokens": 48},
                "optimizer": {"lr": 1e-7},
                "evaluation": {"every": 100, "problems": 4, "samples": 2},
                "watchdog": {"enabled": False},
                "checkpoint_every": 50,
            }
        },
    }


# --- looking at processes --------------------------------------------------------------------------------------------


def family(root: int) -> Iterator[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (parent := parent_of(int(entry.name))) is not None:
            children[parent].append(int(entry.name))
    waiting = [root]
    while waiting:
        process = waiting.pop()
        yield process
        waiting += children[process]


def parent_of(process: int) -> int | None:
    """None where it has just ended."""
    try:
        # the name in brackets may hold anything, brackets too
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def kind_of(process: int, root: int) -> str:
    """`driver`, a Ray process by its title, or the program's name."""
    if process == root:
        return "driver"
    words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    if title := re.match(r"ray::\w+", words[0]):
        return title[0]
    program = Path(words[0].split(" ")[0]).name
    modules = re.findall(r"from ([\w.]+) import", " ".join(words))  # python -c "from x import main; main()"
    scripts = [Path(word).name for word in words[1:] if word.endswith(".py")]
    return next(iter(modules + scripts), program)


def look(root: int, step: int, folder: Path) -> Sample:
    """All figures of this moment."""
    memory: dict[str, float] = defaultdict(float)
    files: dict[str, int] = defaultdict(int)
    shared = processes = 0
    for process in family(root):
        try:
            kind = kind_of(process, root)
            resident = resident_kib(process)
            descriptors = sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
        except OSError:  # it has just ended
            continue
        memory[kind] += (resident["RssAnon"] + resident["RssFile"]) / 1024
        shared = max(shared, resident["RssShmem"])
        files[kind] += descriptors
        processes += 1
    return Sample(
        step=step,
        rss_mib={kind: round(mib, 2) for kind, mib in memory.items()},
        shared_mib=round(shared / 1024, 2),
        open_files=dict(files),
        processes=processes,
        rollouts_mib=sum(size_of(folder / f"rollouts.sqlite{end}") for end in ("", "-wal", "-shm")),
        metrics_mib=size_of(folder / "metrics.jsonl"),
    )


def resident_kib(process: int) -> dict[str, int]:
    """RssAnon, RssFile and RssShmem of proc_pid_status(5), in KiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines) if "Rss" in name}


def size_of(path: Path) -> float:
    return path.stat().st_size / MIB if path.exists() else 0.0


# --- the run ---------------------------------------------------------------------------------------------------------


def follow(process: subprocess.Popen[bytes], folder: Path, options: argparse.Namespace) -> list[Sample]:
    """Samples until the run ends."""
    samples: list[Sample] = []
    due = options.every
    last_sign = time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        step = last_step(folder / "metrics.jsonl")
        if step < due:
            if time.monotonic() - last_sign > options.silence:
                raise SystemExit(f"no {options.every} steps in {options.silence:g} s, after step {step}")
            continue
        samples.append(look(process.pid, step, folder))
        due, last_sign = step + options.every, time.monotonic()
        print(f"  step {step:5}  {sum(samples[-1].rss_mib.values()):8.0f} MiB", file=sys.stderr, flush=True)
    if process.returncode:
        said = (folder.parent / LOG).read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{said}\nthe run ended with exit code {process.returncode}")
    return samples


def last_step(metrics: Path) -> int:
    """Of the last whole line; 0 before the first."""
    if not metrics.exists():
        return 0
    with open(metrics, "rb") as file:
        file.seek(max(0, metrics.stat().st_size - 64 * 1024))
        lines = file.read().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def run(options: argparse.Namespace, folder: Path) -> list[Sample]:
    """Start the run as a user would, and watch it."""
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe(options)), encoding="utf-8")  # JSON is YAML
    command = [sys.executable, "-m", "ponder", "run", str(path), "--run", str(folder / "run"), "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with open(folder / LOG, "wb") as log:  # the watchdog has much to say about such steps
        process = subprocess.Popen(command, env=environment, stderr=log)
        try:
            return follow(process, folder / "run", options)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)


# --- figures ---------------------------------------------------------------------------------------------------------


def growth(samples: Sequence[Sample], values: Sequence[float]) -> dict[str, float]:
    """From the first of the samples to the last, and a thousand steps of the line through all."""
    slope = linear_regression([s.step for s in samples], values).slope
    return {"first": values[0], "last": values[-1], "per_1000_steps": round(slope * 1000, 3)}


def figures(samples: Sequence[Sample], lines: Sequence[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """What the run is judged by."""
    settled = [s for s in samples if s.step >= options.settled]
    if len(settled) < 2:
        raise SystemExit(f"give more --steps: only {len(settled)} samples after step {options.settled}")
    kinds = sorted({kind for s in settled for kind in s.rss_mib}, key=lambda kind: (kind != "driver", kind))
    memory = {kind: growth(settled, [s.rss_mib.get(kind, 0.0) for s in settled]) for kind in kinds}
    memory["all"] = growth(settled, [sum(s.rss_mib.values()) for s in settled])
    pace = [sum(line[f"time/{part}"] for part in ("rollout", "reward", "update")) for line in lines]
    return {
        "rss_mib": memory,
        "shared_mib": growth(settled, [s.shared_mib for s in settled]),
        "open_files": growth(settled, [sum(s.open_files.values()) for s in settled]),
        "processes": growth(settled, [s.processes for s in settled]),
        "largest_rollouts_mib": max(s.rollouts_mib for s in samples),
        "largest_metrics_mib": max(s.metrics_mib for s in samples),
        "metrics_lines_kept": len(lines),
        "seconds_a_step": {"begin": median(pace[: PACE_STEPS // 2]), "end": median(pace[-PACE_STEPS:])},
    }


def show(found: dict[str, Any], options: argparse.Namespace) -> None:
    header = ("", f"step {options.settled}", "end", "a 1,000 steps")
    rows = [(f"{kind}, MiB", found["rss_mib"][kind]) for kind in found["rss_mib"]]
    rows += [
        ("shared memory, MiB", found["shared_mib"]),
        ("open files", found["open_files"]),
        ("processes", found["processes"]),
    ]
    columns = ("first", "last", "per_1000_steps")
    print(table(header, [(name, *(f"{row[column]:.1f}" for column in columns)) for name, row in rows]))
    for record in ("rollouts", "metrics"):
        largest, cap = found[f"largest_{record}_mib"], getattr(options, f"{record}_mib")
        print(f"{record}: at most {largest:.2f} MiB on disk, cap {cap:g}")
    begin, end = (found["seconds_a_step"][k] * 1000 for k in ("begin", "end"))
    print(f"a step: {begin:.0f} ms at the beginning, {end:.0f} ms at the end (medians)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", choices=("local", "ray"), default="local", help="where it computes (local)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of the run (2000)")
    parser.add_argument("--every", type=int, default=25, help="steps between two looks (25)")
    parser.add_argument("--settled", type=int, default=200, help="first step that counts for growth (200)")
    parser.add_argument("--rollouts-mib", type=float, default=4.0, help="cap of rollouts.sqlite (4)")
    parser.add_argument("--metrics-mib", type=float, default=1.0, help="cap of metrics.jsonl (1)")
    parser.add_argument("--silence", type=float, default=600.0, help="seconds without a look that end it (600)")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ponder-long-") as name:
        samples = run(options, Path(name))
        text = (Path(name) / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line for line in map(json.loads, text.splitlines()) if "grad/norm" in line]
    found = figures(samples, lines, options)
    show(found, options)
    payload = {"figures": found, "samples": [asdict(s) for s in samples], "packages": package_versions()}
    save(f"long_run_{options.cluster}", options.json, options, payload)


if __name__ == "__main__":
    main()
