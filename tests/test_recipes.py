"""The shipped recipes: each parses and plans offline, names what exists, and keeps to the paper where it says so."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from ponder.lineage import running_order
from ponder.model.templates import CHAT, template_text
from ponder.names import tasks_of, templates_of
from ponder.plan import plan_recipe
from ponder.recipe import (
    EvaluateStage,
    FineTuneStage,
    KeepSettings,
    Recipe,
    ReinforceStage,
    SampleStage,
    SourceSettings,
    Stage,
    TaskSettings,
    TrainRewardStage,
    load_recipe,
)
from ponder.rewards import reward_names
from ponder.tasks import task_names
from ponder.tasks._table import TableOptions

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
ALL = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))
STUDENTS = {  # [R1 Table 6]
    "qwen-1.5b": ("Qwen/Qwen2.5-Math-1.5B", 1e-4),
    "qwen-7b": ("Qwen/Qwen2.5-Math-7B", 8e-5),
    "qwen-14b": ("Qwen/Qwen2.5-14B", 7e-5),
    "qwen-32b": ("Qwen/Qwen2.5-32B", 6e-5),
    "llama-8b": ("meta-llama/Llama-3.1-8B", 5e-5),
    "llama-70b": ("meta-llama/Llama-3.3-70B-Instruct", 2e-5),
}
PAPER_SCALE = ["r1", "r1-zero-qwen2.5-7b", "r1-zero-qwen2.5-32b", *(f"r1-distill-{student}" for student in STUDENTS)]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise AssertionError("a recipe was read or planned over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    # recipes name their own template files from the repository's root
    monkeypatch.chdir(FOLDER.parent)


def recipe_named(name: str) -> Recipe:
    return load_recipe(FOLDER / f"{name}.yaml")


# --- all of them ------------------------------------------------------------------------------------------------------


def test_the_recipes_of_the_paper_are_there() -> None:
    assert {f"{name}.yaml" for name in PAPER_SCALE} <= set(ALL)


@pytest.mark.parametrize("file", ALL)
def test_it_parses_and_plans_without_a_network(file: str, tmp_path: Path) -> None:
    recipe = load_recipe(FOLDER / file)
    assert recipe.name == Path(file).stem
    plans = plan_recipe(recipe, tmp_path / "none")
    assert [plan.name for plan in plans] == running_order(recipe)
    assert {plan.state for plan in plans} == {"to run"}


@pytest.mark.parametrize("file", ALL)
def test_it_names_nothing_that_does_not_exist(file: str) -> None:
    for stage in load_recipe(FOLDER / file).stages.values():
        for name, task in tasks_of(stage).items():
            kind = name.partition(":")[0]
            assert kind in task_names()
            if kind in ("file", "hub"):
                options = {key: value for key, value in task.options.items() if key not in ("folder", "revision")}
                TableOptions.model_validate(options)
        if isinstance(stage, ReinforceStage):
            assert all(reward.model or name in reward_names() for name, reward in stage.rewards.items())
        for template in templates_of(stage) - {CHAT}:
            assert "{prompt}" in template_text(template)


@pytest.mark.parametrize("file", ALL)
def test_a_model_is_asked_with_the_template_that_it_learnt(file: str) -> None:
    stages = load_recipe(FOLDER / file).stages
    learnt = {
        name: stage.template for name, stage in stages.items() if isinstance(stage, ReinforceStage | FineTuneStage)
    }
    for stage in stages.values():
        if isinstance(stage, EvaluateStage):
            asked = {model: stage.templates.get(model, stage.template) for model in stage.models}
        elif isinstance(stage, ReinforceStage | SampleStage | TrainRewardStage) and stage.model is not None:
            asked = {stage.model: stage.template}
        else:
            continue
        for model, template in asked.items():
            assert template == learnt.get(model, template)


def hub_sets(recipe: Recipe) -> set[str]:
    sources: list[tuple[str, TaskSettings | SourceSettings]] = []
    for stage in recipe.stages.values():
        sources += tasks_of(stage).items()
        sources += stage.sources.items() if isinstance(stage, SampleStage) else []
    return {source.path or "" for name, source in sources if name.startswith("hub")}


@pytest.mark.parametrize("name", PAPER_SCALE)
def test_benchmarks_are_never_trained_on(name: str) -> None:
    recipe = recipe_named(name)
    benchmarks = {"HuggingFaceH4/aime_2024", "HuggingFaceH4/MATH-500"}
    measured = Recipe(name="m", stages={n: s for n, s in recipe.stages.items() if isinstance(s, EvaluateStage)})
    trained = Recipe(name="t", stages={n: s for n, s in recipe.stages.items() if not isinstance(s, EvaluateStage)})
    assert hub_sets(measured) == benchmarks
    assert not hub_sets(trained) & benchmarks
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+", path) for path in hub_sets(recipe))
    assert all(task.options["split_by"] == "test" for s in measured.stages.values() for task in tasks_of(s).values())
    for stage in trained.stages.values():
        assert not isinstance(stage, SampleStage) or stage.decontaminate_ngram == 10  # [R1 D.1]


# --- the paper's settings ---------------------------------------------------------------------------------------------


def check_rl(stage: Stage) -> ReinforceStage:
    """What all RL stages of the paper share [R1 2.1, 3.2.1]."""
    assert isinstance(stage, ReinforceStage)
    assert (stage.prompts_per_step * stage.group_size, stage.group_size, stage.updates_per_step) == (8192, 16, 16)
    kl = stage.algorithm.kl
    assert (kl.beta, kl.estimator, kl.place, kl.refresh_every * stage.updates_per_step) == (0.001, "k3", "loss", 400)
    assert (stage.algorithm.loss, stage.algorithm.eps_low, stage.algorithm.eps_high) == ("grpo", 10, 10)
    assert stage.algorithm.advantage_scale == "group"
    weights = {name: reward.weight for name, reward in stage.rewards.items()}
    assert set(weights.values()) == {1.0} and {"accuracy", "format"} <= set(weights)
    return stage


def test_r1_zero_is_trained_as_in_the_paper() -> None:
    stages = recipe_named("r1-zero-qwen2.5-7b").stages
    short, long = check_rl(stages["zero"]), check_rl(stages["zero_long"])
    assert short.optimizer.lr == long.optimizer.lr == 3e-6
    assert short.sampling.temperature == long.sampling.temperature == 1
    assert (short.sampling.max_tokens, long.sampling.max_tokens) == (32_768, 65_536)
    assert 8_150 <= short.steps * short.updates_per_step <= 8_249  # "step 8.2k"
    assert (short.steps + long.steps) * 16 == 10_400
    assert long.model == "zero"


def test_the_32b_zero_is_trained_as_in_the_paper_in_both_recipes() -> None:
    zero = check_rl(recipe_named("r1-zero-qwen2.5-32b").stages["zero"])
    assert (zero.model, zero.optimizer.lr, zero.sampling.max_tokens) == ("Qwen/Qwen2.5-32B", 2e-6, 32_768)
    assert zero.steps * zero.updates_per_step > 10_000
    assert recipe_named("r1").stages["zero"] == zero


@pytest.mark.parametrize("student", STUDENTS)
def test_students_are_distilled_as_in_the_paper(student: str) -> None:
    stages = recipe_named(f"r1-distill-{student}").stages
    stage = stages["student"]
    assert isinstance(stage, FineTuneStage)
    assert (stage.model, stage.optimizer.lr) == STUDENTS[student]
    check_sft(stage, batch=64)
    # 4,096 positions of Qwen2.5-Math do not hold the paper's context; those of the others do
    assert (stage.max_positions is not None) == ("Math" in str(stage.model))
    assert stage.max_positions is None or stage.max_positions > 32_768


def check_sft(stage: FineTuneStage, batch: int) -> None:
    assert (stage.optimizer.schedule, stage.optimizer.final_lr_share) == ("cosine", 0.1)
    assert stage.epochs is not None and 2 <= stage.epochs <= 3
    assert stage.context == 32_768
    assert stage.tokens_per_step == batch * 5_355  # the mean tokens of an example [R1 Table 5]


def test_all_students_differ_in_base_rate_and_positions_alone() -> None:
    def rest(student: str) -> dict[str, Any]:
        recipe = recipe_named(f"r1-distill-{student}").model_dump(exclude={"name", "cluster"})
        base = recipe["stages"]["student"]
        base |= {"model": None, "max_positions": None, "optimizer": base["optimizer"] | {"lr": None}}
        return recipe

    assert all(rest(student) == rest("qwen-1.5b") for student in STUDENTS)


def test_the_stages_of_r1_start_from_what_they_start_from_in_the_paper() -> None:
    recipe = recipe_named("r1")
    base = "Qwen/Qwen2.5-32B"
    starts = {plan.name: set(plan.starts_from) for plan in plan_recipe(recipe, Path("none"))}
    assert starts["dev1"] == {base, "cold_data"}
    assert starts["dev2"] == {"dev1"}
    assert starts["dev3"] == {base, "reasoning_data", "general_data"}
    assert starts["r1"] == {"dev3", "helpful_rm", "safety_rm"}
    assert (starts["cold_data"], starts["reasoning_data"]) == ({"zero"}, {"dev2"})
    for name in ("dev1", "dev3"):
        stage = recipe.stages[name]
        assert isinstance(stage, FineTuneStage) and stage.optimizer.lr == 5e-5
        check_sft(stage, batch=128)
    dev2 = check_rl(recipe.stages["dev2"])
    assert (dev2.optimizer.lr, set(dev2.rewards)) == (3e-6, {"accuracy", "format", "language"})


def test_reward_models_are_trained_as_in_the_paper() -> None:
    stages = recipe_named("r1").stages
    for name, kind, score in (("helpful_rm", "pairwise", "answer"), ("safety_rm", "pointwise", "reply")):
        stage = stages[name]
        assert isinstance(stage, TrainRewardStage)
        assert (stage.kind, stage.score) == (kind, score)
        assert (stage.rows_per_step, stage.optimizer.lr, stage.epochs, stage.max_tokens) == (256, 6e-6, 1, 8_192)


def test_the_last_stage_uses_preferences_in_its_last_400_updates_alone() -> None:
    stage = check_rl(recipe_named("r1").stages["r1"])
    assert (stage.sampling.temperature, stage.optimizer.lr) == (0.7, 3e-6)
    per_step = stage.updates_per_step
    assert abs(stage.steps * per_step - 1_700) < per_step
    general = {name for name, task in stage.tasks.items() if not task.answer_field}
    preferences = {name: reward for name, reward in stage.rewards.items() if reward.model}
    begin = {stage.tasks[name].from_step for name in general} | {reward.from_step for reward in preferences.values()}
    assert {(stage.steps - first + 1) * per_step for first in begin} == {400}
    # each general prompt has its own set's reward, and no rule but form and language
    assert {reward.tasks for reward in preferences.values()} == {(name,) for name in general}
    assert set(stage.rewards["accuracy"].tasks) == set(stage.tasks) - general
    assert stage.rewards["format"].tasks == stage.rewards["language"].tasks == ()
    assert {reward.model for reward in preferences.values()} == {"helpful_rm", "safety_rm"}


@pytest.mark.parametrize("name", PAPER_SCALE)
def test_it_is_measured_as_in_the_paper(name: str) -> None:
    stages = recipe_named(name).stages
    measured = {}
    for stage_name in ("aime", "math"):
        stage = stages[stage_name]
        assert isinstance(stage, EvaluateStage)
        sampling = stage.sampling
        assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.6, 0.95, 32_768)
        measured[stage_name] = (stage.problems, stage.samples)
    assert measured == {"aime": (30, 64), "math": (500, 16)}


# --- sources beside settings ------------------------------------------------------------------------------------------

_SETTING = re.compile(r"(?P<key>[\w:<\"./-]+): *(?P<value>.*)")
_SOURCE = re.compile(r"\[(R1|v1|DSM|README)( [^\]]+)?\]|departure|not published", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.-])\d[\d.e-]*(?=[,}\]\s]|$)")
_OWN = {"verb", "<<", "data", "models", "problem_field", "answer_field", "folder", "domain", "by"}
"""Settings that name the recipe's own parts or the columns of a file, of which no paper speaks."""


def unsourced(text: str) -> list[str]:
    """Settings without a comment beside or directly above them; for numbers, without one that gives their source."""
    faults = []
    above: list[str] = []
    for line in text.partition("\nstages:\n")[2].splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            above = [*above, line] if line.strip() else []
            continue
        setting, _, beside = line.partition("  # ")
        match = _SETTING.search(setting)
        comment = f"{' '.join(above)} {beside}"
        above = []
        if match is None or match["key"] in _OWN or re.fullmatch(r"|[&*]\w+", match["value"].strip()):
            continue
        value = re.sub(r'"[^"]*"', "", match["value"])
        if not (_SOURCE if _NUMBER.search(value) else re.compile(r"\w")).search(comment):
            faults.append(line.strip())
    return faults


@pytest.mark.parametrize("name", PAPER_SCALE)
def test_every_setting_has_its_source_or_departure_beside_it(name: str) -> None:
    assert unsourced((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("  lr: 3.0e-6  # [R1 2.1]", False),
        ("  lr: 3.0e-6  # as usual", True),
        ("  lr: 3.0e-6", True),
        ("  # [R1 2.1]\n  lr: 3.0e-6", False),
        ("  # [R1 2.1]\n  loss: grpo\n  lr: 3.0e-6", True),
        ("  # [R1 2.1]\n\n  lr: 3.0e-6", True),
        ("  warmup_steps: 0  # departure: not published", False),
        ("  sampling: {temperature: 0.6, top_p: 0.95}", True),
        ("  model: Qwen/Qwen2.5-7B", True),
        ("  model: Qwen/Qwen2.5-7B  # an open base", False),
        ("  zero: &zero\n  sampling:\n  verb: sample\n  tasks: *reasoning", False),
    ],
)
def test_the_lint_sees_settings_without_a_source(line: str, fault: bool) -> None:
    assert bool(unsourced(f"name: x\nstages:\n{line}\n")) == fault


# --- the table of recipes ---------------------------------------------------------------------------------------------


def figures(recipe: Recipe) -> tuple[str, str, str, str]:
    """Stages, completions sampled, RL updates and billions of tokens at most, as the table writes them."""
    plans = plan_recipe(recipe, Path("none"))
    sampled = sum(plan.rollouts + plan.heldout_rollouts for plan in plans)
    updates = sum(plan.updates or 0 for plan in plans if plan.verb == "reinforce")
    tokens = sum(plan.max_tokens or 0 for plan in plans)
    return str(len(plans)), f"{sampled:,}", f"{updates:,}" if updates else "-", f"{tokens / 1e9:.1f} B"


def test_the_page_of_recipes_links_them_all_and_gives_the_figures_of_the_plan() -> None:
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(([\w./-]+)\)", page))
    assert {file for file in ALL if "/" not in file} <= linked
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| [")]
    for name in PAPER_SCALE:
        row = next(row for row in rows if row[0] == f"[{name}]({name}.yaml)")
        assert tuple(row[2:6]) == figures(recipe_named(name))


# --- docs/pipeline.md -------------------------------------------------------------------------------------------------

PAGE = FOLDER.parent / "docs" / "pipeline.md"


def test_the_stages_on_the_page_of_the_pipeline_are_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 8
    for block in blocks:
        recipe = load_recipe({"name": "page", "stages": yaml.safe_load(block.replace("{...}", "{countdown: {}}"))})
        assert recipe.stages


def test_the_page_of_the_pipeline_names_every_verb_and_rule_and_links_what_exists() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", page):
        assert (PAGE.parent / link).exists(), link
    assert {f"`{verb}`" for verb in ("reinforce", "sample", "fine_tune", "train_reward", "evaluate")} <= set(
        re.findall(r"`\w+`", page)
    )
    assert all(f"`{rule}`" in page for rule in KeepSettings.model_fields)
