"""The `sample` stage: what is kept and counted, exact resume, the judge, the rewriter, and the data card."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ponder.cluster.engines import Engines
from ponder.curation.endpoint import Messages, Progress
from ponder.errors import RefusedError, UsageError
from ponder.model.parser import split_thinking
from ponder.progress import Reporter
from ponder.recipe import load_recipe
from ponder.rollout.base import Completion
from ponder.run import RunFolder, StageContext
from ponder.stages import sample
from ponder.store.datasets import Example, read_card, read_rows
from ponder.store.files import atomic_write_json
from ponder.tasks import get_task
from ponder.tasks.base import split_of
from ponder.verifiers.base import Verdict

PROBLEMS, SAMPLES, CHUNK = 6, 3, 2


@pytest.fixture
def odd_lengths_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule under which an untrained model is sometimes right."""

    def verify(self: object, answer: str, problem: object) -> Verdict:
        return Verdict(len(answer) % 2 == 1, answer, "")

    monkeypatch.setattr(type(get_task("countdown")), "verify", verify)


Settings = dict[str, Any]


@pytest.fixture
def settings(tiny_model: Path) -> Settings:
    return {
        "verb": "sample",
        "model": str(tiny_model),
        "template": "mini",
        "tasks": {"countdown": {"languages": ["en", "zh"]}},
        "problems": PROBLEMS,
        "samples": SAMPLES,
        "sampling": {"max_tokens": 12},
        "keep": {"finished": False},
        "checkpoint_every": CHUNK,
    }


def open_context(folder: Path, settings: Settings, **stages: Any) -> StageContext:
    recipe = load_recipe({"name": "r", "judging": {"workers": 0}, "stages": {"data": settings, **stages}})
    run = RunFolder(folder)
    with run.lock():
        run.prepare(recipe)
    return StageContext.open(recipe, "data", run, Reporter("data", quiet=True))


def build(folder: Path, settings: Settings, **stages: Any) -> tuple[list[Example], dict[str, Any]]:
    context = open_context(folder, settings, **stages)
    try:
        sample.run_stage(context.recipe.stages["data"], context)  # type: ignore[arg-type]
    finally:
        context.close()
    return read_rows(context.data_dir, Example), read_card(context.data_dir)


def results(folder: Path) -> dict[str, bytes]:
    data = folder / "stages" / "data" / "data"
    return {path.name: path.read_bytes() for path in sorted(data.iterdir())}


@pytest.mark.usefixtures("odd_lengths_are_right")
def test_right_rollouts_are_kept_in_order_and_all_are_accounted_for(tmp_path: Path, settings: Settings) -> None:
    examples, card = build(tmp_path / "run", settings)
    run = RunFolder(tmp_path / "run")
    rollouts = list(run.rollouts().iter_rollouts("data"))
    assert len(rollouts) == PROBLEMS * SAMPLES == card["sampled"]
    right = [r for r in rollouts if r.correct]
    assert 0 < len(right) < len(rollouts)
    # an untrained model hardly ever says the same twice
    assert [(e.problem_id, e.answer) for e in examples] == [(r.problem_id, r.answer) for r in right]
    assert card["kept"] == len(examples) == card["sampled"] - sum(card["dropped"].values())
    assert card["dropped"]["correct"] == len(rollouts) - len(right)
    assert {e.source for e in examples} == {"data"}
    assert all(len(e.answer) % 2 == 1 and e.reference["numbers"] and e.domain == "math" for e in examples)
    assert len({e.id for e in examples}) == len(examples)
    lines = run.metrics("data")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert sum(line["tokens/sampled"] for line in lines) == sum(r.length for r in rollouts)
    assert lines[0]["data/kept_share"] == lines[0]["accuracy/pass@1"]
    shares = [line["accuracy/pass@1"] for line in lines]
    assert sum(shares) / len(shares) == pytest.approx(len(right) / len(rollouts))


@pytest.mark.usefixtures("odd_lengths_are_right")
def test_problems_differ_and_are_of_the_train_split(tmp_path: Path, settings: Settings) -> None:
    context = open_context(tmp_path / "run", settings)
    problems = sample.Curation(context.recipe.stages["data"], context, Engines(context.recipe, print)).problems  # type: ignore[arg-type]
    context.close()
    assert len({p.content for p in problems}) == PROBLEMS
    assert {split_of(p) for p in problems} == {"train"}


def test_what_was_cut_is_not_finished_however_well_formed(tmp_path: Path, settings: Settings) -> None:
    context = open_context(tmp_path / "run", settings)
    curation = sample.Curation(context.recipe.stages["data"], context, Engines(context.recipe, print))  # type: ignore[arg-type]
    context.close()
    for text, reason, finished in (
        ("<think>a</think><answer>5</answer>", "stop", True),
        ("<think>a</think><answer>5</answer>", "length", False),
        ("<think>a</think> 5", "stop", True),
        ("5", "stop", False),
    ):
        completion = Completion([1], [0.0], reason)  # type: ignore[arg-type]
        verdict = Verdict(True, "5", "")
        rollout = sample.Rollout(curation.problems[0], "p", 0, text, split_thinking(text), completion, True, verdict)
        assert curation._candidate(rollout).finished is finished


class Scripted:
    """An endpoint that answers by a function, and counts what it was asked."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def ask_all(self, conversations: Sequence[Messages], on_progress: Progress | None = None) -> list[str]:
        self.asked += [messages[-1]["content"] for messages in conversations]
        if on_progress is not None:
            on_progress(len(conversations))
        return [self.answer(messages[-1]["content"]) for messages in conversations]


ENDPOINT = {"base_url": "http://127.0.0.1:9/v1", "model": "writer"}


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def die_at_write(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    writes = itertools.count()

    def write(path: Path, value: Any) -> None:
        if next(writes) == number:
            raise Killed
        atomic_write_json(path, value)

    monkeypatch.setattr(sample, "atomic_write_json", write)


@pytest.mark.usefixtures("odd_lengths_are_right")
def test_a_stage_killed_at_any_part_ends_in_the_same_bytes(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Scripted(lambda text: f"<reasoning>{len(text)}</reasoning><summary>1</summary>")
    monkeypatch.setattr("ponder.curation.rewrite.Endpoint", lambda endpoint: writer)
    settings["rewrite"] = {"by": "endpoint", "endpoint": ENDPOINT}
    settings["sources"] = {"mini-world": {"rows": 5, "tasks": {"general": {}}}}
    build(tmp_path / "whole", settings)
    asked = len(writer.asked)
    parts = len(list((tmp_path / "whole/stages/data/state").glob("*.json")))
    assert parts > PROBLEMS / CHUNK
    for number in range(parts):
        folder = tmp_path / f"killed-{number}"
        writer.asked.clear()
        die_at_write(monkeypatch, number)
        with pytest.raises(Killed):
            build(folder, settings)
        monkeypatch.setattr(sample, "atomic_write_json", atomic_write_json)
        build(folder, settings)
        assert results(folder) == results(tmp_path / "whole")
        # of what was finished nothing is sampled or asked again
        assert len(writer.asked) <= asked + CHUNK
        run, whole = RunFolder(folder), RunFolder(tmp_path / "whole")
        assert [line["step"] for line in run.metrics("data")] == [1, 2, 3]
        assert list(run.rollouts().iter_rollouts("data")) == list(whole.rollouts().iter_rollouts("data"))


@pytest.mark.usefixtures("odd_lengths_are_right")
def test_a_rewritten_example_must_verify_and_a_source_stays_as_it_is(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()

    def write(text: str) -> str:
        kind = next(numbers) % 4
        summary = ("odd", "even", "odd", "中文吗")[kind]
        thinking = ("我想想。" if "in Chinese" in text else "I think.") if kind < 2 else "1+2"
        return "no form" if kind == 2 else f"<reasoning>{thinking}</reasoning><summary>{summary}</summary>"

    writer = Scripted(write)
    monkeypatch.setattr("ponder.curation.rewrite.Endpoint", lambda endpoint: writer)
    settings["tasks"] = {"countdown": {"languages": ["en"]}}
    settings["rewrite"] = {"by": "endpoint", "endpoint": ENDPOINT}
    settings["sources"] = {"mini-world": {"rows": 4, "tasks": {"general": {}}}}
    examples, card = build(tmp_path / "run", settings)
    own = [e for e in examples if e.source == "data"]
    assert own
    assert {(e.thinking, e.answer) for e in own} == {("I think.", "odd")}
    assert {e.source for e in examples} == {"data", "mini-world"}
    dropped = {name: count for name, count in card["dropped"].items() if name.startswith("rewrite")}
    assert list(dropped) == ["rewrite: unreadable", "rewrite: wrong answer", "rewrite: languages mixed"]
    assert all(dropped.values())
    assert len(own) + sum(dropped.values()) == len(writer.asked)
    assert card["rewriter"] == "writer"
    assert card["sampled"] + card["read"]["mini-world"] == card["kept"] + sum(card["dropped"].values())


@pytest.fixture
def open_questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"problem": f"Why {i}?"}) + "\n" for i in range(40)))
    return path


def test_where_no_rule_serves_a_judge_decides(
    tmp_path: Path, settings: Settings, open_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = itertools.cycle(['{"analysis": "", "verdict": "correct"}', '{"verdict": "incorrect"}', "who knows"])
    judge = Scripted(lambda text: next(verdicts))
    monkeypatch.setattr(sample, "Endpoint", lambda endpoint: judge)
    settings["tasks"] = {"file": {"path": str(open_questions), "answer_field": ""}}
    with pytest.raises(UsageError, match="name a `judge`"):
        build(tmp_path / "run", settings)
    settings["judge"] = ENDPOINT
    settings["sampling"] = {"max_tokens": 2}
    examples, card = build(tmp_path / "judged", settings)
    reasons = [r.finish_reason for r in RunFolder(tmp_path / "judged").rollouts().iter_rollouts("data")]
    assert reasons.count("length") > 2
    finished = len(judge.asked)
    assert finished == reasons.count("stop") > 5
    assert "reference: null" in judge.asked[0]
    assert card["dropped"]["unjudged"] == finished // 3
    assert len(examples) == -(-finished // 3)
    # cut rollouts are not worth a question: they are wrong
    assert card["dropped"]["correct"] == PROBLEMS * SAMPLES - finished + (finished + 1) // 3
    assert all(e.task == "file" and e.reference is None for e in examples)


def test_without_a_verdict_needed_no_judge_is(tmp_path: Path, settings: Settings, open_questions: Path) -> None:
    settings["tasks"] = {"file": {"path": str(open_questions), "answer_field": ""}}
    settings["keep"] = {"correct": False, "finished": False}
    _, card = build(tmp_path / "run", settings)
    assert card["dropped"]["correct"] == card["dropped"]["unjudged"] == 0


def test_sources_alone_need_no_model(tmp_path: Path) -> None:
    rows = [{"problem": "What is the capital of Peru?", "solution": "Lima."}, {"problem": "x"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = {"file:own": {"path": str(tmp_path / "x.jsonl")}, "mini-world": {"rows": 30, "tasks": {"safety": {}}}}
    examples, card = build(tmp_path / "run", {"verb": "sample", "sources": sources})
    assert examples[0].answer == "Lima."
    assert card["sampled"] == 0
    assert card["read"] == {"file:own": 1, "mini-world": 30}
    assert card["rows that could not be used"] == {"file:own": 1, "mini-world": 0}
    assert card["kept by source"]["file:own"] == 1
    assert sum(card["kept by source"].values()) == card["kept"] == 31 - sum(card["dropped"].values())
    assert card["mean words"]["answer"] > 0
    assert build(tmp_path / "again", {"verb": "sample", "sources": sources})[0] == examples


def test_what_a_benchmark_of_the_recipe_asks_is_dropped(tmp_path: Path) -> None:
    text = "Anna has seven apples and gives three of them to Ben. How many are left?"
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "test.jsonl").write_text(json.dumps({"problem": text, "answer": "4"}) + "\n")
    rows = [{"problem": f"One more: {text}", "solution": "4"}, {"problem": "Why?", "solution": "Because."}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {
        "verb": "evaluate",
        "models": ["mini"],
        "tasks": {"file": {"path": str(folder), "options": {"split_by": "file"}}},
        "problems": 1,
    }
    source = {"verb": "sample", "sources": {"file": {"path": str(tmp_path / "x.jsonl")}}}
    examples, card = build(tmp_path / "run", source, table=table)
    assert [e.prompt for e in examples] == ["Why?"]
    assert card["dropped"]["contaminated"] == card["decontamination"]["dropped"] == 1
    assert card["decontamination"]["hits"][0]["benchmark"] == "table/file"
    off, card = build(tmp_path / "off", {**source, "decontaminate_ngram": 0}, table=table)
    assert len(off) == 2
    assert card["decontamination"] == {}


def test_an_empty_data_set_is_refused_with_the_reasons(tmp_path: Path, settings: Settings) -> None:
    settings["keep"] = {}
    with pytest.raises(RefusedError, match=r"kept no example \(dropped: correct 18\)"):
        build(tmp_path / "run", settings)


def test_what_the_base_solves_is_rewritten_by_the_built_in_rewriter(tmp_path: Path) -> None:
    """From the embedded base, as the cold start takes it from Zero: several attempts, in the end a box."""
    settings = {
        "verb": "sample",
        "model": "mini",
        "template": "mini",
        "tasks": {"countdown": {"languages": ["en", "zh"]}},
        "problems": 8,
        "samples": 2,
        "sampling": {"max_tokens": 120},
        "keep": {"min_consistency": 1.0, "per_problem": 1},
        "rewrite": {},
        "checkpoint_every": 8,
    }
    examples, card = build(tmp_path / "run", settings)
    assert len({e.problem_id for e in examples}) == len(examples) > 0
    assert card["rewriter"] == "mini-world"
    for example in examples:
        assert "\\boxed{" in example.answer
        assert example.thinking
