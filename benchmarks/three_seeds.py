"""R1-Zero three times, and once with random rewards: does it learn, every time, and only from what it is paid for?

    python benchmarks/three_seeds.py                 # one run after the other; stop it and start it again at will
    python benchmarks/three_seeds.py --table-only    # the table of what is done so far

Runs lie in runs/three_seeds/: seed-0, seed-1, seed-2 and control-0, which has the same settings but one reward drawn at
random. Every figure comes from metrics.jsonl of the run: held-out problems with the recipe's samples each (16), 95 %
intervals as the evaluation gives them, minutes of training without evaluation and set-up.

- rise after: minutes of training until the first evaluation whose interval lies above the base's
- length x: mean reply length on training prompts, the last ten steps over the first ten
- vote gain: cons@k - pass@1 at the end
- gap: the largest |training - sampling| log-probability of any token of any first update, in nats
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from measure import REPOSITORY, save, table

from ponder.store.metrics import Line, read_metrics

STAGE = "zero"
CONTROL = [
    f"stages.{STAGE}.rewards={{random: 1}}",
    # a run that is meant to learn nothing must not be stopped for it
    f"stages.{STAGE}.watchdog.enabled=false",
]
EDGE_STEPS = 10
"""Steps over which the first and the last lengths are averaged."""


@dataclass(frozen=True)
class Evaluation:
    """One held-out evaluation."""

    step: int
    minutes: float
    value: float
    low: float
    high: float
    vote: float

    @classmethod
    def of(cls, line: Line) -> Evaluation:
        vote = next(value for name, value in line.items() if name.startswith("heldout/accuracy/cons@"))
        accuracy = "heldout/accuracy/pass@1"
        numbers = (line[accuracy], line[f"{accuracy}_low"], line[f"{accuracy}_high"], vote)
        return cls(line["step"], line["time/training"] / 60, *numbers)

    def text(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def summary(lines: list[Line], deadline_minutes: float) -> dict[str, Any]:
    """What one run showed."""
    evaluations = [Evaluation.of(line) for line in lines if "heldout/accuracy/pass@1" in line]
    lengths = [line["length/mean"] for line in lines if "length/mean" in line]
    base, last = evaluations[0], evaluations[-1]
    in_time = [e for e in evaluations if e.minutes <= deadline_minutes]
    rise = next((e.minutes for e in evaluations if e.low > base.high), None)
    return {
        "base": base,
        "in_time": in_time[-1],
        "last": last,
        "rise_minutes": rise,
        "length_ratio": mean(lengths[-EDGE_STEPS:]) / mean(lengths[:EDGE_STEPS]) if lengths else None,
        "vote_gain": last.vote - last.value,
        "largest_logprob_gap": max(
            (line["policy/logprob_gap"] for line in lines if "length/mean" in line), default=0.0
        ),
        "minutes": last.minutes,
        "steps": last.step,
    }


def train(name: str, recipe: Path, folder: Path, overrides: list[str]) -> None:
    """`ponder run`, which goes on where an earlier one stopped and returns at once when it was done."""
    command = [sys.executable, "-m", "ponder", "run", str(recipe), "--run", str(folder)]
    for override in overrides:
        command += ["--set", override]
    print(f"--- {name}: {' '.join(command[1:])}", file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "recipes" / "r1-zero-mini.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--controls", type=int, nargs="*", default=[0], help="seeds of the runs with random rewards")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as in `ponder run`, for all runs")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "three_seeds")
    parser.add_argument(
        "--deadline", type=float, default=12.0, help="minutes of training that may be used (default: 12)"
    )
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    options = parser.parse_args()

    runs = {f"seed-{seed}": [f"seed={seed}", *options.set] for seed in options.seeds}
    runs |= {f"control-{seed}": [f"seed={seed}", *options.set, *CONTROL] for seed in options.controls}
    found = {}
    for name, overrides in runs.items():
        folder = options.folder / name
        if not options.table_only:
            train(name, options.recipe, folder, overrides)
        lines = read_metrics(folder / "metrics.jsonl", STAGE)
        if lines:
            found[name] = summary(lines, options.deadline)
    rows = [
        [
            name,
            run["base"].text(),
            run["in_time"].text(),
            run["last"].text(),
            "never" if run["rise_minutes"] is None else f"{run['rise_minutes']:.1f}",
            f"{run['length_ratio']:.2f}" if run["length_ratio"] else "",
            f"{run['vote_gain']:+.3f}",
            f"{run['largest_logprob_gap']:.0e}",
            f"{run['steps']}",
            f"{run['minutes']:.1f}",
        ]
        for name, run in found.items()
    ]
    within = f"within {options.deadline:g} min"
    header = [
        "run",
        "base pass@1",
        within,
        "at the end",
        "rise after",
        "length x",
        "vote gain",
        "gap",
        "steps",
        "minutes",
    ]
    print(table(header, rows))
    plain = {
        name: {key: vars(value) if isinstance(value, Evaluation) else value for key, value in run.items()}
        for name, run in found.items()
    }
    save("three_seeds", options.json, options, {"runs": plain})


if __name__ == "__main__":
    main()
