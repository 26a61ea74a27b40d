"""What a recipe names is looked for before the first stage runs."""

from pathlib import Path
from typing import Any

import pytest

from ponder.errors import BrokenInputError, UsageError
from ponder.model.embedded import is_hub_id
from ponder.names import check_names
from ponder.pipeline import packaged_recipes, run_pipeline
from ponder.recipe import Recipe, load_recipe

ZERO = {"verb": "reinforce", "tasks": {"countdown": {}}}
TABLE = {"verb": "evaluate", "models": ["zero"], "tasks": {"countdown": {}}}


def recipe(last: dict[str, Any]) -> Recipe:
    return load_recipe({"name": "r", "stages": {"zero": ZERO, "last": last}})


@pytest.mark.parametrize(
    ("last", "error", "sentence"),
    [
        (TABLE | {"tasks": {"cuntdown": {}}}, UsageError, "there is no task `cuntdown`: did you mean `countdown`?"),
        (TABLE | {"tasks": {"countdown": {"difficulty": 99}}}, UsageError, "difficulty must lie in 1"),
        (TABLE | {"template": "r1zero"}, UsageError, "template 'r1zero' is none of r1-zero"),
        (TABLE | {"templates": {"zero": "r1zero"}}, UsageError, "template 'r1zero' is none of r1-zero"),
        (TABLE | {"models": ["zeroo"]}, BrokenInputError, "models.0: there is no stage and no model 'zeroo'"),
        (ZERO | {"rewards": {"langauge": 1}}, UsageError, "there is no reward `langauge`: did you mean `language`?"),
        (ZERO | {"rewards": {"length": {"options": {"x": 1}}}}, UsageError, "there is no option `x`"),
        (ZERO | {"rewards": {"nice": "nice_rm"}}, BrokenInputError, "rewards.nice.model: there is no stage"),
        (
            {"verb": "fine_tune", "model": "zero", "data": ["traces"], "epochs": 1},
            UsageError,
            "data.0: 'traces' is neither mini-world nor a `sample` stage",
        ),
        (
            {"verb": "train_reward", "data": ["pairs.jsonl"]},
            BrokenInputError,
            "data.0: there is no file pairs.jsonl",
        ),
        (
            {"verb": "fine_tune", "model": "zero", "steps": 1, "on_policy": {"teacher": "zero", "tasks": {"x": {}}}},
            UsageError,
            "there is no task `x`",
        ),
    ],
)
def test_a_name_that_is_none_is_said_before_the_first_stage(
    tmp_path: Path, last: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error) as caught:
        run_pipeline(recipe(last), tmp_path / "run")
    assert str(caught.value).startswith("stages.last: ")
    assert sentence in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_is_not_to_run_may_name_what_is_not_there() -> None:
    check_names(recipe(TABLE | {"models": ["zeroo"]}), ["zero"])


@pytest.mark.parametrize("name", [name for name in packaged_recipes() if "mini" in name])
def test_the_recipes_of_the_mini_world_name_what_is_there(name: str) -> None:
    mini = load_recipe(packaged_recipes()[name])
    check_names(mini, mini.stages)


@pytest.mark.parametrize(("reference", "is_one"), [("Qwen/Qwen2.5-7B", True), ("./x", False), ("a/b.gguf", False)])
def test_paths_are_no_hub_ids(reference: str, is_one: bool) -> None:
    assert is_hub_id(reference) is is_one
