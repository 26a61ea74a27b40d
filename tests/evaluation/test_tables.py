"""The tables: order, settings said once, cells that are missing, width, and differences from the samples themselves."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import BrokenInputError
from ponder.evaluation.metrics import paired_difference
from ponder.evaluation.tables import (
    as_markdown,
    as_text,
    difference,
    pass_at_k_curves,
    read_correct,
    result_tables,
    settings_text,
)


def row(model: str, benchmark: str, metric: str = "accuracy/pass@1", value: float | None = 0.714, **more: Any) -> Any:
    interval = None if value is None else [value - 0.05, value + 0.05]
    settings = {"problems": 100, "k": 16, "temperature": 0.6, "top_p": 0.95, "template": "mini"}
    return {
        "model": model,
        "benchmark": benchmark,
        "metric": metric,
        "value": value,
        "interval": interval,
        **settings,
        **more,
    }


def test_models_are_rows_in_the_order_of_the_recipe() -> None:
    rows = [row("zero", "countdown", value=0.5), row("mini", "countdown", value=0.25), row("mini", "general")]
    (table,) = result_tables(rows, ["mini", "zero", "never measured"])
    assert as_text(table).splitlines() == [
        "pass@1 (%)",
        "model  countdown      general",
        "mini   25.0 [20, 30]  71.4 [66, 76]",
        "zero   50.0 [45, 55]  -",
    ]
    assert as_markdown(table).splitlines() == [
        "**pass@1 (%)**",
        "",
        "| model | countdown     | general       |",
        "| ----- | ------------- | ------------- |",
        "| mini  | 25.0 [20, 30] | 71.4 [66, 76] |",
        "| zero  | 50.0 [45, 55] | -             |",
    ]


def test_each_measure_has_a_table_in_a_fixed_order() -> None:
    metrics = ("length/mean", "length/stop_rate", "accuracy/cons@16", "accuracy/pass@16", "accuracy/pass@1")
    rows = [row("zero", "countdown", metric) for metric in (*metrics, "language/consistency")]
    assert [table.title for table in result_tables(rows)] == [
        "pass@1",
        "cons@16, the vote of 16",
        "language consistency",
        "stop rate",
        "mean length, tokens",
    ]


def test_lengths_are_no_percentages_and_may_lack_an_interval() -> None:
    rows = [row("zero", "a", "length/mean", 812.4, interval=[790.0, 834.6]), row("zero", "b", "length/mean", 9.26)]
    rows[1]["interval"] = None
    (table,) = result_tables(rows)
    assert as_text(table).splitlines()[2].split("  ") == ["zero", " 812 [790, 835]", "9.3"]


def test_what_has_no_value_is_a_dash() -> None:
    (table,) = result_tables([row("zero", "a", value=None), row("mini", "a")])
    assert as_text(table).splitlines()[2] == "zero   -"


def test_settings_are_said_once_and_what_differs_is_named() -> None:
    rows = [row("zero", "a"), row("zero", "b"), row("student", "a", template="chat")]
    assert settings_text(rows) == (
        "problems 100, k 16, temperature 0.6, top-p 0.95; template mini for zero; template chat for student; "
        "95% intervals over problems"
    )


def test_nine_models_on_five_benchmarks_fit_a_terminal() -> None:
    models = ["mini", "zero", "dev1", "dev2", "dev3", "r1", "student_qwen", "student_llama", "student_rl"]
    benchmarks = ["countdown", "arithmetic", "parentheses", "general", "safety"]
    rows = [row(m, b, value=1.0, interval=[0.99, 1.0]) for m in models for b in benchmarks]
    for text in map(as_text, result_tables(rows, models)):
        assert max(map(len, text.splitlines())) <= 100


def test_a_long_path_keeps_its_end() -> None:
    path = "/data/runs/r1-zero-mini/stages/zero/model"
    (table,) = result_tables([row(path, "a"), row("a|b", "a")])
    assert as_text(table).splitlines()[2].startswith("...ini/stages/zero/model  ")
    assert "| a\\|b " in as_markdown(table)


def test_pass_at_k_goes_by_k_and_not_by_letters() -> None:
    rows = [row("zero", "a", f"accuracy/pass@{k}", k / 100) for k in (16, 2, 1, 8, 4)]
    curves = pass_at_k_curves([*rows, row("zero", "a", "accuracy/cons@16"), row("zero", "a", "accuracy/pass@1/a")])
    assert [(k, cell.value) for k, cell in curves["a"]["zero"]] == [(k, k / 100) for k in (1, 2, 4, 8, 16)]


Correct = list[list[bool]]


def save(folder: Path, name: str, correct: Correct, first: int = 0) -> str:
    lines = [{"problem_id": f"p{i}", "correct": c} for i, row in enumerate(correct, first) for c in row]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


@given(st.lists(st.tuples(*[st.booleans()] * 4), min_size=1, max_size=6))
def test_samples_read_back_as_they_were_judged(tmp_path_factory: pytest.TempPathFactory, table: Any) -> None:
    folder = tmp_path_factory.mktemp("samples")
    correct = [list(row) for row in table]
    assert list(read_correct(folder / save(folder, "s.jsonl", correct)).values()) == correct


def test_a_difference_is_paired_by_problem_and_has_a_sign(tmp_path: Path) -> None:
    strong, weak = [[True, True], [True, False], [True, True]], [[False, False], [True, False], [False, True]]
    rows = [
        row("r1", "a", samples=save(tmp_path, "r1.jsonl", strong)),
        row("zero", "a", samples=save(tmp_path, "zero.jsonl", weak)),
        row("other", "a", samples=save(tmp_path, "other.jsonl", weak, first=7)),
        row("r1", "a", "length/mean", samples="nowhere"),
    ]
    assert difference(tmp_path, rows, "a", "r1", "zero") == paired_difference(strong, weak)
    found = difference(tmp_path, rows, "a", "r1", "zero")
    assert found is not None
    assert found.value == pytest.approx((1 + 0 + 0.5) / 3)
    assert difference(tmp_path, rows, "a", "r1", "other") is None  # not the same problems
    assert difference(tmp_path, rows, "b", "r1", "zero") is None
    (tmp_path / "zero.jsonl").write_text("{}\n")
    with pytest.raises(BrokenInputError, match=r"zero\.jsonl is damaged"):
        difference(tmp_path, rows, "a", "r1", "zero")
    (tmp_path / "zero.jsonl").unlink()
    with pytest.raises(BrokenInputError, match="copy the whole run folder"):
        difference(tmp_path, rows, "a", "r1", "zero")
