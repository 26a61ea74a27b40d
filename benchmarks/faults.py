"""A run on local Ray under random kills: nothing of it may be lost, doubled or changed, and nothing may stay behind.

    python benchmarks/faults.py --minutes 60 --every 30           every kind of process is killed or stopped
    python benchmarks/faults.py --minutes 10 --kinds rollout trainer driver raylet --compare

A GRPO run with two rollout workers and two trainer ranks goes on until its time is over. Every now and then a process
that is chosen at random is killed (SIGKILL) or stopped for good (SIGSTOP); the next one when the run has made a step
since. At the end the run folder alone says what was lost. `--compare` runs the same steps once more without a fault,
and holds every token and log-probability against it; judges are then left alone, because a judgement that dies is an
outcome (a wrong answer), and no fault to be mended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from measure import RESULTS, package_versions, save

from ponder.cluster.processes import children, command_line, descendants
from ponder.evaluation.tables import aligned
from ponder.recipe import ReinforceStage, load_recipe
from ponder.run import RunFolder, stage_seed
from ponder.tasks import ProblemStream

STAGE = "zero"
MARK = "PONDER_FAULTS"
"""In the environment of all that the run starts, so that it can be told from what others run here."""

PROMPTS, GROUP = 8, 4
RECOVERY_S = 600.0
"""A run that makes no step for so long after a fault has not survived it."""

RECIPE: dict[str, Any] = {
    "name": "faults",
    "threads": 1,
    "stop_s": 20,
    "cluster": {
        "kind": "ray",
        "rollout": {"workers": 2},
        "trainer": {"ranks": 2},
        "max_restarts": 10_000,
        "deadlines": {"start_s": 120, "silent_s": 10, "rollout_s": 120, "update_s": 120, "weights_s": 60},
    },
    "judging": {"workers": 2, "deadline_s": 20},
    "stages": {
        STAGE: {
            "verb": "reinforce",
            "model": "mini",
            "template": "mini",
            "tasks": {"arithmetic": {"difficulty": 3}, "countdown": {}},
            "rewards": {"accuracy": 1.0},
            "steps": 1_000_000,
            "prompts_per_step": PROMPTS,
            "group_size": GROUP,
            "checkpoint_every": 5,
            "sampling": {"max_tokens": 128},
            "evaluation": {"every": 0},
            "watchdog": {"enabled": False},
            "optimizer": {"lr": 1e-4},
            "tokens_per_micro_batch": 2048,
        }
    },
}

KINDS = {
    "rollout": ("ray::RolloutWorker", (signal.SIGKILL, signal.SIGSTOP)),
    "trainer": ("ray::TrainerRank", (signal.SIGKILL, signal.SIGSTOP)),
    "judge": ("ponder.verifiers.pool", (signal.SIGKILL, signal.SIGSTOP)),
    "driver": ("-m ponder run", (signal.SIGKILL,)),
    "raylet": ("/raylet/raylet", (signal.SIGKILL, signal.SIGSTOP)),
    "gcs": ("/gcs/gcs_server", (signal.SIGKILL, signal.SIGSTOP)),
}
"""What is killed: a part of its command line, and the signals that it gets."""


@dataclass
class Fault:
    """One process that was killed or stopped, and what came of it."""

    kind: str
    signal: str
    pid: int
    at_s: float
    """Since the beginning."""
    step: int
    """The last one before it."""
    recovery_s: float | None = None
    """Until the next step that was not there before; None: there was none."""


class Soak:
    """One run and its killer."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.run = RunFolder(folder / "run")
        self.recipe = folder / "recipe.json"
        self.environment = os.environ | {"TMPDIR": str(folder), MARK: folder.name}
        self.random = random.Random(options.seed)
        self.faults: list[Fault] = []
        self.begun = time.monotonic()

    def go(self) -> dict[str, Any]:
        self.recipe.write_text(json.dumps(RECIPE))
        before = shared_memory()
        process = self.start(self.run.path, [])
        end = self.begun + 60 * self.options.minutes
        self.wait_for_step(process, 0)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(self.random.uniform(0.5, 1.5) * self.options.every)
            self.strike(process)
        code = self.stop(process)
        result = {
            "seconds": round(time.monotonic() - self.begun),
            "exit_code": code,
            "faults": [asdict(fault) for fault in self.faults],
            "left": self.left() + sorted(shared_memory() - before),
            **self.check(),
        }
        return result | (self.compare(result["steps"]) if self.options.compare else {})

    @property
    def said(self) -> Path:
        """What the run printed."""
        return self.recipe.with_name("log")

    def left(self) -> list[str]:
        """Processes and temporary folders that the run should have ended or removed."""
        processes = [f"process {pid}: {line}" for pid, line in marked(self.environment[MARK])]
        return processes + [str(path) for path in self.recipe.parent.glob("ponder-*")]

    # --- the run ---------------------------------------------------------------------------------------------------

    def start(self, run: Path, overrides: list[str]) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "ponder", "run", str(self.recipe), "--run", str(run)]
        argv += [part for override in overrides for part in ("--set", override)]
        with open(self.said, "ab") as log:
            return subprocess.Popen(argv, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """Ask it to end, as a scheduler does."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        return process.wait(120)

    def last_step(self) -> int:
        """The newest step in the metrics; goes back when the run goes back to a checkpoint."""
        with suppress(OSError, ValueError, IndexError), open(self.run.metrics_path, "rb") as file:
            file.seek(max(0, self.run.metrics_path.stat().st_size - 8192))
            return int(json.loads(file.read().splitlines()[-1])["step"])
        return 0

    def wait_for_step(self, process: subprocess.Popen[bytes], after: int) -> float | None:
        """Seconds until there is a step beyond `after`; None when there is none in time."""
        begun = time.monotonic()
        while time.monotonic() - begun < RECOVERY_S and process.poll() is None:
            if self.last_step() > after:
                return time.monotonic() - begun
            time.sleep(0.1)
        return None

    # --- the killer ------------------------------------------------------------------------------------------------

    def strike(self, process: subprocess.Popen[bytes]) -> None:
        kind = self.random.choice(self.options.kinds)
        number = self.random.choice(KINDS[kind][1])
        victims = self.victims(process.pid, kind)
        if not victims:
            return
        fault = Fault(
            kind,
            signal.Signals(number).name,
            self.random.choice(victims),
            round(time.monotonic() - self.begun, 1),
            self.last_step(),
        )
        with suppress(ProcessLookupError):
            os.kill(fault.pid, number)
            self.faults.append(fault)
            recovery = self.wait_for_step(process, fault.step)
            fault.recovery_s = None if recovery is None else round(recovery, 1)
            print(
                f"{fault.at_s:7.1f} s  step {fault.step:5}  {kind:8} {fault.signal:8} -> {fault.recovery_s} s",
                flush=True,
            )

    def victims(self, supervisor: int, kind: str) -> list[int]:
        below = children(supervisor) if kind == "driver" else descendants(supervisor)
        return [pid for pid in below if KINDS[kind][0] in command_line(pid)]

    # --- what the run folder says ----------------------------------------------------------------------------------

    def check(self) -> dict[str, Any]:
        """Rollouts that are missing, doubled or of the wrong problem, over all steps that the metrics hold."""
        logged = [line["step"] for line in self.run.metrics(STAGE) if "reward/mean" in line]
        last = max(logged, default=0)
        stage = load_recipe(RECIPE).stages[STAGE]
        assert isinstance(stage, ReinforceStage)
        stream = ProblemStream(stage.tasks, "train", stage_seed(0, STAGE))
        expected: set[Key] = set()
        cursor = 0
        for step in range(1, last + 1):
            problems, cursor = stream.take(cursor, PROMPTS)
            expected |= {(step, problem.id, sample) for problem in problems for sample in range(GROUP)}
        found = Counter(key for key, _ in rollouts(self.run))
        return {
            "steps": last,
            "steps_missing": len(set(range(1, last + 1)) - set(logged)),
            "steps_doubled": len(logged) - len(set(logged)),
            "rollouts": len(expected),
            "rollouts_lost": len(expected - found.keys()),
            "rollouts_doubled": sum(count - 1 for count in found.values()),
            "rollouts_foreign": len(found.keys() - expected),
        }

    def compare(self, steps: int) -> dict[str, Any]:
        """Rollouts that differ from those of a run without faults, in a token or a bit of a log-probability."""
        calm = RunFolder(self.run.path.with_name("calm"))
        code = self.start(calm.path, [f"stages.{STAGE}.steps={steps}"]).wait()
        undisturbed = dict(rollouts(calm))
        changed = sum(content != undisturbed.get(key) for key, content in rollouts(self.run))
        return {"calm_exit_code": code, "rollouts_changed": changed}


Key = tuple[int, str, int]
"""Step, problem, sample."""


def rollouts(run: RunFolder) -> Iterator[tuple[Key, tuple[bytes, bytes]]]:
    """Every rollout that was trained on, with its tokens and their log-probabilities as they are stored."""
    query = (
        "SELECT step, problem_id, sample, ids, logprobs FROM rollouts LEFT JOIN tokens USING (id) WHERE split = 'train'"
    )
    with closing(sqlite3.connect(run.rollouts_path)) as connection:
        for step, problem, sample, ids, logprobs in connection.execute(query):
            yield (step, problem, sample), (ids, logprobs)


def marked(mark: str) -> Iterator[tuple[int, str]]:
    """Processes with the soak's mark in their environment, but this one, and their command lines."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdecimal() and mark.encode() in (folder / "environ").read_bytes():
                yield int(folder.name), command_line(int(folder.name)).strip()


def shared_memory() -> set[str]:
    return {str(path) for path in Path("/dev/shm").iterdir()}


def report(result: dict[str, Any]) -> str:
    """A table of the faults, and what the run folder says."""
    rows = [["process", "signal", "faults", "survived", "mean s to the next step"]]
    for kind, number in sorted({(fault["kind"], fault["signal"]) for fault in result["faults"]}):
        mine = [f["recovery_s"] for f in result["faults"] if (f["kind"], f["signal"]) == (kind, number)]
        survived = [seconds for seconds in mine if seconds is not None]
        rows.append([kind, number, str(len(mine)), str(len(survived)), f"{mean(survived or [0]):.1f}"])
    facts = [f"{name} {value}" for name, value in result.items() if name not in ("faults", "left")]
    return "\n".join([aligned(rows), ", ".join(facts), f"left behind: {result['left'] or 'nothing'}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=20, help="mean seconds between a new step and the next fault")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--compare", action="store_true", help="run the same steps again without faults")
    parser.add_argument("--json", type=Path, help="[default: results/faults.json]")
    options = parser.parse_args()
    if options.compare and "judge" in options.kinds:
        parser.error("--compare needs --kinds without judge")
    # a short name: Ray puts sockets below it
    with tempfile.TemporaryDirectory(prefix="f-") as folder:
        soak = Soak(options, Path(folder))
        try:
            result = soak.go()
        finally:
            RESULTS.mkdir(exist_ok=True)
            shutil.copy(soak.said, RESULTS / "faults.log")
    print(report(result))
    save("faults", options.json, options, {"packages": package_versions(), **result})
    wrong = ("steps_missing", "steps_doubled", "rollouts_lost", "rollouts_doubled", "rollouts_foreign", "left")
    survived = all(fault["recovery_s"] is not None for fault in result["faults"])
    sys.exit(not survived or any(result[name] for name in wrong) or bool(result.get("rollouts_changed")))


if __name__ == "__main__":
    main()
