"""docs/metrics.md names every metric that is logged, and no rule or word that does not exist."""

import re
from pathlib import Path

import pytest

from ponder.evaluation.calibration import HeldOutPair, HeldOutReply, pair_figures, reply_figures
from ponder.evaluation.heldout import HeldOutResult, JudgedProblem
from ponder.evaluation.metrics import pass_at_1
from ponder.evaluation.reflection import ENGLISH
from ponder.recipe import WatchdogSettings
from ponder.stages._groups import update_metrics
from ponder.stages.watchdog import RULES, Watchdog
from ponder.store.rollouts import RolloutRow
from ponder.tasks.base import Problem
from ponder.training.update import UpdateStatistics


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "metrics.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def documented(page: str) -> set[str]:
    """Names in the tables' first column, with k and tasks as placeholders."""
    firsts = re.findall(r"^\| (`[^|]*`) \|", page, re.MULTILINE)
    return {name for cell in firsts for name in re.findall(r"`([^`]*)`", cell)}


def held_out_result() -> HeldOutResult:
    problem = Problem("countdown", "make 6", 6, "6")
    row = RolloutRow(problem.id, "countdown", "make 6", 0, "6", "", "6", {}, True, "stop", 3)
    return HeldOutResult([JudgedProblem(problem, [row] * 4, ["6"] * 4)])


def test_held_out_metrics_are_documented(documented: set[str]) -> None:
    for name in held_out_result().metrics:
        assert name.replace("@4", "@k").replace("countdown", "<task>") in documented


def test_figures_of_reward_models_are_documented(documented: set[str]) -> None:
    figures = pair_figures([HeldOutPair("a", 1.0, 0.0, 2, 1)]) | reply_figures([HeldOutReply("a", 1.0, True, 2)])
    assert {f"heldout/{name}" for name in figures} <= documented


def test_what_updates_and_watchdog_log_is_documented(page: str, documented: set[str]) -> None:
    statistics = UpdateStatistics(0.0, 1.0, 1)
    assert set(update_metrics([statistics])) <= documented
    assert len(Watchdog(WatchdogSettings()).metrics()) == len(RULES)
    assert "watchdog/<rule>" in documented
    assert all(f"`{rule}`" in page for rule in RULES)


def test_metric_names_in_the_code_are_documented(repository: Path, documented: set[str]) -> None:
    """Every `"group/name":` that a stage writes."""
    for stage in ("reinforce", "_groups", "sample", "fine_tune", "train_reward", "evaluate"):
        source = (repository / "ponder" / "stages" / f"{stage}.py").read_text(encoding="utf-8")
        written = re.findall(r'"([a-z]+/[a-z@1_]+)"(?:\]? [=:]|:)', source)
        assert set(written) <= documented, stage
        assert written or stage == "evaluate"


def test_words_and_figures_agree_with_the_code(page: str) -> None:
    assert ", ".join(ENGLISH) in page
    assert round(100 * pass_at_1([[False] * 16] * 60).high) == 6  # as the page says of 60 problems


def test_links_lead_somewhere(repository: Path, page: str) -> None:
    for target in re.findall(r"\]\(([^)]*)\)", page):
        assert (repository / "docs" / target).exists()
