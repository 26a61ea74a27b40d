"""Trackers: what they are handed, that none is needed, and that none can harm a run."""

import json
import os
import sqlite3
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ponder.errors import UsageError
from ponder.pipeline import stage_hashes
from ponder.progress import Reporter
from ponder.recipe import Recipe, TrackingSettings, load_recipe
from ponder.run import RunFolder, StageContext
from ponder.store import tracking
from ponder.store.metrics import MetricsLog, read_metrics
from ponder.store.tracking import Tracked, open_sinks

RECIPE = {"name": "tiny", "stages": {"zero": {"verb": "reinforce", "tasks": {"countdown": {}}}}}


def recipe(**trackers: Any) -> Recipe:
    return load_recipe({**RECIPE, "tracking": trackers})


def tracked(folder: Path, **changes: str) -> Tracked:
    return Tracked(
        **{"recipe": "tiny", "run_dir": folder, "stage": "zero", "hash": "abc", "settings": {"steps": 3}} | changes
    )


class Recorder:
    """A sink that keeps what it is handed."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, Mapping[str, float]]] = []
        self.closed = 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append((step, values))

    def close(self) -> None:
        self.closed += 1


class FakeTracker(types.ModuleType):
    """The calls of wandb and trackio that Ponder makes; `fails` makes every `log` raise."""

    class Error(Exception):
        pass

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.begun: dict[str, Any] = {}
        self.logged: list[Any] = []
        self.finished = 0
        self.fails: Exception | None = None

    def init(self, **options: Any) -> "FakeTracker":
        sys.stdout.write("hello from a tracker")
        self.begun = options
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        self.logged.append((name, step_metric))

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        if self.fails is not None:
            raise self.fails
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def fake(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTracker:
    module = FakeTracker(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


# --- what sinks are handed ------------------------------------------------------------------------------------------


def test_sinks_get_the_finite_numbers_of_every_line_and_only_after_the_file(tmp_path: Path) -> None:
    sink = Recorder()
    log = MetricsLog(tmp_path / "metrics.jsonl", "zero", [sink])
    log.write(1, {"reward/mean": 0.25, "loss/policy": float("nan"), "tokens/sampled": 7})
    assert sink.lines == [(1, {"reward/mean": 0.25, "tokens/sampled": 7})]
    log.rewind(0)
    assert (len(read_metrics(tmp_path / "metrics.jsonl")), sink.closed) == (0, 0)
    log.write(1, {"reward/mean": 0.5})
    assert sink.lines[-1] == (1, {"reward/mean": 0.5})
    log.close()
    log.close()
    assert sink.closed == 1


def test_a_line_that_the_disk_refuses_reaches_no_sink(tmp_path: Path) -> None:
    sink = Recorder()
    log = MetricsLog(tmp_path / "missing" / "metrics.jsonl", "zero", [sink])
    with pytest.raises(FileNotFoundError):
        log.write(1, {"reward/mean": 0.25})
    assert sink.lines == []


# --- the recipe -----------------------------------------------------------------------------------------------------


def test_no_tracker_is_opened_or_imported_by_default(tmp_path: Path) -> None:
    assert recipe().tracking == load_recipe(RECIPE).tracking == TrackingSettings()
    assert open_sinks(TrackingSettings(), tracked(tmp_path), print) == []
    code = "import sys, ponder.cli; print([m for m in ('wandb', 'trackio', 'tensorboard') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=True)
    assert found.stdout.strip() == "[]"


def test_true_takes_a_trackers_defaults_and_unknown_ones_are_named() -> None:
    assert recipe(wandb=True).tracking.wandb == recipe(wandb={}).tracking.wandb
    assert recipe(wandb=False).tracking == TrackingSettings()
    assert load_recipe(RECIPE, ["tracking.trackio=true"]).tracking.trackio is not None
    with pytest.raises(UsageError, match=r"unknown key `tracking.wandbb`: did you mean `wandb`\?"):
        recipe(wandbb=True)
    with pytest.raises(UsageError, match=r"tracking.wandb.mode"):
        recipe(wandb={"mode": "sometimes"})


def test_no_result_depends_on_tracking() -> None:
    assert stage_hashes(recipe(wandb=True, tensorboard={"folder": "x"})) == stage_hashes(recipe())


def test_an_id_stays_after_a_stop_and_changes_with_the_folder_and_the_settings(tmp_path: Path) -> None:
    one = tracked(tmp_path / "runs" / "a b")
    assert one.id == tracked(tmp_path / "runs" / "a b").id
    assert one.id.startswith("a-b-zero-")
    others = [tracked(tmp_path / "runs2" / "a b"), tracked(tmp_path / "runs" / "a b", hash="def")]
    assert len({one.id, *(other.id for other in others)}) == 3


# --- wandb and trackio, by the calls that are made ------------------------------------------------------------------


def test_a_tracker_is_begun_written_and_finished(
    fake: FakeTracker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = fake.__name__
    run = RunFolder(tmp_path / "run")
    loaded = recipe(**{name: {"project": "mine"}})
    run.path.mkdir()
    run.prepare(loaded)
    context = StageContext.open(loaded, "zero", run, Reporter("zero", quiet=True))
    context.metrics.write(3, {"reward/mean": 0.25})
    context.close()
    assert (fake.begun["project"], fake.begun["resume"], fake.begun["group"]) == ("mine", "allow", "run")
    assert fake.begun["config"]["verb"] == "reinforce"
    if name == "wandb":
        assert fake.begun["name"] == "run-zero"
        assert fake.logged == [("*", "step"), ({"reward/mean": 0.25, "step": 3}, None)]
    else:
        assert fake.begun["embed"] is False
        assert fake.logged == [({"reward/mean": 0.25}, 3)]
        assert capsys.readouterr().out == ""  # standard output is for results
    assert fake.finished == 1


def test_the_project_is_the_recipes_name_unless_given(fake: FakeTracker, tmp_path: Path) -> None:
    open_sinks(recipe(**{fake.__name__: True}).tracking, tracked(tmp_path), print)
    assert fake.begun["project"] == "tiny"


def test_a_tracker_that_fails_on_the_way_is_left_out_with_one_warning(fake: FakeTracker, tmp_path: Path) -> None:
    warnings: list[str] = []
    (sink,) = open_sinks(recipe(**{fake.__name__: True}).tracking, tracked(tmp_path), warnings.append)
    fake.logged.clear()
    fake.fails = fake.Error("the network is gone") if fake.__name__ == "wandb" else sqlite3.OperationalError("locked")
    for step in range(3):
        sink.write(step, {"a/b": 1.0})
    fake.fails = None
    sink.write(3, {"a/b": 1.0})
    sink.close()
    assert (len(warnings), fake.logged) == (1, [])
    assert f"tracking.{fake.__name__} is left out from here on" in warnings[0]


def test_a_defect_is_not_swallowed(fake: FakeTracker, tmp_path: Path) -> None:
    (sink,) = open_sinks(recipe(**{fake.__name__: True}).tracking, tracked(tmp_path), print)
    fake.fails = KeyError("a defect")
    with pytest.raises(KeyError):
        sink.write(1, {"a/b": 1.0})


def test_a_tracker_that_does_not_let_us_in_stops_the_stage_before_it_starts(
    fake: FakeTracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: Any) -> None:
        raise (fake.Error if fake.__name__ == "wandb" else ValueError)("no API key")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(UsageError, match=f"tracking.{fake.__name__} cannot be opened: no API key"):
        open_sinks(recipe(**{fake.__name__: True}).tracking, tracked(tmp_path), print)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_named_with_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ImportError(module)

    monkeypatch.setattr(tracking.importlib, "import_module", missing)
    with pytest.raises(UsageError, match=rf"tracking.{name} needs .* pip install 'ponder\[{name}\]'"):
        open_sinks(recipe(**{name: True}).tracking, tracked(tmp_path), print)


# --- the real ones, each by itself: their threads and globals are not for this process ------------------------------

_REAL = """
import json, sys
from pathlib import Path
from ponder.recipe import TrackingSettings
from ponder.store.tracking import Tracked, open_sinks
folder = Path(sys.argv[1])
for first in (0, 2):  # a run, and its resume
    settings = TrackingSettings.model_validate(json.loads(sys.argv[2]))
    warn = lambda text: sys.exit(text)
    sinks = open_sinks(settings, Tracked("tiny", folder, "zero", "abc", {"steps": 3}), warn)
    for step in range(first, first + 3):
        for sink in sinks:
            sink.write(step, {"reward/mean": step / 4 + first})
    for sink in sinks:
        sink.close()
"""


def in_another_process(folder: Path, trackers: dict[str, Any]) -> None:
    places = {name: str(folder / "home") for name in ("HOME", "TRACKIO_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR")}
    settings = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    found = subprocess.run(
        [sys.executable, "-c", _REAL, str(folder), json.dumps(trackers)],
        env={**os.environ, **places, **settings}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout == ""


@pytest.mark.slow
@pytest.mark.timeout(600)  # their imports alone take a while
def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    in_another_process(tmp_path, {"tensorboard": {}})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "zero"), purge_orphaned_data=True).Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/mean")]
    assert found == [(0, 0.0), (1, 0.25), (2, 2.5), (3, 2.75), (4, 3.0)]


@pytest.mark.slow
@pytest.mark.timeout(600)  # their imports alone take a while
def test_wandb_keeps_an_offline_run_in_the_run_folder(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    in_another_process(tmp_path, {"wandb": {"mode": "offline"}})
    kept = list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert kept and all(b"reward/mean" in path.read_bytes() for path in kept)


@pytest.mark.slow
@pytest.mark.timeout(600)  # their imports alone take a while
def test_trackio_keeps_a_run_on_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is not installed")
    in_another_process(tmp_path, {"trackio": {}})
    (base,) = (tmp_path / "home").glob("*.db")
    with sqlite3.connect(base) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _, _ in rows} == {tracked(tmp_path).id}
    assert [step for _, step, _ in rows] == [0, 1, 2, 2, 3, 4]
    assert json.loads(rows[1][2])["reward/mean"] == 0.25
