"""What the page Chat offers: prompts that no model was trained on, and base, Zero and R1 of each run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import ponder
from ponder.model.embedded import FOLDERS
from ponder.model.parser import prompt_tail, split_thinking
from ponder.model.templates import render
from ponder.recipe import load_recipe
from ponder.run import RunFolder, StageRecord
from ponder.tasks import verify_answer
from ponder.tasks.base import split_of
from ponder.ui.chat import PUZZLES, REQUESTS, Starter, lineup, lineups, starters
from ponder.ui.data import Catalog

TASKS = {"tasks": {"countdown": {}}}
ZERO = {"verb": "reinforce", "model": "mini", **TASKS}
OTHER_ZERO = {"verb": "reinforce", "model": "mini-llama", **TASKS}
DEV = {"verb": "fine_tune", "model": "mini", "data": ["mini-world"], "steps": 1}
MIDDLE = {"verb": "reinforce", "model": "dev", **TASKS}
R1 = {"verb": "reinforce", "model": "middle", **TASKS}


def run_of(folder: Path, stages: dict[str, dict[str, object]]) -> RunFolder:
    run = RunFolder(folder / "tiny")
    with run.lock():
        run.prepare(load_recipe({"name": "tiny", "stages": stages}))
        for name, stage in stages.items():
            run.set_record(name, StageRecord(verb=str(stage["verb"]), state="done"))
    return run


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ({"zero": ZERO}, ["mini", "tiny/zero"]),
        (
            {"zero": ZERO, "dev": DEV, "middle": MIDDLE, "r1": R1, "llama": OTHER_ZERO},
            ["mini", "tiny/zero", "tiny/r1"],
        ),
        ({"dev": DEV}, []),
    ],
)
def test_a_lineup_is_the_base_zero_and_the_last_of_the_same_base(
    tmp_path: Path, stages: dict[str, dict[str, object]], expected: list[str]
) -> None:
    assert lineup(run_of(tmp_path, stages)) == expected


def test_only_models_that_are_there_are_offered(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"zero": ZERO, "dev": DEV, "middle": MIDDLE})
    assert lineups(Catalog(tmp_path)) == []
    shutil.copytree(FOLDERS["mini-qwen"], run.stage_folder("zero") / "model")
    (offered,) = lineups(Catalog(tmp_path))
    assert offered["models"] == ["mini", "tiny/zero"]
    run.recipe_path.write_text("{")
    assert lineups(Catalog(tmp_path)) == []


def test_starters_are_in_groups_and_each_is_another() -> None:
    groups = starters()
    assert [group["title"] for group in groups] == ["Small puzzles", "Small requests", "Showcase"]
    assert len(groups[-1]["prompts"]) == 5
    prompts = [one["prompt"] for group in groups for one in group["prompts"]]
    assert len(set(prompts)) == len(prompts)
    assert all(one["title"] for group in groups for one in group["prompts"])


@pytest.mark.parametrize("starter", [*PUZZLES, *REQUESTS], ids=lambda starter: starter.title)
def test_no_model_was_trained_on_a_starter(starter: Starter) -> None:
    assert split_of(starter.problem) == "test"


def test_the_base_gets_most_starters_wrong() -> None:
    """Else nothing is to be seen when Zero and R1 stand beside it."""
    problems = [starter.problem for starter in (*PUZZLES, *REQUESTS)]
    model = ponder.load("mini")
    prompts = [render("mini", problem.prompt, model.tokenizer) for problem in problems]
    replies = model.generate(prompts, n=8, temperature=0.6, top_p=0.95, max_tokens=512, seed=0)
    for problem, prompt, texts in zip(problems, prompts, replies, strict=True):
        answers = [split_thinking(text, prompt_tail(prompt)).answer for text in texts]
        right = sum(answer is not None and verify_answer(answer, problem).correct for answer in answers)
        assert right <= 3, problem.prompt
