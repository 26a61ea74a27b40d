"""The command line: exit codes, one-sentence errors, JSON for programs, help that teaches."""

import json
import resource
import runpy
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from ponder import pipeline
from ponder.cli import app, recipes
from ponder.errors import RefusedError
from ponder.recipe import EvaluateStage, ReinforceStage
from ponder.run import RunFolder, StageContext, StageRecord
from ponder.store.files import atomic_write_json
from ponder.store.rollouts import RolloutRow

RECIPE = """
name: tiny
stages:
  zero: {verb: reinforce, tasks: {countdown: {}}, steps: 2, prompts_per_step: 3, group_size: 4}
"""


def reinforce(stage: ReinforceStage, context: StageContext) -> None:
    if stage.template == "refused {prompt}":
        raise RefusedError("accuracy is 0 in every group:\nlower tasks.countdown.difficulty")
    if stage.template == "stopped {prompt}":
        raise KeyboardInterrupt
    for step in range(1, stage.steps + 1):
        row = RolloutRow("p", "countdown", "prompt", 0, "text", "", None, {"accuracy": 0.0}, False, "stop", 1)
        context.rollouts.add(step, [row])
        context.metrics.write(step, {"reward/mean": 0.25})


def evaluate(stage: EvaluateStage, context: StageContext) -> None:
    for model in stage.models:
        row = {"model": model, "metric": "accuracy/pass@1", "value": 0.5, "interval": [0.4, 0.6]}
        rows = [{**row, "benchmark": task} for task in stage.tasks]
        context.evaluations.add(rows)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe, and stages that cost nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "set_up_torch", lambda threads: None)
    for verb in (reinforce, evaluate):
        module = types.SimpleNamespace(run_stage=verb)
        monkeypatch.setitem(sys.modules, f"ponder.stages.{verb.__name__}", module)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path


TEMPLATE = "stages.zero.template"


def ponder(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def stage_of(result_json: str) -> Any:
    return json.loads(result_json)["stages"][0]


def test_run_leaves_a_run_folder_and_says_what_to_do_next(folder: Path) -> None:
    result = ponder("run", "tiny.yaml", "--set", "stages.zero.steps=3")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "runs/tiny: ran zero; unchanged nothing" in result.stderr
    assert "ponder report runs/tiny" in result.stderr
    assert len(RunFolder(folder / "runs" / "tiny").metrics("zero")) == 3
    assert "ran nothing; unchanged zero" in ponder("run", "tiny.yaml", "--set", "stages.zero.steps=3").stderr
    assert ponder("run", "tiny.yaml", "--run", "elsewhere", "--quiet").stderr == ""
    assert (folder / "elsewhere" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (
            ["run", "tiny.yaml", "--set", "stages.zero.stepz=3"],
            2,
            "unknown key `stages.zero.stepz`: did you mean `steps`?",
        ),
        (["run", "no-such-recipe"], 2, "there is no recipe 'no-such-recipe'"),
        (["run", "tiny.yaml", "--to", "nil"], 2, "--to 'nil' is no stage of 'tiny'"),
        (
            ["run", "tiny.yaml", "--set", f"{TEMPLATE}=refused {{prompt}}"],
            3,
            "accuracy is 0 in every group: lower tasks",
        ),
        (["run", "broken.yaml"], 4, "broken.yaml is not a YAML file"),
        (["run", "tiny.yaml", "--run", "tiny.yaml/run"], 4, "a part of that path is a file; choose another folder"),
        (["run", "tiny.yaml", "--set", f"{TEMPLATE}=stopped {{prompt}}"], 5, "the same command goes on where it was"),
        (["run", "tiny.yaml", "--run", "a" * 300], 4, "the name is too long; choose another folder"),
        (["show", "a" * 300], 4, "the name is too long"),
        (["export", "mini", "--to", "a" * 300], 4, "the name is too long"),
        (["show", "nothing"], 2, "runs/nothing is not a run folder"),
        (["report", "nothing"], 2, "runs/nothing is not a run folder"),
        (["archive", "nothing"], 2, "runs/nothing is not a run folder"),
        (["eval", "mini", "--on", "countdown", "--samples", "0"], 2, "`stages.eval.samples`"),
        (["eval", "mini", "--on", "countdown,countdown"], 2, "names 'countdown' twice"),
        (["eval", "mini", "--on", ","], 2, "--on must name at least one task"),
        (["eval", "mini", "--on", "countdown", "--difficulty", "x"], 2, "--difficulty 'x' must be a number"),
        (["verify", "5", "5", "--verifier", "maths"], 2, "there is no verifier `maths`: did you mean `math`?"),
        (["verify", "5"], 2, "give PREDICTION and REFERENCE, or --bench"),
        (["verify", "5", "--bench"], 2, "leave PREDICTION out"),
        (["verify", "B", "five", "--verifier", "choice"], 4, "a reference for the verifier `choice` is a letter"),
        (["score", "absent.jsonl", "--verifier", "math"], 4, "absent.jsonl is not a JSONL file of samples"),
    ],
)
def test_an_error_is_one_sentence_with_its_own_exit_code(
    folder: Path, arguments: list[str], code: int, sentence: str
) -> None:
    (folder / "broken.yaml").write_text("name: [")
    result = ponder(*arguments)
    assert result.exit_code == code
    last = result.stderr.splitlines()[-1]
    assert last.startswith("ponder: ")
    assert sentence in last
    assert "Traceback" not in result.output


@pytest.mark.parametrize("arguments", [["run"], ["walk"], ["run", "tiny.yaml", "--sett", "a=1"], ["eval", "mini"]])
def test_wrong_use_exits_with_2(arguments: list[str]) -> None:
    assert ponder(*arguments).exit_code == 2


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.SimpleNamespace(run_stage=lambda stage, context: 1 / 0)
    monkeypatch.setitem(sys.modules, "ponder.stages.reinforce", module)
    result = ponder("run", "tiny.yaml")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_plan_counts_what_the_recipe_says() -> None:
    plan = stage_of(ponder("plan", "tiny.yaml", "--json", "--set", "stages.zero.evaluation.every=0").stdout)
    assert (plan["rollouts"], plan["updates"], plan["state"]) == (2 * 3 * 4, 2, "to run")
    text = ponder("plan", "tiny.yaml").stdout
    assert "zero (reinforced)" in text
    assert "2 steps x 3 prompts x 4 samples = 24 rollouts" in text
    assert "time not measured yet" in text
    ponder("run", "tiny.yaml")
    assert stage_of(ponder("plan", "tiny.yaml", "--json").stdout)["state"] == "done"


def test_a_stage_whose_process_is_gone_is_listed_as_killed(folder: Path) -> None:
    ponder("run", "tiny.yaml")
    run = RunFolder(folder / "runs" / "tiny")
    with run.lock():
        run.set_record("zero", run.manifest().stages["zero"].model_copy(update={"state": "running"}))
        # a process does not see its own lock
        listed = subprocess.run([sys.executable, "-m", "ponder", "ls"], capture_output=True, text=True, timeout=500)
        assert "0 of 1 done, zero running" in listed.stdout
    assert "zero killed" in ponder("ls").stdout
    assert "killed" in ponder("show", "tiny").stdout


def test_ls_and_show(folder: Path) -> None:
    assert "no runs in runs" in ponder("ls").stdout
    ponder("run", "tiny.yaml")
    ponder("eval", "mini", "--on", "countdown", "--run", "runs/measured")
    (folder / "runs" / "broken").mkdir()
    (folder / "runs" / "broken" / "manifest.json").write_text("{")
    text = ponder("ls").stdout
    assert "1 of 1 done" in text
    assert "broken" in text
    listed = json.loads(ponder("ls", "--json").stdout)
    assert "manifest.json is not a JSON file" in listed["runs"].pop(0)["error"]
    assert [run["recipe"] for run in listed["runs"]] == ["eval-mini", "tiny"]
    for name in ("tiny", "runs/tiny", str(folder / "runs" / "tiny")):
        shown = ponder("show", name).stdout
        assert "reinforce" in shown
        assert "zero: reward/mean 0.25" in shown
    assert json.loads(ponder("show", "tiny", "--json").stdout)["last_metrics"]["zero"]["step"] == 2
    shown = ponder("show", "measured").stdout
    assert "| mini  | 50.0 [40, 60] |" in shown
    assert "**pass@1 (%)**" in shown


def test_show_counts_what_a_data_set_kept_and_dropped(folder: Path) -> None:
    ponder("run", "tiny.yaml")
    run = RunFolder(folder / "runs" / "tiny")
    record = StageRecord(verb="sample", state="done", seconds=1800, threads=2, sampled_tokens=12345)
    run.set_record("data", record)
    (run.stage_folder("data") / "data").mkdir(parents=True)
    card = {"stage": "data", "sampled": 1280, "kept": 568, "dropped": {"wrong": 700, "long": 0, "mixed": 12}}
    (run.stage_folder("data") / "data" / "card.json").write_text(json.dumps(card))
    shown = ponder("show", "tiny").stdout
    assert "data: sampled 1,280  kept 568  dropped: wrong 700, mixed 12" in shown
    assert "12,345" in shown
    assert "1.00" in shown  # core-hours


def test_show_prints_figures_that_a_reward_model_left(folder: Path) -> None:
    ponder("run", "tiny.yaml")
    run = RunFolder(folder / "runs" / "tiny")
    run.set_record("helpful", StageRecord(verb="train_reward", state="done"))
    row = {"stage": "helpful", "model": "helpful", "benchmark": "pairs", "metric": "accuracy/mean", "value": 0.75}
    atomic_write_json(run.evaluations_path, [{**row, "interval": [0.7, 0.8]}])
    assert "0.700-0.800" in ponder("show", "tiny").stdout


def test_eval_measures_and_writes_json(folder: Path) -> None:
    (folder / "runs" / "tiny" / "stages" / "zero" / "model").mkdir(parents=True)
    arguments = ["eval", "runs/tiny/stages/zero/model", "--on", "countdown,problems.jsonl", "--json", "rows.json"]
    result = ponder(*arguments, "--difficulty", "1-3", "--language", "en,zh")
    assert result.exit_code == 0
    rows = json.loads((folder / "rows.json").read_text())
    assert [row["value"] for row in rows] == [0.5, 0.5]
    assert [row["benchmark"] for row in rows] == ["countdown", "file"]
    stage = RunFolder(folder / "runs" / "eval-runs-tiny-stages-zero-model").recipe().stages["eval"]
    assert isinstance(stage, EvaluateStage)
    assert stage.tasks["countdown"].difficulty == (1, 3)
    assert stage.tasks["countdown"].languages == ("en", "zh")
    assert (stage.tasks["countdown"].path, stage.tasks["file"].path) == (None, "problems.jsonl")
    assert (stage.task_samples, stage.sampling.temperature, stage.sampling.top_p) == (16, 0.6, 0.95)


def test_report_writes_where_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Path]] = []

    def write_report(run_dir: Path, out_path: Path) -> Path:
        asked.append((run_dir, out_path))
        return out_path

    monkeypatch.setitem(sys.modules, "ponder.evaluation.report", types.SimpleNamespace(write_report=write_report))
    ponder("run", "tiny.yaml")
    assert ponder("report", "tiny").stdout == "runs/tiny/report.html\n"
    assert ponder("report", "tiny", "--out", "page.html").stdout == "page.html\n"
    assert asked == [(Path("runs/tiny"), Path("runs/tiny/report.html")), (Path("runs/tiny"), Path("page.html"))]


class FakeModel:
    tokenizer = None

    def generate(self, prompts: list[str], *settings: object) -> list[list[str]]:
        assert prompts == ["User: 1 + 1?\nAssistant:"]
        assert settings == (3, 0.6, 0.95, 512, 7)
        return [["<think>easy</think> <answer>2</answer>", "<think>hm", "just 2"]]


def test_generate_keeps_thinking_apart_from_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ponder.api", types.SimpleNamespace(load=lambda model: FakeModel()))
    arguments = ["generate", "mini", "1 + 1?", "--template", "mini", "-n", "3", "--seed", "7"]
    result = ponder(*arguments)
    assert result.stdout == "2\njust 2\n"
    assert "easy" in result.stderr
    assert "no answer, since the reply is unfinished: raise --max-tokens" in result.stderr
    replies = json.loads(ponder(*arguments, "--json").stdout)
    assert [(reply["thinking"], reply["answer"]) for reply in replies] == [("easy", "2"), ("hm", None), ("", "just 2")]


def test_archive_prints_its_parts(folder: Path) -> None:
    ponder("run", "tiny.yaml")
    assert ponder("archive", "tiny").stdout == "runs/tiny/archive/rollouts-00000.parquet\n"
    assert (folder / "runs/tiny/archive/rollouts-00000.parquet").exists()


def test_help_is_quick_and_loads_neither_torch_nor_transformers(repository: Path) -> None:
    code = (
        "import sys\nfrom ponder.cli import main\ntry:\n    main()\n"
        "finally:\n    print({'torch', 'transformers', 'pyarrow'} & set(sys.modules), file=sys.stderr)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True, cwd=repository
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Carry out a recipe" in done.stdout
    assert done.stderr.strip() == "set()"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0  # CPU seconds: others may be busy


def test_python_dash_m_is_the_same_command(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ponder", "show", "nothing"], capture_output=True, text=True, cwd=repository
    )
    assert done.returncode == 2
    assert done.stderr.startswith("ponder: runs/nothing is not a run folder")


def test_verify_judges_one_answer() -> None:
    assert (
        ponder("verify", "(B)", "B", "--verifier", "choice").stdout == "correct: the right option is B (read as 'B')\n"
    )
    assert ponder("verify", "<think>B</think>A", "B", "--verifier", "choice").stdout.startswith("wrong: ")
    assert ponder("verify", "0.50", "1/2").stdout.startswith("correct: ")
    options = '{"answer": "B", "options": ["London", "Paris"]}'
    judged = json.loads(ponder("verify", "Paris", options, "--verifier", "choice", "--json").stdout)
    assert judged == {"correct": True, "extracted": "B", "why": "the right option is B", "status": "judged"}


def test_verify_bench_lists_errors_and_exits_with_3_when_a_wrong_answer_is_paid(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ponder("verify", "--bench", "--verifier", "choice")
    assert result.exit_code == 0
    assert "0 (0.0%)" in result.stdout
    (folder / "cases").mkdir()
    case = {"prediction": "(B)", "reference": "B", "correct": False, "note": "a case that is wrong itself"}
    (folder / "cases" / "choice.jsonl").write_text(json.dumps(case))
    monkeypatch.setattr("ponder.evaluation.verifier_bench.resources.files", lambda package: folder)
    result = ponder("verify", "--bench", "--verifier", "choice")
    assert result.exit_code == 3
    assert "false positive: choice.jsonl, line 1: a case that is wrong itself" in result.stdout
    assert "wrong answers were judged right by choice" in result.stderr
    (row,) = json.loads(ponder("verify", "--bench", "--verifier", "choice", "--json").stdout)
    assert row["false_positive_rate"] == 1.0


def test_score_writes_the_judged_rows_or_nothing(folder: Path) -> None:
    rows = [{"prediction": "(B)", "reference": "B"}, {"prediction": "A", "reference": "B"}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = ponder("score", "samples.jsonl", "--verifier", "choice")
    assert result.exit_code == 0
    assert [json.loads(line)["correct"] for line in result.stdout.splitlines()] == [True, False]
    assert "1 of 2 right: 0.500 [" in result.stderr
    assert "left" in result.stderr
    assert ponder("score", "samples.jsonl", "--verifier", "choice", "--out", "judged.jsonl").stdout == ""
    judged = (folder / "judged.jsonl").read_text()
    assert [json.loads(line)["extracted"] for line in judged.splitlines()] == ["B", "A"]
    (folder / "samples.jsonl").write_text('{"prediction": "A", "reference": "B"}\n{"prediction": "A"\n')
    result = ponder("score", "samples.jsonl", "--verifier", "choice", "--out", "judged.jsonl")
    assert result.exit_code == 4
    assert result.stderr == "ponder: samples.jsonl, line 2: it is not a JSON object\n"
    assert (folder / "judged.jsonl").read_text() == judged


@pytest.mark.parametrize(
    "command", ["run", "plan", "ls", "show", "report", "eval", "generate", "archive", "verify", "score"]
)
def test_each_commands_help_gives_examples(command: str) -> None:
    assert f"Examples:\n    ponder {command}" in ponder(command, "--help").stdout


def test_the_documentation_is_the_help(repository: Path) -> None:
    render = runpy.run_path(str(repository / "tools" / "make_cli_docs.py"))["render"]
    written = (repository / "docs" / "cli.md").read_text(encoding="utf-8")
    assert written == render(), "docs/cli.md is out of date: run python tools/make_cli_docs.py"


def test_on_a_cluster_fresh_discards_before_a_run_that_may_be_started_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(recipes, "discard_results", lambda recipe, folder, to, quiet: done.append((folder, to)))
    monkeypatch.setattr(recipes, "supervise", lambda argv, **settings: done.append(argv) or 0)
    arguments = ["run", "r1-zero-mini", "--set", "cluster=ray", "--run", str(tmp_path), "--to", "zero"]
    for extra, discarded in (["--fresh"], [(tmp_path, "zero")]), ([], []):
        done.clear()
        monkeypatch.setattr(sys, "argv", ["ponder", *arguments, *extra])
        assert ponder(*arguments, *extra).exit_code == 0
        assert done == [*discarded, [sys.executable, "-m", "ponder", *arguments]]
