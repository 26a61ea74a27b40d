"""The run folder: one writer, whole files, results that move without being lost."""

import importlib
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from ponder.errors import BrokenInputError, UsageError
from ponder.progress import Reporter
from ponder.recipe import Recipe, load_recipe
from ponder.run import Manifest, RunFolder, StageContext, StageRecord, stage_seed
from ponder.store.evaluations import EvaluationsWriter, read_evaluations
from ponder.store.metrics import MetricsLog
from ponder.store.rollouts import RolloutRow, RolloutWriter

REINFORCE = {"verb": "reinforce", "tasks": {"countdown": {}}}


def make_recipe(name: str = "r", **stages: dict[str, object]) -> Recipe:
    return load_recipe({"name": name, "stages": stages or {"zero": REINFORCE}})


def make_row() -> RolloutRow:
    return RolloutRow("p", "countdown", "prompt", 0, "text", "", None, {"accuracy": 0.0}, False, "stop", 1)


def fill(run: RunFolder, stage: str) -> None:
    """Leave something of a stage in every place where a stage leaves something."""
    with closing(MetricsLog(run.metrics_path, stage)) as metrics:
        metrics.write(1, {"reward/mean": 0.5})
    with closing(RolloutWriter(run.rollouts_path, stage)) as rollouts:
        rollouts.add(1, [make_row()])
    EvaluationsWriter(run.evaluations_path, stage).add([{"model": stage, "benchmark": "countdown"}])
    (run.stage_folder(stage) / "model").mkdir(parents=True)
    (run.stage_folder(stage) / "model" / "config.json").write_text(stage)
    run.set_record(stage, StageRecord(verb="reinforce", state="done", hash="a" * 32))


def places(run: RunFolder, stage: str) -> list[int]:
    """How much of a stage lies in each place."""
    return [
        len(run.metrics(stage)),
        run.rollouts().count(stage),
        sum(row["stage"] == stage for row in read_evaluations(run.evaluations_path)),
        int((run.stage_folder(stage) / "model" / "config.json").exists()),
        int(stage in run.manifest().stages),
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "r")
    with run.lock():
        run.prepare(make_recipe())
    return run


def test_prepare_writes_recipe_and_manifest(run: RunFolder) -> None:
    assert run.recipe() == make_recipe()
    manifest = run.manifest()
    assert manifest.recipe == "r"
    assert set(manifest.packages) > {"torch", "numpy"}
    assert manifest.machine["cores"] == os.cpu_count()


def test_prepare_keeps_the_records_of_an_earlier_start(run: RunFolder) -> None:
    record = StageRecord(verb="reinforce", state="failed", hash="b" * 32, error="why")
    run.set_record("zero", record)
    run.prepare(make_recipe())
    assert run.stage_record("zero") == record


def test_a_folder_of_another_recipe_or_of_other_things_is_refused(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="belongs to the recipe 'r': choose another folder with --run"):
        run.prepare(make_recipe(name="other"))
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="is not empty and is no run folder"):
        RunFolder(tmp_path).prepare(make_recipe())
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["thesis.tex"]


def test_opening_what_is_no_run(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        RunFolder.open(tmp_path)
    run.manifest_path.write_text('{"stages": 1}')
    with pytest.raises(BrokenInputError, match="is not a manifest"):
        RunFolder.open(run.path).manifest()


def test_a_run_is_found_by_its_name_though_an_export_of_that_name_lies_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "runs" / "tiny"
    below.mkdir(parents=True)
    (below / "manifest.json").write_text("{}")
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert RunFolder.find("tiny").path == Path("runs/tiny")
    assert RunFolder.find("runs/tiny").path == Path("runs/tiny")
    (tmp_path / "tiny" / "manifest.json").write_text("{}")
    assert RunFolder.find("tiny").path == Path("tiny")
    with pytest.raises(UsageError, match="runs/other is not a run folder"):
        RunFolder.find("other")


def test_a_run_folder_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = RunFolder(tmp_path / "file" / "r")
    with pytest.raises(BrokenInputError, match="choose another folder with --run"), run.lock():
        pass


def test_one_process_holds_the_lock_and_its_end_frees_it(run: RunFolder) -> None:
    code = (
        "import sys, time; from ponder.run import RunFolder\n"
        "with RunFolder(sys.argv[1]).lock(): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(run.path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UsageError, match=rf"in use by process {other.pid}: .*--run"), run.lock():
        pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    with run.lock():
        assert (run.path / ".lock").read_text() == str(os.getpid())


def test_the_lock_excludes_its_own_process_too(run: RunFolder) -> None:
    with run.lock(), pytest.raises(UsageError, match=f"pid {os.getpid()}"), run.lock():
        pass
    with run.lock():
        pass


def test_a_moved_stage_takes_everything_with_it(run: RunFolder) -> None:
    fill(run, "zero")
    fill(run, "dev1")
    run.move_stage("zero", "zero.old-aaaaaaaa")
    assert places(run, "zero") == [0, 0, 0, 0, 0]
    assert places(run, "zero.old-aaaaaaaa") == [1, 1, 1, 1, 1]
    assert places(run, "dev1") == [1, 1, 1, 1, 1]
    assert [row["model"] for row in run.evaluations()] == ["dev1"]  # a table shows present stages only
    run.move_stage("zero.old-aaaaaaaa", "zero")
    assert places(run, "zero") == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("step", ["edit_metrics", "edit_evaluations", "RolloutWriter", "rename", "_write_manifest"])
@pytest.mark.parametrize("after", [False, True])
def test_a_move_that_is_killed_is_finished_by_the_next_start(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    fill(run, "zero")
    owner = {"rename": Path, "_write_manifest": RunFolder}.get(step, importlib.import_module("ponder.run"))
    original = getattr(owner, step)

    def killed(*args: object) -> None:
        if after:
            original(*args)
        raise KeyboardInterrupt

    def announced(self: RunFolder, manifest: Manifest) -> None:
        """Kills the last write of the manifest, not the one that announces the move."""
        original(self, manifest) if manifest.moving else killed(self, manifest)

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, announced if step == "_write_manifest" else killed)
        with pytest.raises(KeyboardInterrupt):
            run.move_stage("zero", "zero.old-aaaaaaaa")
    run.prepare(make_recipe())
    assert places(run, "zero") == [0, 0, 0, 0, 0]
    assert places(run, "zero.old-aaaaaaaa") == [1, 1, 1, 1, 1]
    assert run.manifest().moving is None


def test_discard_leaves_nothing_of_one_stage_and_all_of_the_others(run: RunFolder) -> None:
    fill(run, "zero")
    fill(run, "dev1")
    run.discard_stage("zero")
    assert places(run, "zero") == [0, 0, 0, 0, 0]
    assert places(run, "dev1") == [1, 1, 1, 1, 1]


def test_progress_is_what_only_new_work_makes_larger(run: RunFolder) -> None:
    assert run.progress() == {}
    run.set_record("zero", StageRecord(verb="reinforce", state="running", hash="h", started="noon"))
    with closing(MetricsLog(run.metrics_path, "zero", cap_mib=0.002)) as metrics:
        for step in range(100):  # of which the file holds few
            metrics.write(step, {"grad/norm": 0.5})
            assert run.progress() == {"h noon step": step}
        assert len(run.metrics()) < 50
        metrics.rewind(90)
        assert run.progress()["h noon step"] <= 90
    run.discard_stage("zero")
    fill(run, "zero")
    run.set_record("zero", StageRecord(verb="reinforce", state="running", hash="h", started="one o'clock"))
    assert run.progress() == {"h one o'clock step": 1}
    run.metrics_path.write_text("no line\n")  # as the run itself will say
    assert run.progress() == {}


@pytest.mark.parametrize("kept", ["01.jsonl", "chunk-00000.json", "rewritten-00000.json", "judgements.json"])
def test_what_a_stage_keeps_as_it_comes_is_progress(run: RunFolder, kept: str) -> None:
    """`evaluate`, `sample` and the judging of pairs write no line for hours."""
    run.set_record("table", StageRecord(verb="evaluate", state="running", hash="h", started="noon"))
    state = run.stage_folder("table") / "state"
    state.mkdir(parents=True)
    (state / "state.pt").write_text("whatever its size, it says nothing of work")
    (state / f".{kept}.tmp-123").write_text("half a file")
    assert run.progress() == {}
    for size in (3, 5):
        (state / kept).write_text("x" * size)
        assert run.progress() == {f"h noon {kept}": size}


def test_a_context_knows_its_folders_and_its_sources(run: RunFolder) -> None:
    recipe = make_recipe(
        zero=REINFORCE,
        table={"verb": "evaluate", "models": ["zero"], "tasks": {"countdown": {}}},
        dev1={**REINFORCE, "model": "zero"},
    )
    with closing(StageContext.open(recipe, "dev1", run, Reporter("dev1", quiet=True))) as context:
        assert context.folder == run.path / "stages" / "dev1"
        assert context.state_dir.is_dir()
        assert not context.model_dir.exists()
        assert context.model_source("mini") == "mini"
        with pytest.raises(UsageError, match=r"stages\.dev1: 'table' is a `evaluate` stage and leaves no model"):
            context.model_source("table")
        fill(run, "zero")
        assert context.model_source("zero") == str(run.path / "stages" / "zero" / "model")
        with pytest.raises(UsageError, match="leaves no data"):
            context.data_source("zero")


def test_seeds_of_stages_are_fixed_and_unrelated() -> None:
    assert stage_seed(0, "zero") == 2486809429850665810
    seeds = {stage_seed(seed, stage) for seed in range(20) for stage in ("zero", "dev1", "1", "11")}
    assert len(seeds) == 80
    assert all(0 <= seed < 2**63 for seed in seeds)
