"""The recipe: wrong keys name the right one, overrides reach where they point, what we ship parses."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ponder.errors import BrokenInputError, UsageError
from ponder.lineage import running_order
from ponder.recipe import FineTuneStage, Recipe, ReinforceStage, load_recipe, to_yaml


def raw(**stage: Any) -> dict[str, Any]:
    zero = {"verb": "reinforce", "tasks": {"countdown": {"difficulty": 2}}, **stage}
    return {"name": "r", "stages": {"zero": zero}}


def on_ray(**cluster: Any) -> dict[str, Any]:
    return {**raw(), "cluster": {"kind": "ray", **cluster}}


STUDENT = {
    "verb": "fine_tune",
    "model": "mini",
    "steps": 1,
    "on_policy": {"teacher": "mini", "tasks": {"countdown": {}}},
}


def zero(recipe: Recipe) -> ReinforceStage:
    stage = recipe.stages["zero"]
    assert isinstance(stage, ReinforceStage)
    return stage


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (raw(stepz=3), "unknown key `stages.zero.stepz`: did you mean `steps`?"),
        (
            raw(optimizer={"learning": 1}),
            "unknown key `stages.zero.optimizer.learning`: valid keys: betas, final_lr_share",
        ),
        (raw(algorithm={"kl": {"betta": 1}}), "unknown key `stages.zero.algorithm.kl.betta`: did you mean `beta`?"),
        (
            raw(tasks={"countdown": {"dificulty": 1}}),
            "`stages.zero.tasks.countdown.dificulty`: did you mean `difficulty`?",
        ),
        (raw(rewards={"accuracy": {"wieght": 1}}), "`stages.zero.rewards.accuracy.wieght`: did you mean `weight`?"),
        ({**raw(), "sead": 1}, "unknown key `sead`: did you mean `seed`?"),
        (raw(steps=0), "`stages.zero.steps`: Input should be greater than or equal to 1 (got 0)"),
        (raw(verb="dream"), "`stages.zero`: Input tag 'dream' found using 'verb' does not match"),
        (raw(tasks={}), "tasks must name at least one source of problems"),
        (raw(prompts_per_step=4, updates_per_step=5), "updates_per_step must not exceed prompts_per_step"),
        ({"name": "r", "stages": {}}, "stages must hold at least one stage"),
        (
            {"name": "r", "stages": {"a.b": raw()["stages"]["zero"]}},
            "stage name 'a.b' may hold letters, digits, - and _",
        ),
        ({"name": "../r", "stages": raw()["stages"]}, "`name`: String should match pattern"),
        ({"name": "r"}, "`stages`: Field required"),
        ({"name": "r", "stages": {"b": {"verb": "fine_tune", "data": ["x"]}}}, "give exactly one of `model`"),
        (raw(lora={"targets": []}), "`stages.zero.lora.targets`: Tuple should have at least 1 item"),
        (
            {**raw(lora={"quantise": "nf4"}), "cluster": "ray"},
            "stages.zero.lora.quantise: nf4 is for one process: set it to none, or cluster.kind to local",
        ),
        ({**raw(), "cluster": {"rollout": {"workers": 4}}}, "cluster.rollout is for `cluster.kind: ray`"),
        ({**raw(), "cluster": {"kind": "ray", "max_staleness": 3}}, "set it, or leave max_staleness out"),
        (on_ray(trainer={"gpus": 2}), "`cluster.trainer.gpus`: Input should be less than or equal to 1"),
        (on_ray(trainer={"ranks": 2, "gpus": 0.5}), "`gpus` must be above 0.5: NCCL refuses two ranks on one GPU"),
        (on_ray(rollout={"gpus": 2}), "`cluster.rollout`: `gpus` must be at most 1, since the native engine"),
        (on_ray(rollout={"gpus": float("inf")}), "`cluster.rollout.gpus`: Input should be a finite number"),
        (on_ray(rollout={"cpus": float("inf")}), "`cluster.rollout.cpus`: Input should be a finite number"),
        (on_ray(rollout={"engine": "vllm", "gpus": 2}), "`gpus` must be 1, as many as `vllm.tensor_parallel`"),
        (
            on_ray(rollout={"engine": "vllm", "gpus": 1, "vllm": {"tensor_parallel": 4}}),
            "`gpus` must be 4, as many as `vllm.tensor_parallel` spreads one copy over",
        ),
        (on_ray(reward_models={"place": "separate", "gpus": 2}), "`cluster.reward_models.gpus`: Input should be less"),
        ({**raw(), "cluster": "ray", "device": "cuda"}, "set cluster.rollout.gpus and cluster.trainer.gpus"),
        (
            {"name": "r", "cluster": "ray", "stages": {"student": STUDENT}},
            "stages.student.on_policy learns in one process: set cluster.kind to local",
        ),
    ],
)
def test_a_wrong_recipe_is_one_sentence_that_names_the_key(recipe: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(recipe)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistyped_required_key_is_named_before_the_gap_it_leaves() -> None:
    stage = {"verb": "reinforce", "taks": {"countdown": {}}}
    with pytest.raises(UsageError, match=r"unknown key `stages\.zero\.taks`: did you mean `tasks`\?"):
        load_recipe({"name": "r", "stages": {"zero": stage}})


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(BrokenInputError, match=r"cannot read the recipe .*: No such file"):
        load_recipe(tmp_path / "absent.yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text("name: [")
    with pytest.raises(BrokenInputError, match="is not a YAML file"):
        load_recipe(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(BrokenInputError, match="is not a YAML file"):
        load_recipe(path)
    path.write_text("- a list")
    with pytest.raises(UsageError, match="must be a mapping with `name` and `stages`"):
        load_recipe(path)


@given(steps=st.integers(1, 10**6), seed=st.integers(0, 2**40), temperature=st.floats(0, 5))
def test_an_override_is_the_same_as_writing_it(steps: int, seed: int, temperature: float) -> None:
    overridden = load_recipe(
        raw(), [f"stages.zero.steps={steps}", f"seed={seed}", f"stages.zero.sampling.temperature={temperature!r}"]
    )
    assert overridden == load_recipe({**raw(steps=steps, sampling={"temperature": temperature}), "seed": seed})


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("stages.zero.optimizer.lr=3e-4", lambda s: s.optimizer.lr, 3e-4),  # YAML reads 3e-4 as a text
        ("stages.zero.tasks.countdown.languages=[en, zh]", lambda s: s.tasks["countdown"].languages, ("en", "zh")),
        ("stages.zero.tasks.countdown.difficulty=[1, 3]", lambda s: s.tasks["countdown"].difficulty, (1, 3)),
        ("stages.zero.tasks.arithmetic.weight=2", lambda s: sorted(s.tasks), ["arithmetic", "countdown"]),
        ("stages.zero.rewards.format=0.5", lambda s: s.rewards["format"].weight, 0.5),
        ("stages.zero.rewards.accuracy.weight=2", lambda s: s.rewards["accuracy"].weight, 2.0),
        ("stages.zero.template=a=b {prompt}", lambda s: s.template, "a=b {prompt}"),
    ],
)
def test_overrides_reach_where_they_point(override: str, read: Any, expected: Any) -> None:
    assert read(zero(load_recipe(raw(rewards={"accuracy": 1, "format": 1}), [override]))) == expected


@pytest.mark.parametrize(
    ("written", "overrides", "expected"),
    [
        ("ray", [], ("ray", "shared", 0)),
        ("ray", ["cluster.reward_models=separate"], ("ray", "separate", 0)),
        ({"kind": "ray", "reward_models": "separate"}, ["cluster.reward_models.gpus=1"], ("ray", "separate", 1)),
        ({"kind": "ray", "reward_models": {"place": "separate", "gpus": 0.5}}, [], ("ray", "separate", 0.5)),
        ("local", ["cluster.kind=ray", "cluster.reward_models.place=separate"], ("ray", "separate", 0)),
    ],
)
def test_a_text_stands_for_the_kind_of_a_cluster_and_the_place_of_reward_models(
    written: Any, overrides: list[str], expected: tuple[str, str, float]
) -> None:
    cluster = load_recipe({**raw(), "cluster": written}, overrides).cluster
    assert (cluster.kind, cluster.reward_models.place, cluster.reward_models.gpus) == expected


@pytest.mark.parametrize(
    "cluster",
    [
        {"rollout": {"gpus": 0.25}, "trainer": {"gpus": 0.5}},  # one GPU for all
        {"rollout": {"gpus": 0.4, "workers": 2}, "trainer": {"gpus": 0.6, "ranks": 2}},  # a worker beside each rank
        {"rollout": {"engine": "vllm", "gpus": 4, "vllm": {"tensor_parallel": 4}}, "trainer": {"gpus": 1}},
        {"rollout": {"engine": "vllm", "vllm": {"tensor_parallel": 2}}},  # on CPUs
    ],
)
def test_shares_of_gpus_that_can_work(cluster: dict[str, Any]) -> None:
    assert load_recipe(on_ray(**cluster)).cluster.kind == "ray"


def test_a_setting_of_ray_is_not_ignored_in_silence_unless_kind_local_says_so() -> None:
    with pytest.raises(
        UsageError, match=r"--set cluster\.rollout\.workers is for `cluster\.kind: ray`, and kind is local"
    ):
        load_recipe({**raw(), "cluster": "local"}, ["cluster.rollout.workers=4"])
    with pytest.raises(UsageError, match=r"cluster\.rollout is for `cluster\.kind: ray`"):
        load_recipe(raw(), ["cluster.rollout.workers=4"])
    assert load_recipe(raw(), ["cluster.rollout.workers=4", "cluster.kind=ray"]).cluster.rollout.workers == 4
    tried_here = load_recipe(on_ray(rollout={"workers": 4}), ["cluster.kind=local"])
    assert load_recipe(yaml.safe_load(to_yaml(tried_here))) == tried_here


def test_where_reward_models_score_is_no_part_of_a_result() -> None:
    here = load_recipe({**raw(), "cluster": "ray"}).cluster
    there = load_recipe(
        {**raw(), "cluster": {"kind": "ray", "reward_models": {"place": "separate", "gpus": 1}}}
    ).cluster
    assert here.what_counts() == there.what_counts()


@pytest.mark.parametrize(
    "override", ["steps", "=3", "stages..steps=3", "name.x=1", "stages.zero.steps=[", "name.x.y=1"]
)
def test_a_wrong_override_says_so(override: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        load_recipe(raw(), [override])


def test_overrides_leave_the_mapping_they_were_given_alone() -> None:
    source = raw()
    load_recipe(source, ["seed=4", "stages.zero.steps=7"])
    assert source == raw()


def test_defaults_are_those_of_the_paper() -> None:
    stage = zero(load_recipe(raw()))
    assert (stage.group_size, stage.prompts_per_step, stage.optimizer.lr) == (16, 32, 3e-6)
    assert {name: reward.weight for name, reward in stage.rewards.items()} == {"accuracy": 1.0, "format": 1.0}
    assert (stage.algorithm.kl.estimator, stage.algorithm.kl.place) == ("k3", "loss")


def test_the_resolved_recipe_reads_back_the_same_with_every_default_written_out() -> None:
    recipe = load_recipe({**raw(template="对 {prompt}"), "seed": 3})
    text = to_yaml(recipe)
    assert load_recipe(yaml.safe_load(text)) == recipe
    assert "dynamic_sampling_retries: 0" in text
    assert "对 {prompt}" in text


def test_a_recipe_never_changes_after_parsing() -> None:
    with pytest.raises(ValidationError):
        load_recipe(raw()).seed = 1


def test_every_recipe_we_ship_parses_and_its_stages_find_what_they_start_from(repository: Path) -> None:
    for path in sorted((repository / "recipes").rglob("*.yaml")):
        recipe = load_recipe(path)
        assert set(running_order(recipe)) == set(recipe.stages)
        assert recipe.name == path.stem, f"{path}: the run folder should bear the recipe's name"


def test_fine_tune_starts_from_weights_or_from_a_shape() -> None:
    stage = {"verb": "fine_tune", "shape": {"num_layers": 2}, "data": ["mini-world"], "steps": 1}
    parsed = load_recipe({"name": "r", "stages": {"base": stage}}).stages["base"]
    assert isinstance(parsed, FineTuneStage)
    assert (parsed.model, parsed.shape and parsed.shape.num_layers) == (None, 2)
