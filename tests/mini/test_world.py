"""The stream of documents: a function of (seed, number), never of a test problem, in the form the parser knows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from ponder.mini.general import general_text
from ponder.mini.traces import Trace
from ponder.mini.world import END, MiniWorld
from ponder.model.parser import split_thinking
from ponder.model.templates import TEMPLATES
from ponder.recipe import FineTuneStage, TaskSettings, load_recipe
from ponder.tasks import get_task, held_out
from ponder.tasks.base import Problem, content_hash, split_of

MIXTURE: dict[str, Any] = {
    "tasks": {
        "countdown": {1: 1.0},
        "parentheses": {1: 0.5, 2: 0.5},
        "arithmetic": {2: 1.0},
        "candles": {1: 1.0},
        "transpose": {1: 1.0},
        "decipher": {1: 1.0},
    },
    "temperaments": {"hasty": 0.4, "brief": 0.2, "patient": 0.2, "careful": 0.2},
    "general_share": 0.0,
    "broken_share": 0.0,
}


class Recording(MiniWorld):
    """Keeps each document's problem and trace."""

    def __init__(self, seed: int, **changes: Any) -> None:
        super().__init__(seed, **{**MIXTURE, **changes})
        self.told: list[tuple[Problem, Trace]] = []

    def _trace(self, problem: Problem, rng: random.Random) -> Trace:
        trace = super()._trace(problem, rng)
        self.told.append((problem, trace))
        return trace


def test_a_document_is_a_function_of_seed_and_number() -> None:
    mixture = {**MIXTURE, "general_share": 0.3, "broken_share": 0.3}
    world = MiniWorld(7, **mixture)
    forwards = [world.document(i) for i in range(40)]
    again = MiniWorld(7, **mixture)
    assert [again.document(i) for i in reversed(range(40))] == forwards[::-1]
    assert len(set(forwards)) > 35
    other = MiniWorld(8, **mixture)
    assert sum(other.document(i) == forwards[i] for i in range(40)) < 3


def test_a_document_is_the_same_in_every_process() -> None:
    """No set's order, no salted hash."""
    program = (
        "import sys, json; from ponder.mini.world import MiniWorld;"
        "print(json.dumps([MiniWorld(7, **json.loads(sys.argv[1])).document(i) for i in range(12)]))"
    )
    mixture = {**MIXTURE, "general_share": 0.3}
    found = subprocess.run(
        [sys.executable, "-c", program, json.dumps(mixture)],
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    ).stdout
    world = MiniWorld(7, **mixture)
    assert json.loads(found) == [list(world.document(i)) for i in range(12)]


def test_no_test_problem_is_ever_told() -> None:
    world = Recording(3)
    for i in range(1500):
        world.document(i)
    told = {content_hash(problem) for problem, _ in world.told}
    assert all(split_of(problem) == "train" for problem, _ in world.told)
    tasks = {name: TaskSettings(difficulty=(1, max(levels))) for name, levels in MIXTURE["tasks"].items()}
    held = held_out(tasks, 120, seed=0)
    assert not told & {content_hash(problem) for problem in held}
    # and no prompt of one appears as text
    prompts = {world.document(i).prompt for i in range(300)}
    assert not any(problem.prompt in prompt for problem in held for prompt in prompts)


def test_what_is_whole_is_well_formed_and_answers_what_was_thought() -> None:
    world = Recording(1)
    for i in range(200):
        document = world.document(i)
        problem, trace = world.told[-1]
        assert document.prompt == TEMPLATES["mini"].replace("{prompt}", problem.prompt)
        assert document.reply.endswith(END)
        split = split_thinking(document.reply.removesuffix(END))
        assert split.well_formed
        assert split.answer_tags
        assert split.answer == trace.answer
        assert split.thinking == trace.thinking.strip()


def test_the_broken_share_is_broken() -> None:
    def is_whole(reply: str) -> bool:
        split = split_thinking(reply.removesuffix(END))
        return split.well_formed and split.answer_tags

    broken = MiniWorld(1, **{**MIXTURE, "broken_share": 1.0})
    replies = [broken.document(i).reply for i in range(100)]
    assert not any(map(is_whole, replies))
    # in each of three ways, all of them ended
    kinds = Counter((reply.count("<think>"), reply.count("</think>"), reply.count("<answer>")) for reply in replies)
    assert kinds.keys() == {(1, 1, 0), (1, 0, 1), (0, 0, 0)}
    assert all(reply.endswith(END) for reply in replies)
    some = MiniWorld(1, **{**MIXTURE, "broken_share": 0.25})
    share = sum(is_whole(some.document(i).reply) for i in range(400)) / 400
    assert share == pytest.approx(0.75, abs=0.07)


def test_the_mixture_follows_the_knobs() -> None:
    knobs = {"tasks": {"countdown": {1: 3.0}, "arithmetic": {2: 0.5, 3: 0.5}}}
    world = Recording(5, **knobs)
    for i in range(800):
        world.document(i)
    seen = Counter((problem.task, problem.difficulty) for problem, _ in world.told)
    assert {key: count / 800 for key, count in seen.items()} == pytest.approx(
        {("countdown", 1): 0.75, ("arithmetic", 2): 0.125, ("arithmetic", 3): 0.125}, abs=0.05
    )
    languages = Counter(problem.language for problem, _ in world.told)
    assert languages["en"] / 800 == pytest.approx(0.5, abs=0.06)
    right = sum(get_task(p.task).verify(t.answer, p).correct for p, t in world.told) / 800
    eager = Recording(5, **knobs, temperaments={"hasty": 1.0})
    steady = Recording(5, **knobs, temperaments={"careful": 1.0})
    for world in (eager, steady):
        for i in range(200):
            world.document(i)
    hasty, careful = (
        sum(get_task(p.task).verify(t.answer, p).correct for p, t in w.told) / 200 for w in (eager, steady)
    )
    assert hasty < right < careful


def test_general_text_needs_no_thinking() -> None:
    world = Recording(2, general_share=1.0)
    documents = [world.document(i) for i in range(300)]
    assert world.told == []
    for document in documents:
        split = split_thinking(document.reply.removesuffix(END))
        assert split.thinking == ""
        assert split.answer
    share = Recording(2, general_share=0.3)
    for i in range(400):
        share.document(i)
    assert 1 - len(share.told) / 400 == pytest.approx(0.3, abs=0.07)
    kinds = {general_text(random.Random(i), language) for i in range(400) for language in ("en", "zh")}
    replies = {reply for _, reply in kinds}
    assert {"Paris.", "巴黎。", "猫", "cat", "I cannot help with that."} <= replies


@pytest.fixture(scope="module")
def recipe_stages(repository: Path) -> dict[str, FineTuneStage]:
    recipe = load_recipe(yaml.safe_load((repository / "recipes" / "mini-base.yaml").read_text(encoding="utf-8")))
    return {name: stage for name, stage in recipe.stages.items() if isinstance(stage, FineTuneStage)}


def test_the_documents_of_the_recipe_fit_its_context(recipe_stages: dict[str, FineTuneStage], repository: Path) -> None:
    """With the embedded tokenizer: nothing of the embedded base's text was cut, and it leaves room for what RL adds."""
    from ponder.model.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(repository / "ponder" / "mini" / "weights")
    assert recipe_stages
    for stage in recipe_stages.values():
        world = MiniWorld(**{"seed": 0, **stage.data_options})
        documents = [world.document(i) for i in range(400)]
        lengths = [len(tokenizer.encode(d.prompt)) + len(tokenizer.encode(d.reply)) for d in documents]
        assert stage.context == 512
        assert max(lengths) < 512
        assert all(tokenizer.encode(d.reply)[-1] in tokenizer.eos_ids for d in documents[:20])
