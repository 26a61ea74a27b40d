"""The pipeline with a small fake verb: order, caching, resume, interruption, failure."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ponder import pipeline
from ponder.errors import BrokenInputError, InterruptedRunError, RefusedError, UsageError
from ponder.pipeline import discard_results, find_recipe, fingerprint, packaged_recipes, run_pipeline, stage_hashes
from ponder.recipe import ClusterSettings, Recipe, ReinforceStage, RolloutWorkersSettings, load_recipe, to_yaml
from ponder.run import RunFolder, StageContext
from ponder.store.metrics import series


class FakeVerb(types.ModuleType):
    """Counts to `stage.steps`, one file of state a step; what `before_step` raises happens in the middle."""

    def __init__(self) -> None:
        super().__init__("fake")
        self.steps: list[tuple[str, int]] = []
        self.before_step: Callable[[str, int], None] = lambda stage, step: None

    def run_stage(self, stage: ReinforceStage, context: StageContext) -> None:
        state = context.state_dir / "step"
        done = int(state.read_text()) if state.exists() else 0
        context.metrics.rewind(done)
        context.reporter.begin(stage.steps, done)
        for step in range(done + 1, stage.steps + 1):
            self.before_step(context.stage_name, step)
            self.steps.append((context.stage_name, step))
            context.metrics.write(step, {"reward/mean": step / stage.steps})
            state.write_text(str(step))
        context.model_dir.mkdir(exist_ok=True)
        (context.model_dir / "from.txt").write_text(context.model_source(stage.model))

    def names(self) -> list[str]:
        """Stages that made steps since last asked."""
        names = list(dict.fromkeys(name for name, _ in self.steps))
        self.steps.clear()
        return names


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeVerb:
    fake = FakeVerb()
    monkeypatch.setitem(sys.modules, "ponder.stages.reinforce", fake)
    monkeypatch.setattr(pipeline, "set_up_torch", lambda threads: None)
    monkeypatch.chdir(tmp_path)
    return fake


def make_recipe(*overrides: str, **stages: dict[str, Any]) -> Recipe:
    """zero and other from the embedded model, dev from zero, last from dev."""
    chain = {"zero": {}, "other": {}, "dev": {"model": "zero"}, "last": {"model": "dev"}}
    merged = {
        name: {"verb": "reinforce", "tasks": {"countdown": {}}, "steps": 3, **settings, **stages.get(name, {})}
        for name, settings in chain.items()
    }
    return load_recipe({"name": "r", "stages": merged}, overrides)


def run(*overrides: str, **options: Any) -> pipeline.RunResult:
    return run_pipeline(make_recipe(*overrides), quiet=True, **options)


def test_stages_run_in_order_and_start_from_each_other(verb: FakeVerb) -> None:
    result = run()
    assert verb.names() == ["zero", "other", "dev", "last"]
    assert result.path == Path("runs/r")
    assert (result.ran, result.cached) == (("zero", "other", "dev", "last"), ())
    assert (result.model("dev") / "from.txt").read_text() == str(result.model("zero"))
    record = RunFolder(result.path).manifest().stages["dev"]
    assert (record.state, record.error, set(record.uses)) == ("done", None, {"zero"})
    assert record.uses["zero"] == RunFolder(result.path).manifest().stages["zero"].hash
    with pytest.raises(UsageError, match="holds no model of a stage 'nothing'"):
        result.model("nothing")


def test_nothing_changed_runs_nothing(verb: FakeVerb) -> None:
    run()
    verb.names()
    assert run().cached == ("zero", "other", "dev", "last")
    assert verb.names() == []


def test_a_changed_setting_runs_only_what_depends_on_it(verb: FakeVerb) -> None:
    run()
    verb.names()
    run("stages.dev.steps=2")
    assert verb.names() == ["dev", "last"]
    run("stages.dev.steps=2", "stages.other.steps=4")
    assert verb.names() == ["other"]
    run("seed=1", "stages.dev.steps=2", "stages.other.steps=4")
    assert verb.names() == ["zero", "other", "dev", "last"]


def test_a_removed_result_is_made_again(verb: FakeVerb) -> None:
    folder = RunFolder(run().path).stage_folder("last")
    verb.names()
    folder.rename(folder.with_name("elsewhere"))
    run()
    assert verb.names() == ["last"]


def test_the_old_result_is_set_aside_and_comes_back(verb: FakeVerb) -> None:
    folder = RunFolder(run().path)
    old = folder.manifest().stages["last"].hash
    run("stages.last.steps=2")
    kept = f"last.old-{old[:8]}"
    assert (folder.stage_folder(kept) / "model").is_dir()
    assert len(folder.metrics(kept)) == 3
    assert len(folder.metrics("last")) == 2
    verb.names()
    run()
    assert verb.names() == []
    assert len(folder.metrics("last")) == 3
    assert kept not in folder.manifest().stages


def test_fresh_starts_over(verb: FakeVerb) -> None:
    folder = RunFolder(run().path)
    run("stages.last.steps=2")
    verb.names()
    run(fresh=True)
    assert verb.names() == ["zero", "other", "dev", "last"]
    assert len(folder.metrics("zero")) == 3
    run("stages.last.steps=2")  # the fresh result can be set aside in its turn
    assert verb.names() == []


def test_results_are_discarded_before_a_run_that_may_be_started_often(verb: FakeVerb) -> None:
    """What --fresh does on a cluster, where a start that died is followed by another."""
    folder = RunFolder(run().path)
    verb.names()
    discard_results(make_recipe(), folder.path, to="dev", quiet=True)
    assert folder.metrics("zero") == folder.metrics("dev") == []
    assert len(folder.metrics("other")) == 3
    run()
    assert verb.names() == ["zero", "dev"]


def test_to_runs_only_what_that_stage_needs(verb: FakeVerb) -> None:
    assert run(to="dev").ran == ("zero", "dev")
    assert run(to="other").ran == ("other",)
    assert run(to="last").ran == ("last",)
    with pytest.raises(UsageError, match="--to 'nil' is no stage of 'r': its stages are zero, other, dev, last"):
        run(to="nil")


def test_stages_may_stand_in_any_order(verb: FakeVerb) -> None:
    written = make_recipe().model_dump(mode="json")
    turned = load_recipe({**written, "stages": dict(reversed(written["stages"].items()))})
    assert run_pipeline(turned, quiet=True).ran == ("other", "zero", "dev", "last")
    verb.names()
    assert stage_hashes(turned) == stage_hashes(make_recipe())
    assert run().ran == ()


@pytest.mark.parametrize("how", ["ctrl-c", "sigterm"])
def test_an_interrupted_stage_goes_on_where_it_was(verb: FakeVerb, how: str) -> None:
    def stop(stage: str, step: int) -> None:
        if (stage, step) == ("dev", 2):
            if how == "ctrl-c":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGTERM)

    verb.before_step = stop
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="stopped in stage 'dev': the same command goes on") as caught:
        run()
    assert caught.value.exit_code == 5
    assert signal.getsignal(signal.SIGTERM) is before
    folder = RunFolder("runs/r")
    assert folder.manifest().stages["dev"].state == "interrupted"
    verb.before_step = lambda stage, step: None
    verb.steps.clear()
    run()
    assert verb.steps == [("dev", 2), ("dev", 3), ("last", 1), ("last", 2), ("last", 3)]
    assert series(folder.metrics("dev"), "reward/mean") == [(1, 1 / 3), (2, 2 / 3), (3, 1.0)]


_FORK = """
import os, signal
from ponder import pipeline
with pipeline._sigterm_stops(60):
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_it_says_at_the_end_what_it_cost(verb: FakeVerb, capsys: pytest.CaptureFixture[str]) -> None:
    run_pipeline(make_recipe("threads=3"), to="dev")
    printed = capsys.readouterr().err
    assert "[r] what it cost" in printed
    rows = [line.split() for line in printed.split("what it cost\n")[1].splitlines()]
    assert [row[0] for row in rows] == ["stage", "zero", "dev", "in"]
    run_pipeline(make_recipe("threads=3"), to="dev")
    assert "what it cost" not in capsys.readouterr().err  # nothing ran


def test_core_and_gpu_hours_add_up_over_starts_that_held_different_amounts(verb: FakeVerb) -> None:
    recipe = make_recipe("cluster.kind=ray", "cluster.trainer.ranks=2", "cluster.trainer.gpus=1", "threads=3")
    run_pipeline(recipe, to="zero", quiet=True)
    folder = RunFolder("runs/r")
    record = folder.manifest().stages["zero"]
    # the driver's threads, a worker and two ranks; a GPU a rank
    assert record.core_seconds == pytest.approx(record.seconds * 6, abs=0.01)
    assert record.gpu_seconds == pytest.approx(record.seconds * 2, abs=0.01)
    # as if it had been interrupted after 100 s
    before = {"state": "interrupted", "seconds": 100.0, "core_seconds": 600.0, "gpu_seconds": 200.0}
    folder.set_record("zero", record.model_copy(update=before))
    run_pipeline(make_recipe("cluster.kind=ray", "threads=3"), to="zero", quiet=True)
    again = folder.manifest().stages["zero"]
    assert again.core_seconds == pytest.approx(600 + (again.seconds - 100) * 5, abs=0.01)
    assert again.gpu_seconds == 200


def test_a_manifest_that_does_not_count_cores_is_of_one_process(verb: FakeVerb) -> None:
    run_pipeline(make_recipe("threads=3"), to="zero", quiet=True)
    folder = RunFolder("runs/r")
    path = folder.manifest_path
    written = json.loads(path.read_text())
    record = written["stages"]["zero"]
    del record["core_seconds"], record["gpu_seconds"]
    record |= {"state": "interrupted", "seconds": 100.0, "threads": 2}
    path.write_text(json.dumps(written))
    assert folder.manifest().stages["zero"].core_hours == pytest.approx(200 / 3600)
    run_pipeline(make_recipe("threads=3"), to="zero", quiet=True)
    again = folder.manifest().stages["zero"]
    assert again.core_seconds == pytest.approx(200 + (again.seconds - 100) * 3, abs=0.01)


def test_time_and_tokens_are_recorded_also_of_a_start_that_was_killed(verb: FakeVerb) -> None:
    def log(stage: str, step: int) -> None:
        if step == 1:
            lines = [
                {"stage": stage, "step": 0, "time": 0, "elapsed": 500.0, "tokens/sampled": 40, "tokens/trained": 3}
            ]
            Path("runs/r/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    verb.before_step = log
    run(to="zero")
    record = RunFolder("runs/r").manifest().stages["zero"]
    assert record.seconds >= 500
    assert (record.sampled_tokens, record.trained_tokens) == (40, 3)


def test_a_forked_worker_dies_of_sigterm_as_any_process(repository: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FORK], capture_output=True, text=True, cwd=repository)
    assert (done.stdout.strip(), done.stderr) == (str(-signal.SIGTERM), "")


_SLOW_RUN = """
import sys, time, types
from ponder import pipeline
from ponder.store.files import atomic_write
from ponder.store.rollouts import RolloutRow

def run_stage(stage, context):
    state = context.state_dir / "step"
    done = int(state.read_text()) if state.exists() else 0
    context.metrics.rewind(done)
    context.rollouts.rewind(done)
    for step in range(done + 1, stage.steps + 1):
        context.rollouts.add(step, [RolloutRow("p", "t", "q", i, "x" * 2000, "", None, {}, False, "stop", 1)
                                    for i in range(4)])
        context.metrics.write(step, {"reward/mean": step * context.seed % 97})
        if step % 5 == 0:
            atomic_write(state, str(step))
        print(step, flush=True)
        time.sleep(0.002)
    context.model_dir.mkdir(exist_ok=True)

sys.modules["ponder.stages.reinforce"] = types.SimpleNamespace(run_stage=run_stage)
pipeline.set_up_torch = lambda threads: None
stage = {"verb": "reinforce", "tasks": {"countdown": {}}, "steps": 60}
recipe = {"name": "r", "stages": {"a": stage, "b": {**stage, "model": "a"}}}
pipeline.run_recipe(recipe, run_dir=sys.argv[1], quiet=True)
"""


def test_a_run_that_is_killed_again_and_again_ends_as_the_unbroken_one(tmp_path: Path, repository: Path) -> None:
    def start(folder: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _SLOW_RUN, str(tmp_path / folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository)

    def lines(process: subprocess.Popen[str], count: int) -> None:
        assert process.stdout is not None
        for _ in range(count):
            process.stdout.readline()

    for steps_before_the_kill in (7, 31, 43):
        process = start("broken")
        lines(process, steps_before_the_kill)
        process.kill()
        process.communicate()
    for folder in ("broken", "unbroken"):
        process = start(folder)
        process.communicate()
        assert process.returncode == 0

    def result(folder: str) -> Any:
        run = RunFolder(tmp_path / folder)
        rows = [(row.stage, row.step, row.sample, row.text) for row in run.rollouts().iter_rollouts()]
        curves = {stage: series(run.metrics(stage), "reward/mean") for stage in ("a", "b")}
        return rows, curves, {name: (record.state, record.hash) for name, record in run.manifest().stages.items()}

    assert result("broken") == result("unbroken")
    assert len(result("broken")[0]) == 2 * 60 * 4


def test_a_run_in_another_thread_leaves_signals_alone(verb: FakeVerb) -> None:
    results: list[pipeline.RunResult] = []
    thread = threading.Thread(target=lambda: results.append(run(to="zero")))
    thread.start()
    thread.join()
    assert results[0].ran == ("zero",)


def test_a_refused_stage_is_recorded_and_tried_again(verb: FakeVerb) -> None:
    def refuse(stage: str, step: int) -> None:
        raise RefusedError("all completions are cut: raise sampling.max_tokens")

    verb.before_step = refuse
    with pytest.raises(RefusedError):
        run(to="zero")
    record = RunFolder("runs/r").manifest().stages["zero"]
    assert (record.state, record.error) == ("failed", "all completions are cut: raise sampling.max_tokens")
    verb.before_step = lambda stage, step: None
    run(to="zero")
    record = RunFolder("runs/r").manifest().stages["zero"]
    assert (record.state, record.error) == ("done", None)


def test_a_defect_keeps_its_traceback_and_is_recorded(verb: FakeVerb) -> None:
    def fail(stage: str, step: int) -> None:
        raise ZeroDivisionError

    verb.before_step = fail
    with pytest.raises(ZeroDivisionError):
        run()
    assert RunFolder("runs/r").manifest().stages["zero"].error == "ZeroDivisionError"


def test_a_disk_that_fills_up_in_a_stage_is_one_sentence_and_the_stage_goes_on(
    verb: FakeVerb,
) -> None:
    disk = pytest.MonkeyPatch()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(stage: str, step: int) -> None:
        if step == 3:
            disk.setattr(os, "fsync", full)  # from here on the manifest cannot be written either
            full()

    verb.before_step = fill
    with pytest.raises(BrokenInputError, match=r"stage 'zero' cannot write to runs/r: the disk is full; free space"):
        run()
    disk.undo()
    assert RunFolder("runs/r").manifest().stages["zero"].state == "running"
    verb.before_step = lambda stage, step: None
    verb.steps.clear()
    run(to="zero")
    assert verb.steps == [("zero", 3)]


def test_stages_cannot_start_from_each_other_in_a_circle(verb: FakeVerb) -> None:
    recipe = make_recipe("stages.zero.model=last")
    with pytest.raises(UsageError, match=r"stages: (\w+) -> .* -> \1 start from each other in a circle"):
        run_pipeline(recipe, quiet=True)
    assert not Path("runs").exists()


def test_more_threads_than_before_are_warned_of(verb: FakeVerb, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(stage: str, step: int) -> None:
        raise KeyboardInterrupt

    verb.before_step = stop
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with pytest.raises(InterruptedRunError):
            run()
        patch.setenv("OMP_NUM_THREADS", "3")
        with pytest.raises(InterruptedRunError):
            run()
    assert "begun with 1 threads, goes on with 3: set threads: 1" in " ".join(capsys.readouterr().err.split())


# --- hashes ------------------------------------------------------------------------------------------------------


def changed(recipe: Recipe, other: Recipe) -> list[str]:
    a, b = stage_hashes(recipe), stage_hashes(other)
    return [name for name in a if a[name] != b[name]]


def test_hashes_change_downstream_only() -> None:
    recipe = make_recipe()
    assert stage_hashes(recipe) == stage_hashes(make_recipe())
    assert changed(recipe, make_recipe("stages.zero.optimizer.lr=1.0e-5")) == ["zero", "dev", "last"]
    assert changed(recipe, make_recipe("stages.last.rewards.format=2")) == ["last"]
    assert changed(recipe, make_recipe("seed=1")) == list(recipe.stages)
    assert changed(recipe, make_recipe("threads=2")) == list(recipe.stages)
    assert changed(recipe, make_recipe("name=s")) == []
    assert changed(recipe, make_recipe("device=cpu")) == []
    assert changed(recipe, make_recipe("precision=bf16")) == list(recipe.stages)


def test_every_verb_counts_in_which_arithmetic_it_computes() -> None:
    judge = {"verb": "train_reward", "data": ["mini-world"], "rows": 10}
    plain = load_recipe({"name": "r", "stages": {"judge": judge}})
    assert changed(plain, load_recipe({"name": "r", "precision": "bf16", "stages": {"judge": judge}})) == ["judge"]


def test_on_a_cluster_it_counts_who_samples_and_when_and_not_how_many_they_are() -> None:
    local, ray = make_recipe(), make_recipe("cluster=ray")
    tried_here = local.model_copy(update={"cluster": ClusterSettings(rollout=RolloutWorkersSettings(workers=2))})
    assert changed(local, tried_here) == []
    assert changed(local, ray) == list(ray.stages)
    for same in (
        "rollout.workers=2",
        "trainer.ranks=2",
        "trainer.sharding=ddp",
        "deadlines.silent_s=5",
    ):
        assert changed(ray, make_recipe("cluster=ray", f"cluster.{same}")) == [], same
    for other in ("rollout.engine=vllm", "schedule=one_step_behind"):
        assert changed(ray, make_recipe("cluster=ray", f"cluster.{other}")) == list(ray.stages), other
    loose = make_recipe("cluster=ray", "cluster.schedule=asynchronous")
    looser = make_recipe("cluster=ray", "cluster.schedule=asynchronous", "cluster.max_staleness=3")
    assert changed(loose, looser) == list(ray.stages)


def test_new_code_makes_every_result_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_hashes(make_recipe())
    monkeypatch.setattr(pipeline, "RESULT_VERSION", pipeline.RESULT_VERSION + 1)
    assert all(before[name] != value for name, value in stage_hashes(make_recipe()).items())


def test_files_count_by_content_and_not_by_time(tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "problems.jsonl"
    model.mkdir()
    (model / "config.json").write_text("{}")
    data.write_text("{}\n")
    settings = (f"stages.other.model={model}", f"stages.other.tasks.file.path={data}")
    recipe = make_recipe(*settings)
    first = stage_hashes(recipe)
    os.utime(model / "config.json", (1, 1))
    os.utime(data, (1, 1))
    assert stage_hashes(recipe) == first
    (model / "config.json").write_text("[]")
    second = stage_hashes(recipe)
    data.write_text("[]\n")
    third = stage_hashes(recipe)
    assert len({first["other"], second["other"], third["other"]}) == 3
    assert first["zero"] == third["zero"]


def test_large_files_are_sampled_to_their_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_BLOCK_BYTES", 4)
    monkeypatch.setattr(pipeline, "_MAX_BLOCKS", 3)
    path = tmp_path / "x"

    def of(text: str) -> str:
        path.write_text(text)
        return fingerprint(path)

    base = of("aaaabbbbccccddddeeeef")
    assert base == of("aaaaXXXXccccddddeeeef")  # 6 blocks; 0, 2 and 5 are looked at
    assert len({base, of("Xaaabbbbccccddddeeeef"), of("aaaabbbbXcccddddeeeef"), of("aaaabbbbccccddddeeeeX")}) == 4
    assert base != of("aaaabbbbccccddddeeeeff")
    assert of("") == fingerprint(path)


def test_weights_inside_the_package_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage_hashes(make_recipe())
    monkeypatch.setitem(pipeline.FOLDERS, "mini", tmp_path)
    assert all(before[name] != value for name, value in stage_hashes(make_recipe()).items())


def test_a_data_set_is_stale_when_a_benchmark_from_a_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "benchmark.jsonl"

    def hashes(text: str, **table: Any) -> dict[str, str]:
        file.write_text(text)
        stages = {
            "data": {"verb": "sample", "model": "mini", "tasks": {"countdown": {}}},
            "student": {"verb": "fine_tune", "model": "mini", "data": ["data"], "epochs": 1},
            "table": {"verb": "evaluate", "models": ["student"], "tasks": {"countdown": {}}, **table},
        }
        return stage_hashes(load_recipe({"name": "r", "stages": stages}))

    plain = hashes("")
    assert hashes("", problems=7)["data"] == plain["data"]  # generated: its splits never meet
    one, other = (hashes(text, tasks={"file": {"path": str(file)}}) for text in ("one", "other"))
    assert len({plain["data"], one["data"], other["data"]}) == 3
    assert one["student"] != other["student"]


# --- recipes by name ---------------------------------------------------------------------------------------------


def test_a_recipe_is_found_by_path_or_name_and_else_the_nearest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert find_recipe(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    monkeypatch.setattr(pipeline, "packaged_recipes", lambda: {"r1-zero-mini": tmp_path / "packaged.yaml"})
    assert find_recipe("r1-zero-mini") == tmp_path / "packaged.yaml"
    with pytest.raises(UsageError, match=r"no recipe 'r1-zero-min', .*: did you mean `r1-zero-mini`"):
        find_recipe("r1-zero-min")
    with pytest.raises(UsageError, match="recipes that come with Ponder: r1-zero-mini"):
        find_recipe("qqqq")


def test_a_recipe_may_come_in_any_form(verb: FakeVerb, tmp_path: Path) -> None:
    recipe = make_recipe()
    (tmp_path / "r.yaml").write_text(to_yaml(recipe))
    for form in (recipe, recipe.model_dump(mode="json"), "r.yaml", Path("r.yaml")):
        result = pipeline.run_recipe(form, ["stages.zero.steps=1"], to="zero", fresh=True, quiet=True)
        assert result.ran == ("zero",)
        assert verb.steps == [("zero", 1)]
        verb.steps.clear()
    assert RunFolder("runs/r").recipe() == make_recipe("stages.zero.steps=1")


def test_recipes_of_the_repository_are_found(repository: Path) -> None:
    expected = {path.relative_to(repository / "recipes") for path in (repository / "recipes").rglob("*.yaml")}
    assert {path.relative_to(repository / "recipes") for path in packaged_recipes().values()} == expected


def test_torch_gets_the_threads_and_a_fixed_order_of_sums() -> None:
    import torch

    before = torch.get_num_threads()
    pipeline.set_up_torch(before)
    assert torch.get_num_threads() == before
    if not torch.cuda.is_available():
        assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
