"""Run folders for the tests of the page: one that a recipe made, and one whose every number is known."""

from __future__ import annotations

import atexit
import functools
import json
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from ponder.model.embedded import FOLDERS
from ponder.model.tokenizer import Tokenizer
from ponder.pipeline import run_recipe
from ponder.recipe import load_recipe
from ponder.run import RunFolder, StageRecord
from ponder.store.evaluations import EvaluationsWriter
from ponder.store.metrics import MetricsLog
from ponder.store.rollouts import RolloutRow, RolloutWriter

HOSTILE = (
    '<script>document.title = "stolen"</script><img src=x onerror="document.title=1">\u202e' + "wide " * 3 + "W" * 2000
)
"""What a model might write to harm a reader."""

LAST_STEP = 4
"""Of the known run's training."""

STAGES: dict[str, Any] = {
    "zero": {
        "verb": "reinforce",
        "model": "mini-llama",
        "template": "mini",
        "tasks": {"arithmetic": {"difficulty": 2}},
        "steps": 6,
        "prompts_per_step": 2,
        "group_size": 2,
        "sampling": {"max_tokens": 24},
        "evaluation": {"every": 2, "problems": 2, "samples": 2},
        "watchdog": {"enabled": False, "preflight_prompts": 0},
    },
    "table": {
        "verb": "evaluate",
        "models": ["mini-llama", "zero"],
        "template": "mini",
        "tasks": {"arithmetic": {"difficulty": 2}},
        "problems": 3,
        "samples": 2,
        "sampling": {"max_tokens": 24},
    },
}


def real_run(folder: Path) -> Path:
    """Two steps of reinforcement and an evaluation, carried out on the smallest embedded model."""
    recipe = folder.parent / "recipe.yaml"
    stages = {**STAGES, "zero": {**STAGES["zero"], "steps": 2}}
    recipe.write_text(json.dumps({"name": "tiny", "judging": {"workers": 0}, "stages": stages}))
    run_recipe(str(recipe), run_dir=folder, quiet=True)
    return folder


def known_run(folder: Path, state: str = "done") -> RunFolder:
    """A run that never took place: metrics, rollouts and results are all made up and easy to reckon with."""
    shutil.copytree(_known(), folder)
    run = RunFolder(folder)
    if state != "done":
        with run.lock():
            run.set_record("zero", StageRecord(verb="reinforce", state=state, seconds=40.0, threads=1))  # type: ignore[arg-type]
    return run


def aged_run(folder: Path) -> RunFolder:
    """The known run, and what asynchronous training adds: a rollout over versions of 3, 5 and more tokens."""
    run = known_run(folder)
    asynchronous = {"policy/logprob_gap": 0.25, "policy/sampler_kl": 0.01, "policy/staleness": 1.5, "time/wait": 3.0}
    with closing(MetricsLog(run.metrics_path, "zero")) as log:
        log.write(LAST_STEP + 1, asynchronous)
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        writer.add(LAST_STEP + 2, [rollout(LAST_STEP + 2, 1, version=2, versions=[(0, 2), (3, 3), (8, 4)])])
    return run


def earlier_run(folder: Path) -> RunFolder:
    """The known run as a version of Ponder would have stored it that kept less of each token."""
    run = known_run(folder)
    with closing(sqlite3.connect(run.rollouts_path)) as db, db:
        db.execute("ALTER TABLE rollouts DROP COLUMN version")
        for name in ("entropies", "ratios", "versions"):
            db.execute(f"ALTER TABLE tokens DROP COLUMN {name}")
    return run


@functools.cache
def _known() -> Path:
    """Made once, since every step of it is synced to disk."""
    run = RunFolder(Path(tempfile.mkdtemp(prefix="ponder-known-")) / "known")
    atexit.register(shutil.rmtree, run.path.parent, ignore_errors=True)
    with run.lock():
        run.prepare(load_recipe({"name": "known", "stages": STAGES}))
        run.set_record("zero", StageRecord(verb="reinforce", state="done", seconds=40.0, threads=1))
        run.set_record("table", StageRecord(verb="evaluate", state="done", seconds=4.0, threads=1))
    write_metrics(run, range(1, LAST_STEP + 1))
    with closing(RolloutWriter(run.rollouts_path, "zero")) as writer:
        for step in range(1, LAST_STEP + 1):
            writer.add(step, [rollout(step, sample) for sample in range(4)])
        held_out = rollout(LAST_STEP, 0, "held-out", split="test", advantage=None, ratios=[], reference="3")
        writer.add(LAST_STEP, [held_out])
    write_results(run)
    return run.path


def write_metrics(run: RunFolder, steps: range, stage: str = "zero") -> None:
    """A line a step: the accuracy is a tenth of the step; step 2 alerts the watchdog."""
    with closing(MetricsLog(run.metrics_path, stage)) as log:
        for step in steps:
            known = {"accuracy/pass@1": step / 10, "length/mean": 20.0 + step, "watchdog/no_variance": float(step == 2)}
            log.write(step, known)


def rollout(step: int, sample: int, problem: str = "arithmetic-en-1", **changes: Any) -> RolloutRow:
    """Samples 0 and 1 are right, the second after it turned round; 2 is wrong; 3 was cut and has no answer."""
    text = [
        "<think>1+2=3</think><answer>3</answer>",
        "<think>1+2=4. Wait, 1+2=3</think><answer>3</answer>",
        "<think>1+2=5, 100%_sure</think><answer>5</answer>",
        "<think>1+1=2, 1+1=2, 1+1=2",
    ][sample]
    thinking, _, rest = text.removeprefix("<think>").partition("</think>")
    ids = _tokenizer().encode(changes.get("text", text))
    known: dict[str, Any] = {
        "problem_id": problem,
        "task": "arithmetic",
        "prompt": "User: What is 1+2?\nAssistant:",
        "sample": sample,
        "text": text,
        "thinking": thinking,
        "answer": rest.removeprefix("<answer>").removesuffix("</answer>") or None,
        "rewards": {"accuracy": float(sample < 2), "form at": 0.5},
        "correct": sample < 2,
        "finish_reason": "length" if sample == 3 else "stop",
        "length": 10 * step + sample,
        "advantage": 1.0 if sample < 2 else -1.0,
        "language": "zh" if sample == 2 else "en",
        "reference": {"expression": "1+2", "answer": 3},
        "token_ids": ids,
        "logprobs": [-0.5] * len(ids),
        "entropies": [1.0] * len(ids),
        "ratios": [2.0 if sample < 2 else 0.75] * len(ids),
        "version": step - 1,
    }
    return RolloutRow(**{**known, **changes})


def write_results(run: RunFolder, scores: dict[str, list[list[bool]]] | None = None) -> None:
    """pass@1 of two models on one benchmark, with the samples behind it."""
    scores = scores or {"mini-llama": [[True, False], [False, False]], "zero": [[True, True], [True, False]]}
    writer = EvaluationsWriter(run.evaluations_path, "table")
    for model, table in scores.items():
        path = Path("stages") / "table" / "samples" / f"{model}.jsonl"
        (run.path / path).parent.mkdir(parents=True, exist_ok=True)
        samples = [
            {"problem_id": f"p{number}", "problem": f"What is {number}?", "sample": sample, "correct": correct}
            | {"text": f"<b>{model}</b>", "reference": str(number), "finish_reason": "stop", "length": 3}
            for number, row in enumerate(table)
            for sample, correct in enumerate(row)
        ]
        (run.path / path).write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        value = sum(map(sum, table)) / sum(map(len, table))
        row = {"model": model, "benchmark": "sums", "metric": "accuracy/pass@1", "value": value, "interval": [0.1, 0.9]}
        writer.add([{**row, "k": 2, "problems": 2, "samples": str(path)}])


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(FOLDERS["mini-llama"])
