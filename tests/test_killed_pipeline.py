"""kill -9 in every kind of stage, again and again: the run ends in the same bytes as one that was never broken."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ponder.lineage import running_order
from ponder.pipeline import run_recipe
from ponder.recipe import load_recipe
from ponder.run import RunFolder

KILLS = {"data": 2, "tuned": 2, "helpful": 3, "taught": 2, "reinforced": 5, "table": 1}
"""By stage, how many files of its folder a process may put in place before it kills itself.

A checkpoint is two: the last one makes room, then the new one comes; an odd number is a kill in between."""

RUNNER = """
import os, signal, sys

rename, folder, limit, seen = os.replace, f"/stages/{sys.argv[3]}/", int(sys.argv[4]), 0

def counted(source, target, **options):
    global seen
    rename(source, target, **options)
    seen += folder in str(target)
    if seen == limit and folder in str(target):
        os.kill(os.getpid(), signal.SIGKILL)

os.replace = counted
from ponder.pipeline import run_recipe
run_recipe(sys.argv[1], run_dir=sys.argv[2], quiet=True)
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """All five verbs, on the smallest embedded model."""
    tasks = {"arithmetic": {"difficulty": 2}}
    short = {"max_tokens": 12}
    stages: dict[str, dict[str, Any]] = {
        "data": {
            "verb": "sample",
            "model": "mini-llama",
            "template": "mini",
            "tasks": tasks,
            "problems": 6,
            "samples": 2,
            "sampling": short,
            "keep": {"correct": False, "finished": False},
            "sources": {"mini-world": {"rows": 12, "tasks": {"general": {}}}},
            "checkpoint_every": 2,
        },
        "tuned": {
            "verb": "fine_tune",
            "model": "mini-llama",
            "template": "mini",
            "data": ["data"],
            "epochs": 2,
            "tokens_per_step": 512,
            "context": 512,
            "min_stop_rate": 0,
            "checkpoint_every": 2,
        },
        "helpful": {
            "verb": "train_reward",
            "model": "mini-llama",
            "template": "mini",
            "data": ["mini-world"],
            "rows": 40,
            "rows_per_step": 8,
            "checkpoint_every": 2,
        },
        "taught": {
            "verb": "fine_tune",
            "model": "mini-llama",
            "template": "mini",
            "on_policy": {
                "teacher": "tuned",
                "tasks": tasks,
                "prompts_per_step": 2,
                "samples": 2,
                "sampling": short,
            },
            "steps": 4,
            "checkpoint_every": 2,
        },
        "reinforced": {
            "verb": "reinforce",
            "model": "tuned",
            "template": "mini",
            "tasks": {**tasks, "general": {"from_step": 2}},
            "rewards": {"random": 1, "helpful": {"model": "helpful", "tasks": ["general"], "from_step": 2}},
            "steps": 4,
            "prompts_per_step": 2,
            "group_size": 4,
            "sampling": short,
            "evaluation": {"every": 2, "problems": 4, "samples": 2},
            "watchdog": {"enabled": False, "preflight_prompts": 0},
            "checkpoint_every": 1,
        },
        "table": {
            "verb": "evaluate",
            "models": ["tuned", "reinforced"],
            "template": "mini",
            "tasks": tasks,
            "problems": 4,
            "samples": 2,
            "sampling": short,
        },
    }
    path = tmp_path / "all-verbs.yaml"
    path.write_text(yaml.safe_dump({"name": "all-verbs", "threads": 1, "stages": stages}))
    return path


def results(run: Path) -> dict[str, str]:
    """What a run leaves for others, by file: weights, data, samples, and the rows of its evaluations."""
    files = [
        file
        for stage in sorted((run / "stages").iterdir())
        for part in ("model", "data", "samples")
        for file in sorted((stage / part).rglob("*"))
        if file.is_file()
    ]
    found = {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    found["evaluations"] = json.dumps(RunFolder(run).evaluations(), sort_keys=True)
    return found


def start(recipe: Path, run: Path, stage: str, limit: int) -> int:
    """Run the recipe in a process of its own, which kills itself in that stage; its exit status."""
    command = [sys.executable, "-c", RUNNER, str(recipe), str(run), stage, str(limit)]
    return subprocess.run(command, capture_output=True, timeout=500, check=False).returncode


@pytest.mark.timeout(2000)
def test_killed_in_every_kind_of_stage_it_ends_in_the_same_bytes(recipe: Path, tmp_path: Path) -> None:
    run_recipe(recipe, run_dir=tmp_path / "unbroken", quiet=True)
    killed = tmp_path / "killed"
    for stage in running_order(load_recipe(recipe)):
        assert start(recipe, killed, stage, KILLS[stage]) == -9
        record = RunFolder(killed).manifest().stages[stage]
        assert record.state == "running"
        # whoever starts such a run again sees that this start was not in vain
        assert any(mark.startswith(record.hash) and at > 0 for mark, at in RunFolder(killed).progress().items())
    assert start(recipe, killed, "none", 0) == 0
    assert results(killed) == results(tmp_path / "unbroken")
