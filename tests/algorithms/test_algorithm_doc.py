"""docs/algorithm.md keeps up with the code: links lead to the named line, settings exist and are all explained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from ponder.algorithms import advantages, importance, kl, losses, weights
from ponder.recipe import AlgorithmSettings, ImportanceSettings, KlSettings

PAGE = Path(__file__).parents[2] / "docs" / "algorithm.md"
TEXT = PAGE.read_text(encoding="utf-8")
LINKS = sorted(set(re.findall(r"\[`?([^\]`]+)`?\]\((\.\./[^)#]+)(?:#L(\d+))?\)", TEXT)))
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize(("label", "target", "line"), LINKS)
def test_links_lead_where_they_say(label: str, target: str, line: str) -> None:
    path = PAGE.parent / target
    assert path.exists()
    if line:
        lines = path.read_text(encoding="utf-8").splitlines()
        start = re.compile(rf"(def |class )?{re.escape(label)}\b")
        actual = [number for number, text in enumerate(lines, 1) if start.match(text)]
        assert int(line) in actual, f"{label} is defined at line {actual} of {target}"


@pytest.mark.parametrize("block", BLOCKS)
def test_settings_are_those_of_the_recipe(block: str) -> None:
    settings: Any = yaml.safe_load(block)
    assert AlgorithmSettings.model_validate(settings) != AlgorithmSettings()


def test_every_setting_and_option_is_explained() -> None:
    names = set(AlgorithmSettings.model_fields) - {"kl", "importance"}
    names |= {f"kl.{name}" for name in KlSettings.model_fields}
    names |= {f"importance.{name}" for name in ImportanceSettings.model_fields}
    explained = set(re.findall(r"[\w.]+", " ".join(re.findall(r"`([^`\n]+)`", TEXT))))
    assert names - explained == set()


def test_the_option_strings_are_those_of_the_recipe() -> None:
    """The functions' literal types and the recipe's are two declarations: this compares them."""

    def options(settings: Any, field: str) -> tuple[str, ...]:
        return get_args(settings.model_fields[field].annotation)

    assert options(AlgorithmSettings, "loss") == get_args(losses.LossName)
    assert options(AlgorithmSettings, "ratio") == get_args(losses.RatioLevel)
    assert options(AlgorithmSettings, "aggregate") == get_args(weights.LossAggregate)
    assert options(AlgorithmSettings, "advantage_scale") == get_args(advantages.AdvantageScale)
    assert options(AlgorithmSettings, "reward_aggregate") == get_args(advantages.RewardAggregate)
    assert options(KlSettings, "estimator") == get_args(kl.KlEstimator)
    assert options(ImportanceSettings, "mode") == ("auto", *get_args(importance.ImportanceMode))
