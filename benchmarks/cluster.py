"""R1-Zero on one machine in several ways: the same curve? And what does coordination cost?

    python benchmarks/cluster.py                       # every way below, one after the other; stop and start at will
    python benchmarks/cluster.py --ways local ray      # some of them
    python benchmarks/cluster.py --coordination        # one worker and one trainer beside one process, few steps
    python benchmarks/cluster.py --table-only          # the table of what is done so far

Runs lie in runs/cluster/. Every figure comes from metrics.jsonl of a run:

- wall: minutes of training, without evaluation and set-up; rollout: the share of it that sampling took (one step behind
  and asynchronous, sampling that nobody waited for is in no time)
- pass@1: held out, with its 95 % interval, before training and at the end; the recipe's samples each (16)
- gap: the median over steps of the largest |training - sampling| log-probability of the first update, in nats
- stale: mean updates between a rollout's first token and the policy that learnt from it

Coordination compares seconds a step: the same two threads sample, then train, in one process or in two of Ray's. Steps
are interleaved by running each way several times; the median of all steps but each run's first counts.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from measure import REPOSITORY, save, table

from ponder.store.metrics import Line, read_metrics

STAGE = "zero"
TWO = ["cluster.kind=ray", "cluster.rollout.workers=2", "cluster.trainer.ranks=2"]
VLLM = [
    "cluster.kind=ray",
    "cluster.rollout.engine=vllm",
    f"cluster.rollout.vllm.python={REPOSITORY}/.venv-vllm/bin/python",
]
WAYS = {
    "local": ["threads=2"],
    "ray": TWO,
    "behind": [*TWO, "cluster.schedule=one_step_behind"],
    "async": [*TWO, "cluster.schedule=asynchronous"],
    "vllm": VLLM,
}
"""Ways to run, and the settings that make them: two workers and two FSDP2 ranks, one thread each, but for `local`, and
`vllm`, which has one worker and one rank."""

PAIR = {
    "local": ["threads=2"],
    "ray": ["cluster.kind=ray", "cluster.rollout.threads=2", "cluster.trainer.threads=2"],
}
SHORT = [
    f"stages.{STAGE}.steps=12",
    f"stages.{STAGE}.evaluation.every=0",
    f"stages.{STAGE}.watchdog.preflight_prompts=0",
    f"stages.{STAGE}.checkpoint_every=100",
]


def train(recipe: Path, folder: Path, overrides: list[str]) -> None:
    """`ponder run`, which goes on where an earlier one stopped and returns at once when it was done."""
    command = [sys.executable, "-m", "ponder", "run", str(recipe), "--run", str(folder)]
    for override in overrides:
        command += ["--set", override]
    print(f"--- {' '.join(command[1:])}", file=sys.stderr, flush=True)
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run(command, check=True, env=environment)


def steps_of(lines: list[Line]) -> list[Line]:
    return [line for line in lines if "time/update" in line]


def summary(lines: list[Line]) -> dict[str, Any]:
    """What one run showed."""
    steps = steps_of(lines)
    evaluations = [line for line in lines if "heldout/accuracy/pass@1" in line]
    seconds = {name: sum(line[f"time/{name}"] for line in steps) for name in ("rollout", "reward", "update")}

    def text(line: Line) -> str:
        name = "heldout/accuracy/pass@1"
        return f"{line[name]:.3f} [{line[name + '_low']:.3f}, {line[name + '_high']:.3f}]"

    return {
        "steps": len(steps),
        "minutes": sum(seconds.values()) / 60,
        "rollout_share": seconds["rollout"] / sum(seconds.values()),
        "curve": [(line["step"], line["heldout/accuracy/pass@1"]) for line in evaluations],
        "base": text(evaluations[0]),
        "last": text(evaluations[-1]),
        "gap": median(line["policy/logprob_gap"] for line in steps),
        "staleness": sum(line["policy/staleness"] for line in steps) / len(steps),
    }


def curves(options: argparse.Namespace) -> None:
    found = {}
    for name in options.ways:
        folder = options.folder / f"{name}-{options.seed}"
        if not options.table_only:
            train(options.recipe, folder, [f"seed={options.seed}", *WAYS[name], *options.set])
        lines = read_metrics(folder / "metrics.jsonl", STAGE)
        if steps_of(lines):
            found[name] = summary(lines)
    rows = [
        [
            name,
            f"{run['steps']}",
            f"{run['minutes']:.1f}",
            f"{run['rollout_share']:.0%}",
            run["base"],
            run["last"],
            f"{run['gap']:.1g}",
            f"{run['staleness']:.2f}",
        ]
        for name, run in found.items()
    ]
    print(table(["way", "steps", "wall min", "rollout", "base pass@1", "at the end", "gap", "stale"], rows))
    save("cluster", options.json, options, {"runs": found})


def coordination(options: argparse.Namespace) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in PAIR}
    for repeat in range(options.repeats):
        for name, overrides in PAIR.items():
            folder = options.folder / f"coordination-{name}-{repeat}"
            if not options.table_only:
                train(options.recipe, folder, [f"seed={repeat}", *overrides, *SHORT, *options.set])
            lines = steps_of(read_metrics(folder / "metrics.jsonl", STAGE))
            seconds[name] += [later["elapsed"] - earlier["elapsed"] for earlier, later in itertools.pairwise(lines)]
    medians = {name: median(values) for name, values in seconds.items()}
    rows = [[name, f"{len(seconds[name])}", f"{medians[name]:.2f}"] for name in PAIR]
    print(table(["way", "steps", "s a step"], rows))
    print(f"ray / local: {medians['ray'] / medians['local']:.2f}")
    save("coordination", options.json, options, {"seconds": seconds, "ratio": medians["ray"] / medians["local"]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "recipes" / "r1-zero-mini.yaml")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coordination", action="store_true", help="compare seconds a step instead of curves")
    parser.add_argument("--repeats", type=int, default=3, help="runs a way for --coordination (default: 3)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="as in `ponder run`, for all runs")
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "runs" / "cluster")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path, help="where to write the numbers (default: benchmarks/results/)")
    options = parser.parse_args()
    coordination(options) if options.coordination else curves(options)


if __name__ == "__main__":
    main()
