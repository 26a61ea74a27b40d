"""Nothing that a benchmark asks stays in the training data, and nothing is dropped for shared wording alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ponder.cluster.engines import Engines
from ponder.curation.decontaminate import NUM_SHOWN, Decontamination, benchmarks
from ponder.curation.keep import Candidate
from ponder.curation.sources import read_source
from ponder.progress import Reporter
from ponder.recipe import ReinforceStage, SourceSettings, load_recipe
from ponder.run import RunFolder, StageContext, stage_seed
from ponder.stages.evaluate import Evaluation
from ponder.store.datasets import Example
from ponder.tasks import held_out
from ponder.tasks.base import Problem, content_hash

TEXT = "Anna has seven apples and gives three of them to Ben. How many are left?"


def from_file(prompt: str = "p", thinking: str = "t", answer: str = "a") -> Candidate:
    return Candidate(Example("i", "file", "general", "en", prompt, thinking, answer))


def of_problem(problem: Problem, **texts: str) -> Candidate:
    example = Example("i", "s", "math", "en", problem.prompt, texts.get("thinking", ""), "a", task=problem.task)
    return Candidate(example, content=content_hash(problem))


def math_problem(text: str, suffix: str = "") -> Problem:
    return Problem("file", text + suffix, "4", " ".join(text.split()).casefold())


def kept(candidate: Candidate, *problems: Problem) -> bool:
    return bool(Decontamination(10, {"table/x": problems}).clean([candidate]))


def test_a_benchmark_problem_is_found_in_every_part_of_an_example() -> None:
    problem = math_problem(TEXT)
    assert kept(from_file(), problem)
    words = TEXT.split()
    ten = " ".join(words[3:13])
    assert not kept(from_file(prompt=f"Say: {ten.upper()}, yes"), problem)
    assert not kept(from_file(thinking=f"I read {ten}"), problem)
    assert not kept(from_file(answer=ten), problem)
    assert kept(from_file(prompt=" ".join(words[3:12])), problem)  # nine words
    turn = {"role": "user", "content": ten}
    earlier = dataclasses.replace(from_file().example, history=(turn,))
    assert not kept(Candidate(earlier), problem)


def test_a_suffix_that_all_prompts_share_is_no_overlap() -> None:
    suffix = " Think step by step and put the final answer that you find into a box."
    assert kept(from_file(prompt=f"Another question.{suffix}"), math_problem(TEXT, suffix))
    assert not kept(from_file(prompt=TEXT + suffix), math_problem(TEXT, suffix))


def test_generated_problems_are_compared_by_content() -> None:
    """All problems of a generator share more than ten words."""
    first, second = held_out(load_recipe(recipe()).stages["table"].tasks, 2, seed=5)  # type: ignore[union-attr]
    assert kept(of_problem(first), second)
    assert not kept(of_problem(first), second, first)
    assert not kept(of_problem(dataclasses.replace(first, prompt="the same, put otherwise")), first)
    assert not kept(from_file(prompt=first.prompt), first)  # a file has no content to go by


def test_generated_examples_are_compared_with_files_by_words() -> None:
    (problem,) = held_out(load_recipe(recipe()).stages["table"].tasks, 1, seed=5)  # type: ignore[union-attr]
    assert kept(of_problem(problem), math_problem(TEXT))
    assert not kept(of_problem(problem, thinking=TEXT), math_problem(TEXT))


def test_the_report_counts_and_shows_a_few() -> None:
    decontamination = Decontamination(10, {"table/x": [math_problem(TEXT)], "zero/y": []})
    candidates = [from_file(prompt=TEXT)] * (NUM_SHOWN + 3) + [from_file()]
    assert decontamination.clean(candidates) == [from_file()]
    report = decontamination.report()
    assert (report["checked"], report["dropped"], len(report["hits"])) == (NUM_SHOWN + 4, NUM_SHOWN + 3, NUM_SHOWN)
    assert report["benchmarks"] == {"table/x": 1, "zero/y": 0}
    assert report["hits"][0] == {"id": "i", "benchmark": "table/x", "prompt": TEXT}
    json.dumps(report)


def recipe() -> dict[str, Any]:
    tasks = {"countdown": {}, "arithmetic": {}}
    return {
        "name": "r",
        "seed": 7,
        "stages": {
            "zero": {"verb": "reinforce", "tasks": tasks, "evaluation": {"problems": 6}},
            "silent": {"verb": "reinforce", "tasks": tasks, "evaluation": {"every": 0}},
            "table": {"verb": "evaluate", "models": ["mini"], "tasks": tasks, "problems": 4},
        },
    }


def test_the_benchmarks_are_the_problems_that_the_stages_will_draw(tmp_path: Path) -> None:
    loaded = load_recipe(recipe())
    found = benchmarks(loaded)
    assert {name: len(problems) for name, problems in found.items()} == {
        "zero/arithmetic": 3,
        "zero/countdown": 3,
        "table/countdown": 4,
        "table/arithmetic": 4,
    }
    run = RunFolder(tmp_path / "run")
    with run.lock():
        run.prepare(loaded)
        context = StageContext.open(loaded, "table", run, Reporter("table", quiet=True))
        evaluation = Evaluation(loaded.stages["table"], context, Engines(loaded, print))  # type: ignore[arg-type]
        context.close()
    asked = {exam.name: list(exam.problems) for exam in evaluation.exams}
    assert found["table/countdown"] == asked["countdown"]
    zero = loaded.stages["zero"]
    assert isinstance(zero, ReinforceStage)
    drawn = held_out(zero.tasks, 6, stage_seed(7, "zero"))  # as Reinforcement does
    assert sorted(p.id for p in drawn) == sorted(p.id for n in ("arithmetic", "countdown") for p in found[f"zero/{n}"])


def test_the_math_set_against_its_own_benchmark(shared_data: Path) -> None:
    """MATH-500 was taken from MATH's test set: a few of its problems share wording with training ones."""
    settings = SourceSettings(path=str(shared_data / "math" / "math_train.jsonl.gz"), rows=1500, reply_field="answer")
    candidates = read_source("file", settings, seed=0).candidates
    lines = (shared_data / "math" / "math500.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["problem"] for line in lines]
    decontamination = Decontamination(10, {"math500": [math_problem(text) for text in texts]})
    clean = decontamination.clean(candidates)
    assert 0 < decontamination.dropped < 0.1 * len(candidates)
    assert not {c.example.prompt for c in clean} & set(texts)
