"""A run folder: what lies where, who may write to it, and what a stage is handed.

    runs/NAME/
      recipe.yaml           as resolved: every default written out
      manifest.json         stages: state, hash, started, ended, what each used; versions of the packages; machine
      metrics.jsonl         one line a step
      rollouts.sqlite       every rollout of every step
      stages/STAGE/model/   a Hugging Face folder; data/ Parquet; state/ what an exact resume needs
      evaluations.json      a row a model and benchmark
      report.html           one file, opens anywhere

A run folder is all there is: copy it, and everything still opens.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ponder.errors import BrokenInputError, UsageError
from ponder.progress import Reporter
from ponder.recipe import Recipe, TrackingSettings, load_recipe, to_yaml
from ponder.rewards import IN_PROCESS, Judges
from ponder.store.evaluations import EvaluationsWriter, Row, edit_evaluations, read_evaluations
from ponder.store.files import atomic_write, atomic_write_json, disk_errors, make_folder, read_json
from ponder.store.metrics import Line, MetricsLog, edit_metrics, newest_steps, read_metrics
from ponder.store.rollouts import RolloutStore, RolloutWriter
from ponder.store.tracking import Sink, Tracked, open_sinks

StageState = Literal["waiting", "running", "interrupted", "failed", "done"]

_PACKAGES = ("ponder", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "math-verify")


class StageRecord(BaseModel):
    """What the manifest says of a stage. Times are ISO 8601 in UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verb: str
    state: StageState = "waiting"
    hash: str = ""
    """Of everything that the result depends on: see `ponder.pipeline.stage_hashes`."""
    started: str | None = None
    ended: str | None = None
    seconds: float = 0.0
    """Time spent in the stage, over all its starts."""
    threads: int = 0
    """CPU threads of the linear algebra in the driver, as resolved."""
    core_seconds: float | None = None
    """`seconds` x the CPU cores that the stage held meanwhile, on all machines: see `ponder.evaluation.costs.holds`."""
    gpu_seconds: float = 0.0
    """The same of GPUs."""
    sampled_tokens: int | None = None
    """Tokens sampled in the stage; None where none were counted."""
    trained_tokens: int | None = None
    """Tokens trained on in the stage; None where none were counted."""
    uses: dict[str, str] = {}
    """Each model or data set that the stage starts from, and the hash it had."""
    error: str | None = None
    """Why a failed stage failed."""

    @property
    def core_hours(self) -> float:
        """Manifests that do not count cores are of one process."""
        seconds = self.seconds * self.threads if self.core_seconds is None else self.core_seconds
        return seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return self.gpu_seconds / 3600


class Manifest(BaseModel):
    """manifest.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    stages: dict[str, StageRecord] = {}
    packages: dict[str, str] = {}
    machine: dict[str, Any] = {}
    moving: tuple[str, str] | None = None
    """Set while a stage's result is being renamed, so that a killed rename is finished by the next start."""


class RunFolder:
    """One run's folder. Construction does no I/O; `prepare` makes the folder, `open` expects it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run. Raises `UsageError` when there is none."""
        run = cls(path)
        if not run.manifest_path.exists():
            raise UsageError(f"{path} is not a run folder: it has no manifest.json (`ponder ls` lists the runs)")
        return run

    @classmethod
    def find(cls, name: str) -> RunFolder:
        """A run by its folder, or by its name below `runs/`; a folder that is no run does not stand in the way.

        Raises `UsageError` when there is neither.
        """
        if cls(name).manifest_path.exists():
            return cls(name)
        below = cls(Path("runs") / name)
        return below if below.manifest_path.exists() else cls.open(name if Path(name).exists() else below.path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def recipe_path(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rollouts_path(self) -> Path:
        return self.path / "rollouts.sqlite"

    @property
    def evaluations_path(self) -> Path:
        return self.path / "evaluations.json"

    @property
    def report_path(self) -> Path:
        return self.path / "report.html"

    def stage_folder(self, stage: str) -> Path:
        return self.path / "stages" / stage

    # --- reading -------------------------------------------------------------------------------------------------

    def recipe(self) -> Recipe:
        """The recipe as resolved when the run was last started."""
        return load_recipe(self.recipe_path)

    def manifest(self) -> Manifest:
        """Raises `BrokenInputError` when manifest.json is missing or not what Ponder writes."""
        try:
            return Manifest.model_validate(read_json(self.manifest_path))
        except ValidationError as error:
            raise BrokenInputError(f"{self.manifest_path} is not a manifest of this version of Ponder") from error

    def stage_record(self, stage: str) -> StageRecord | None:
        return self.manifest().stages.get(stage)

    def metrics(self, stage: str | None = None) -> list[Line]:
        """Lines of metrics.jsonl: see `ponder.store.metrics.read_metrics`."""
        return read_metrics(self.metrics_path, stage)

    def rollouts(self) -> RolloutStore:
        return RolloutStore(self.rollouts_path)

    def evaluations(self) -> list[Row]:
        """Rows of evaluations.json that belong to present stages (those set aside have a dot in their name)."""
        return [row for row in read_evaluations(self.evaluations_path) if "." not in row["stage"]]

    def progress(self) -> dict[str, int]:
        """How far each stage has come, in marks that only new work makes larger, whatever is rewound and done again.

        A stage's newest step outlives the thinning of metrics.jsonl. What a stage keeps as it comes, without a line
        there (replies, chunks, judgements), counts by its bytes. A stage that begins anew has marks of its own. None
        are told of what cannot be read: the run itself will say what is wrong with it.
        """
        marks: dict[str, int] = {}
        with suppress(BrokenInputError, OSError):
            begun = {name: f"{record.hash} {record.started}" for name, record in self.manifest().stages.items()}
            steps = newest_steps(self.metrics_path)
            for name, start in begun.items():
                if name in steps:
                    marks[f"{start} step"] = steps[name]
                for kept in (self.stage_folder(name) / "state").glob("*.json*"):
                    if kept.suffix in (".json", ".jsonl"):  # which a file that is still being written has not
                        marks[f"{start} {kept.name}"] = kept.stat().st_size
        return marks

    # --- writing: only while the lock is held --------------------------------------------------------------------

    def prepare(self, recipe: Recipe) -> None:
        """Make the folder and write what is being run into it.

        Raises `UsageError` when the folder belongs to another recipe or holds something else, `BrokenInputError`
        when it cannot be written.
        """
        if self.manifest_path.exists():
            owner = self.manifest().recipe
            if owner != recipe.name:
                raise UsageError(f"{self.path} belongs to the recipe {owner!r}: choose another folder with --run")
            self._finish_move()
        elif any(not entry.name.startswith(".") for entry in self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty and is no run folder: choose another folder with --run")
        stages = self.manifest().stages if self.manifest_path.exists() else {}
        self._write_manifest(
            Manifest(recipe=recipe.name, stages=stages, packages=_package_versions(), machine=_machine())
        )
        atomic_write(self.recipe_path, to_yaml(recipe))

    def set_record(self, stage: str, record: StageRecord) -> None:
        """Write a stage's record into the manifest, atomically."""
        manifest = self.manifest()
        self._write_manifest(manifest.model_copy(update={"stages": {**manifest.stages, stage: record}}))

    def move_stage(self, old: str, new: str) -> None:
        """Rename a stage's folder, metrics, rollouts, evaluations and record. Survives a kill at any moment."""
        self._write_manifest(self.manifest().model_copy(update={"moving": (old, new)}))
        self._finish_move()

    def discard_stage(self, stage: str) -> None:
        """Delete all that a stage left in the run folder."""
        with disk_errors(self.stage_folder(stage), "delete"):
            if self.stage_folder(stage).exists():
                shutil.rmtree(self.stage_folder(stage))
        edit_metrics(self.metrics_path, lambda line: None if line["stage"] == stage else line)
        edit_evaluations(self.evaluations_path, lambda row: None if row["stage"] == stage else row)
        with closing(RolloutWriter(self.rollouts_path, stage)) as writer:
            writer.rewind(-1)
        manifest = self.manifest()
        rest = {name: record for name, record in manifest.stages.items() if name != stage}
        self._write_manifest(manifest.model_copy(update={"stages": rest}))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run folder: one process at a time writes to it. Makes the folder when it is missing.

        The lock goes with the process, however that ends. Raises `UsageError` naming the other process.
        """
        make_folder(self.path)
        path = self.path / _LOCK
        key = str(path.resolve())
        if key in _held:
            raise UsageError(f"{self.path} is in use by this process (pid {os.getpid()}): choose another with --run")
        with disk_errors(path):
            file = open(path, "a+", encoding="utf-8")
        with file:
            try:
                # a record lock, not flock: worker processes forked from here must not keep it when we are killed
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.seek(0)
                pid = file.read().strip() or "unknown"
                raise UsageError(
                    f"{self.path} is in use by process {pid}: wait for it, stop it, or choose another with --run"
                ) from error
            with disk_errors(path):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
            _held.add(key)
            try:
                yield
            finally:
                _held.discard(key)

    def _finish_move(self) -> None:
        """Carry out the move that the manifest announces; each part may already have been done."""
        manifest = self.manifest()
        if manifest.moving is None:
            return
        old, new = manifest.moving
        edit_metrics(self.metrics_path, lambda line: {**line, "stage": new} if line["stage"] == old else line)
        edit_evaluations(self.evaluations_path, lambda row: {**row, "stage": new} if row["stage"] == old else row)
        with closing(RolloutWriter(self.rollouts_path, old)) as writer:
            writer.rename_stage(new)
        with disk_errors(self.stage_folder(old), "rename"):
            if self.stage_folder(old).exists():
                self.stage_folder(old).rename(self.stage_folder(new))
        stages = {new if name == old else name: record for name, record in manifest.stages.items()}
        self._write_manifest(manifest.model_copy(update={"stages": stages, "moving": None}))

    def _write_manifest(self, manifest: Manifest) -> None:
        atomic_write_json(self.manifest_path, manifest.model_dump(mode="json"))


@dataclass
class StopRequest:
    """A stop that can wait for the end of a step: SIGTERM sets `made`, a stage's loop heeds it between two steps."""

    made: bool = False
    heeded: bool = False
    """Whether a loop runs that looks at `made`; where none does, there is nothing to wait for."""


@dataclass
class StageContext:
    """What a stage is handed: `ponder.stages.<verb>.run_stage(stage, context)`.

    A stage writes only into its own folders, its metrics, rollouts and evaluations. What it leaves in `state_dir`
    was left there by the same settings (the same hash), so it may be resumed from without further checks.
    """

    recipe: Recipe
    stage_name: str
    run: RunFolder
    seed: int
    """63 bits, derived from the recipe's seed and the stage's name."""
    metrics: MetricsLog
    rollouts: RolloutWriter
    evaluations: EvaluationsWriter
    reporter: Reporter
    judges: Judges = IN_PROCESS
    stop: StopRequest = field(default_factory=StopRequest)

    @classmethod
    def open(
        cls, recipe: Recipe, stage_name: str, run: RunFolder, reporter: Reporter, stop: StopRequest | None = None
    ) -> StageContext:
        """Make the stage's folders and open its logs.

        Raises `BrokenInputError` when the disk refuses, `UsageError` when a tracker that the recipe names does.
        """
        trackers = _trackers(recipe, stage_name, run, reporter)
        caps = recipe.store
        context = cls(
            recipe=recipe,
            stage_name=stage_name,
            run=run,
            seed=stage_seed(recipe.seed, stage_name),
            metrics=MetricsLog(run.metrics_path, stage_name, trackers, caps.metrics_mib, reporter.warn),
            rollouts=RolloutWriter(run.rollouts_path, stage_name, caps.rollouts_mib, reporter.warn),
            evaluations=EvaluationsWriter(run.evaluations_path, stage_name),
            reporter=reporter,
            judges=Judges(recipe.judging),
            stop=StopRequest() if stop is None else stop,
        )
        make_folder(context.state_dir)
        return context

    @property
    def folder(self) -> Path:
        """stages/NAME of the run folder."""
        return self.run.stage_folder(self.stage_name)

    @property
    def model_dir(self) -> Path:
        """Where the stage leaves its model, as a Hugging Face folder. Made by whoever writes it."""
        return self.folder / "model"

    @property
    def data_dir(self) -> Path:
        """Where the stage leaves its data set, as Parquet with a card. Made by whoever writes it."""
        return self.folder / "data"

    @property
    def state_dir(self) -> Path:
        """What an exact resume needs. Exists."""
        return self.folder / "state"

    def model_source(self, reference: str) -> str:
        """Another stage's name becomes its model folder; any other reference is unchanged.

        Raises `UsageError` when that stage left no model.
        """
        return self._result_of(reference, "model")

    def data_source(self, reference: str) -> str:
        """Another stage's name becomes its data folder; any other reference is unchanged.

        Raises `UsageError` when that stage left no data.
        """
        return self._result_of(reference, "data")

    def stop_if_requested(self, save: Callable[[], None]) -> None:
        """For a stage's loop, between two steps: `save` a checkpoint and stop, where SIGTERM has asked for it.

        Until the first call SIGTERM stops a stage where it is; from then on it waits for the next call, as long as
        the recipe's `stop_s` allows. Raises `KeyboardInterrupt`, which leaves the run resumable.
        """
        self.stop.heeded = True
        if self.stop.made:
            save()
            raise KeyboardInterrupt

    def close(self) -> None:
        """Close the logs, end the display and the judges' workers."""
        self.judges.close()
        self.metrics.close()
        self.rollouts.close()
        self.reporter.close()

    def _result_of(self, reference: str, kind: str) -> str:
        if reference not in self.recipe.stages:
            return reference
        folder = self.run.stage_folder(reference) / kind
        if not folder.exists():
            verb = self.recipe.stages[reference].verb
            raise UsageError(f"stages.{self.stage_name}: {reference!r} is a `{verb}` stage and leaves no {kind}")
        return str(folder)


def _trackers(recipe: Recipe, stage: str, run: RunFolder, reporter: Reporter) -> list[Sink]:
    """What takes a stage's metrics besides the run folder: nothing, unless the recipe names it."""
    if recipe.tracking == TrackingSettings():
        return []
    record = run.stage_record(stage)
    settings = recipe.stages[stage].model_dump(mode="json")
    tracked = Tracked(recipe.name, run.path, stage, "" if record is None else record.hash, settings)
    return open_sinks(recipe.tracking, tracked, reporter.warn)


def stage_seed(seed: int, stage: str) -> int:
    """63-bit seed of a stage: stages draw from unrelated streams, and adding one does not change the others."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1f{stage}".encode(), digest_size=8).digest(), "big") >> 1


def utc_now() -> str:
    """The present time as the manifest writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


_LOCK = ".lock"
_held: set[str] = set()  # record locks do not exclude their own process, so that is done here


def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }
