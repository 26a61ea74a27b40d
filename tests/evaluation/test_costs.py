"""What a run cost: sums by hand, and tokens that were not counted."""

import pytest

from ponder.evaluation.costs import cost_grid, count_tokens, stage_costs, total
from ponder.run import StageRecord


def test_tokens_add_up_over_the_lines_that_count_them() -> None:
    lines = [
        {"step": 0, "heldout/length/mean": 5.0},
        {"step": 0, "tokens/sampled": 200.0},
        {"step": 1, "tokens/sampled": 30, "speed/train_tokens_per_s": 50.0},
        {"step": 3, "tokens/sampled": None},
    ]
    assert count_tokens(lines, "tokens/sampled") == 230
    assert count_tokens(lines, "tokens/trained") is None  # a speed alone says nothing


def test_core_hours_are_time_by_threads_and_the_sum_comes_last() -> None:
    records = {
        "zero": StageRecord(verb="reinforce", seconds=1800, threads=2, sampled_tokens=1_200_000, trained_tokens=10),
        "data": StageRecord(verb="sample", seconds=90, threads=4, sampled_tokens=5),
        "zero.old-1234": StageRecord(verb="reinforce", seconds=999, threads=2),
    }
    costs = stage_costs(records)
    assert total(costs).core_seconds == pytest.approx(1800 * 2 + 90 * 4)
    assert cost_grid(costs) == [
        ["stage", "wall time", "tokens sampled", "tokens trained on", "core-hours"],
        ["zero", "30 min 00 s", "1,200,000", "10", "1.00"],
        ["data", "1 min 30 s", "5", "-", "0.10"],
        ["in all", "31 min 30 s", "1,200,005", "10", "1.10"],
    ]
    assert len(cost_grid(costs[:1])) == 2  # one stage is its own sum
