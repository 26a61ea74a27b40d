"""Carries out a recipe: which stages run, in which order, and what is taken from an earlier run.

A stage's result is kept under a hash of all that it depends on. A stage that is done under its present hash does not
run again; one that was begun under it goes on; a result with another hash is set aside as `NAME.old-<hash>`, never
destroyed, and comes back when the settings do.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.resources
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ponder.cluster.runtime import refuse_idle_gpus
from ponder.errors import BrokenInputError, InterruptedRunError, UsageError
from ponder.evaluation.benchmarks import get_benchmark
from ponder.evaluation.benchmarks.base import local_files
from ponder.evaluation.costs import cost_grid, count_tokens, holds, stage_costs
from ponder.evaluation.tables import aligned
from ponder.lineage import inputs, references, running_order
from ponder.model.embedded import FOLDERS
from ponder.names import check_names
from ponder.progress import Reporter, duration
from ponder.recipe import (
    EvaluateStage,
    FineTuneStage,
    Recipe,
    ReinforceStage,
    SampleStage,
    SourceSettings,
    Stage,
    TaskSettings,
    load_recipe,
)
from ponder.run import RunFolder, StageContext, StageRecord, StopRequest, stage_seed, utc_now
from ponder.store.files import disk_advice, disk_errors

RESULT_VERSION = 2
"""Raised by whoever changes what a stage computes from the same settings: every cached result is then stale."""

_SAME_STOP_S = 1.0
"""Signals so close together are one: a service manager tells every process of a job, and each parent its child."""

_BLOCK_BYTES = 1 << 20
_MAX_BLOCKS = 64


@dataclass(frozen=True)
class RunResult:
    """What `run_pipeline` did. `ran` and `cached` are stage names, in order."""

    path: Path
    ran: tuple[str, ...]
    cached: tuple[str, ...]

    def model(self, stage: str) -> Path:
        """The folder of the model that a stage left. Raises `UsageError` when it left none."""
        folder = RunFolder(self.path).stage_folder(stage) / "model"
        if not folder.exists():
            raise UsageError(f"{self.path} holds no model of a stage {stage!r}")
        return folder


def run_recipe(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Iterable[str] = (),
    run_dir: str | Path | None = None,
    to: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Run a recipe: a YAML file, the name of one that comes with Ponder, a mapping, or a parsed `Recipe`.

    `overrides` are settings by path, as in `["stages.zero.steps=50", "seed=1"]`; everything else, and what is raised,
    is as in `run_pipeline`. Raises `UsageError` for a wrong key or name, too.

        result = ponder.run("r1-zero-mini", ["stages.zero.steps=50"])
        model = ponder.load(result.model("zero"))
    """
    return run_pipeline(parse_recipe(recipe, overrides), run_dir, to=to, fresh=fresh, quiet=quiet)


def run_pipeline(
    recipe: Recipe,
    run_dir: str | Path | None = None,
    to: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Carry out a recipe in a run folder (default: runs/<recipe name>), from wherever an earlier start left it.

    `to` stops after that stage; `fresh` discards what the same settings left before; `quiet` shows warnings only.
    Raises `InterruptedRunError` on Ctrl-C or SIGTERM (the same call goes on where it was), `UsageError` when the
    recipe is wrong or the folder is in use, `BrokenInputError` when a file or the disk is, `RefusedError` from a stage.
    """
    wanted = stages_up_to(recipe, to)
    check_names(recipe, wanted)
    refuse_idle_gpus(recipe)
    run = RunFolder(default_run_dir(recipe) if run_dir is None else run_dir)
    ran: list[str] = []
    with run.lock(), _sigterm_stops(recipe.stop_s) as stop:
        run.prepare(recipe)
        hashes = stage_hashes(recipe)
        for name in wanted:
            reporter = Reporter(name, quiet=quiet)
            _make_room(run, name, hashes[name], fresh, reporter)
            if is_done(run, name, hashes[name]):
                reporter.note("done before with the same settings")
                continue
            if stop.made:
                raise InterruptedRunError(f"stopped before stage {name!r}: the same command goes on there")
            _run_stage(recipe, name, run, hashes, reporter, stop)
            ran.append(name)
        if ran:
            costs = stage_costs({name: record for name, record in run.manifest().stages.items() if name in wanted})
            Reporter(recipe.name, quiet=quiet).note(f"what it cost\n{aligned(cost_grid(costs))}")
    return RunResult(run.path, tuple(ran), tuple(name for name in wanted if name not in ran))


def discard_results(recipe: Recipe, run_dir: str | Path, to: str | None = None, quiet: bool = False) -> None:
    """What `run_pipeline` does for `fresh`, for all stages up to `to` at once and without running any. Raises alike."""
    wanted = stages_up_to(recipe, to)
    check_names(recipe, wanted)
    run = RunFolder(run_dir)
    with run.lock():
        run.prepare(recipe)
        hashes = stage_hashes(recipe)
        for name in wanted:
            _make_room(run, name, hashes[name], fresh=True, reporter=Reporter(name, quiet=quiet))


def default_run_dir(recipe: Recipe) -> Path:
    """Where a recipe runs unless told otherwise: runs/<recipe name>, from the present folder."""
    return Path("runs") / recipe.name


def parse_recipe(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe behind whatever names it, with overrides applied. Raises as `find_recipe` and `load_recipe` do."""
    if isinstance(recipe, Recipe):
        return load_recipe(recipe.model_dump(mode="json"), overrides) if overrides else recipe
    return load_recipe(recipe if isinstance(recipe, Mapping) else find_recipe(str(recipe)), overrides)


def find_recipe(name: str) -> Path:
    """The file of a recipe: a path as it is, else the name of a recipe that comes with Ponder.

    Raises `UsageError` that names the nearest recipe.
    """
    if Path(name).is_file():
        return Path(name)
    known = packaged_recipes()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"recipes that come with Ponder: {', '.join(known) or 'none'}"
    raise UsageError(f"there is no recipe {name!r}, neither a file nor a name: {hint}")


def packaged_recipes() -> dict[str, Path]:
    """Recipes that come with Ponder, by name (`r1-zero-mini`, or `folder/name` below the top)."""
    root = Path(str(importlib.resources.files("ponder")))
    # a wheel carries the recipes inside the package, a clone keeps them at its top
    folder = root / "recipes" if (root / "recipes").is_dir() else root.parent / "recipes"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def stages_up_to(recipe: Recipe, to: str | None) -> list[str]:
    """Names of the stages in the order in which they run; with `to`, only what it needs, and itself last.

    Raises `UsageError` if `to` is unknown.
    """
    names = running_order(recipe)
    if to is None:
        return names
    if to not in names:
        raise UsageError(f"--to {to!r} is no stage of {recipe.name!r}: its stages are {', '.join(names)}")
    needed = {to}
    for name in reversed(names):
        if name in needed:
            needed |= inputs(recipe, name)
    return [name for name in names if name in needed]


# --- hashes ------------------------------------------------------------------------------------------------------


def stage_hashes(recipe: Recipe) -> dict[str, str]:
    """A hash of all that each stage's result depends on: its settings, seed, threads, inputs and Ponder's version; the
    precision, and on a cluster who samples and when.

    A change thus reaches the stages downstream of it, and no others. Hexadecimal, 32 digits.
    """
    hashes: dict[str, str] = {}
    for name in running_order(recipe):
        stage = recipe.stages[name]
        parts = {
            "version": RESULT_VERSION,
            "settings": stage.model_dump(mode="json"),
            "seed": stage_seed(recipe.seed, name),
            "threads": recipe.threads,
            "inputs": {key: input_hash(recipe, ref, hashes) for key, ref in references(stage).items()},
            "files": _task_files(stage),
        }
        if isinstance(stage, SampleStage) and stage.decontaminate_ngram:
            parts |= _benchmark_files(recipe)
        parts |= _computing(recipe)
        hashes[name] = _digest(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode())
    return hashes


def _computing(recipe: Recipe) -> dict[str, Any]:
    """Where and in which arithmetic a result came about, where that is not the default."""
    cluster = recipe.cluster.what_counts()
    precision = {} if recipe.precision == "fp32" else {"precision": recipe.precision}
    return precision | ({"cluster": cluster} if cluster else {})


def input_hash(recipe: Recipe, reference: str, hashes: dict[str, str]) -> str:
    """Hash of what a stage starts from: another stage's hash, a file's or folder's content, or else the name."""
    if reference in recipe.stages:
        return hashes[reference]
    if Path(reference).exists():
        return fingerprint(Path(reference))
    if reference in FOLDERS and FOLDERS[reference].is_dir():
        return fingerprint(FOLDERS[reference])  # new weights inside the package make a run from them stale
    return reference


def fingerprint(path: Path) -> str:
    """Hash of a file, or of all files below a folder, by name, size and content.

    Files above 64 MiB are sampled (64 blocks of 1 MiB, evenly spaced, first and last included): new weights differ
    everywhere, and a copy, whose times differ, must not look new. Raises `BrokenInputError` for unreadable files.
    """
    with disk_errors(path, "read"):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        parts = [[file.relative_to(path).as_posix(), file.stat().st_size, _content_hash(file)] for file in files]
    return _digest(json.dumps(parts).encode())


def _content_hash(file: Path) -> str:
    blocks = max(1, -(-file.stat().st_size // _BLOCK_BYTES))
    count = min(blocks, _MAX_BLOCKS)
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as source:
        for i in range(count):
            source.seek((i * (blocks - 1) // max(1, count - 1)) * _BLOCK_BYTES)
            digest.update(source.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _task_files(stage: Stage) -> dict[str, str]:
    tasks: dict[str, TaskSettings | SourceSettings] = {}
    match stage:
        case ReinforceStage() | EvaluateStage():
            tasks |= stage.tasks
        case SampleStage():
            tasks |= stage.tasks | {f"sources.{name}": source for name, source in stage.sources.items()}
        case FineTuneStage() if stage.on_policy is not None:
            tasks |= stage.on_policy.tasks
        case _:
            pass
    paths = {name: task.path for name, task in tasks.items() if task.path is not None}
    if isinstance(stage, EvaluateStage):
        for benchmark in map(get_benchmark, stage.benchmarks):
            if stage.data_dir is None:
                paths[benchmark.name] = str(benchmark.hub)
            else:
                files = local_files(benchmark, Path(stage.data_dir))
                paths |= {f"{benchmark.name}/{file.name}": str(file) for file in files}
    return {name: fingerprint(Path(path)) if Path(path).exists() else path for name, path in paths.items()}


def _benchmark_files(recipe: Recipe) -> dict[str, Any]:
    """What a data set is kept clean of, where it comes from files or the Hub: other problems make it stale.

    Generated benchmarks are left out: their test split never meets their train split, whatever their settings.
    """
    found: dict[str, Any] = {}
    for name, stage in recipe.stages.items():
        if isinstance(stage, ReinforceStage | EvaluateStage) and (files := _task_files(stage)):
            problems = stage.task_problems if isinstance(stage, EvaluateStage) else stage.evaluation.problems
            found[f"benchmark {name}"] = [problems, files]
    return found


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


# --- one stage ---------------------------------------------------------------------------------------------------


def set_aside_name(stage: str, result_hash: str) -> str:
    """Name under which a stage's result with that hash is kept when the settings have changed."""
    return f"{stage}.old-{result_hash[:8]}"


def is_done(run: RunFolder, stage: str, result_hash: str) -> bool:
    """Whether the run holds the finished result of a stage under that hash."""
    record = run.stage_record(stage)
    return (
        record is not None and (record.state, record.hash) == ("done", result_hash) and run.stage_folder(stage).exists()
    )


def _make_room(run: RunFolder, name: str, result_hash: str, fresh: bool, reporter: Reporter) -> None:
    """Leave under the stage's name only what was made under `result_hash`, and not even that when `fresh`."""
    aside = set_aside_name(name, result_hash)
    record = run.stage_record(name)
    if record is not None and record.hash != result_hash:
        kept = set_aside_name(name, record.hash)
        run.move_stage(name, kept)
        reporter.note(f"what it depends on has changed: the old result is kept as stages/{kept}")
        record = None
    if fresh:
        run.discard_stage(name)
        run.discard_stage(aside)
    elif record is None and run.stage_record(aside) is not None:
        run.move_stage(aside, name)
        reporter.note(f"the result kept as stages/{aside} fits these settings: it comes back")


def _run_stage(
    recipe: Recipe, name: str, run: RunFolder, hashes: dict[str, str], reporter: Reporter, stop: StopRequest
) -> None:
    stage = recipe.stages[name]
    before = run.stage_record(name)
    threads = recipe.threads or available_cores()
    if before is not None and before.threads != threads:
        reporter.warn(
            f"begun with {before.threads} threads, goes on with {threads}: "
            f"set threads: {before.threads} for a result equal bit for bit"
        )
    record = StageRecord(
        verb=stage.verb,
        state="running",
        hash=hashes[name],
        started=utc_now() if before is None else before.started,
        seconds=0.0 if before is None else before.seconds,
        core_seconds=0.0 if before is None else before.core_hours * 3600,
        gpu_seconds=0.0 if before is None else before.gpu_seconds,
        threads=threads,
        uses={ref: input_hash(recipe, ref, hashes) for ref in references(stage).values()},
    )
    run.set_record(name, record)
    begun = time.monotonic()

    def ended(state: str, error: str | None = None) -> StageRecord:
        lines = run.metrics(name)
        # a start that was killed could not write how long it took, but its lines tell
        logged = max((line["elapsed"] for line in lines), default=0.0)
        seconds = round(max(record.seconds + time.monotonic() - begun, logged), 3)
        held = holds(stage, recipe, threads, _computes_on_gpu(recipe))
        new = seconds - record.seconds
        return record.model_copy(
            update={
                "state": state,
                "ended": utc_now(),
                "seconds": seconds,
                "core_seconds": round(record.core_hours * 3600 + new * held.cores, 3),
                "gpu_seconds": round(record.gpu_seconds + new * held.gpus, 3),
                "sampled_tokens": count_tokens(lines, "tokens/sampled"),
                "trained_tokens": count_tokens(lines, "tokens/trained"),
                "error": error,
            }
        )

    try:
        _call_verb(recipe, name, run, threads, reporter, stop)
    except InterruptedRunError as error:  # something outside fails, such as an endpoint: the stage says what
        run.set_record(name, ended("interrupted", str(error)))
        raise
    except KeyboardInterrupt as error:
        run.set_record(name, ended("interrupted"))
        raise InterruptedRunError(f"stopped in stage {name!r}: the same command goes on where it was") from error
    except Exception as error:  # whatever it was is recorded, then raised again
        with suppress(BrokenInputError):  # on a full disk the manifest cannot be written either; say the cause
            run.set_record(name, ended("failed", str(error) or type(error).__name__))
        advice = disk_advice(error)
        if advice is not None:
            raise BrokenInputError(f"stage {name!r} cannot write to {run.path}: {advice}") from error
        raise
    finished = ended("done")
    run.set_record(name, finished)
    reporter.note(f"done in {duration(finished.seconds)}")


def _call_verb(recipe: Recipe, name: str, run: RunFolder, threads: int, reporter: Reporter, stop: StopRequest) -> None:
    """Import the verb's module, which brings torch with it, and hand it the stage."""
    set_up_torch(threads)
    stage = recipe.stages[name]
    run_stage: Callable[[Any, StageContext], None] = importlib.import_module(f"ponder.stages.{stage.verb}").run_stage
    context = StageContext.open(recipe, name, run, reporter, stop)
    try:
        run_stage(stage, context)
    finally:
        stop.heeded = False
        context.close()


def _computes_on_gpu(recipe: Recipe) -> bool:
    """Whether a stage that has run in this process had a GPU; where it never asked for torch, it had none."""
    torch = sys.modules.get("torch")
    return recipe.device != "cpu" and torch is not None and bool(torch.cuda.is_available())


def available_cores() -> int:
    """CPU cores that this process may use: OMP_NUM_THREADS where it is set, else all."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up_torch(threads: int) -> None:
    """Fix what a result depends on besides settings and seed: the threads, and the order of sums on the CPU."""
    import torch

    from ponder.model.runtime import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        # filling fresh memory with NaN is a debugging aid that costs time and changes no result
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def _sigterm_stops(patience_s: float) -> Iterator[StopRequest]:
    """SIGTERM stops a run as Ctrl-C does, but lets a training step end first: `patience_s` seconds, or until a second
    SIGTERM. Signals can be caught in the main thread only; elsewhere nothing changes."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    owner, first = os.getpid(), 0.0
    terminate, alarm = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != owner:
            # a worker forked from here inherits the handler, and is to end as any process would
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif stop.heeded and not stop.made and patience_s:
            stop.made, first = True, time.monotonic()
            signal.signal(signal.SIGALRM, on_signal)
            signal.setitimer(signal.ITIMER_REAL, patience_s)
        elif number == signal.SIGALRM or not stop.made or time.monotonic() - first >= _SAME_STOP_S:
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, on_signal)
    try:
        yield stop
    except KeyboardInterrupt as error:  # between two stages
        raise InterruptedRunError("stopped: the same command goes on where it was") from error
    finally:
        if stop.made:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, alarm)
        signal.signal(signal.SIGTERM, terminate)
