"""The published figures: a handful by eye against the paper, and a source for every row."""

import re

import pytest

from ponder.evaluation.published import published_tables

TABLES = {table.name: table for table in published_tables()}


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [
        ("stages", "AIME 2024", "R1-Zero", 77.9),
        ("stages", "AIME 2024", "Dev1", 59.0),
        ("stages", "Codeforces, rating", "R1", 2029),
        ("stages", "Aider-Polyglot", "Dev3", 44.8),
        ("stages", "IF-Eval", "Dev2", 72.0),
        ("stages", "C-SimpleQA", "R1", 63.7),
        ("stages", "LiveCodeBench, hard", "Dev2", 30.36),
        ("models", "R1-Distill-Qwen-7B", "MATH-500", 92.8),
        ("models", "R1-Distill-Llama-70B", "AIME 2024, cons@64", 86.7),
        ("models", "OpenAI-o1-1217", "AIME 2024, cons@64", None),
        ("models", "DeepSeek-R1-Zero, as of v1", "AIME 2024, pass@1", 71.0),
        ("models", "DeepSeek-R1", "LiveCodeBench", 65.9),
        ("distil-or-rl", "Qwen2.5-32B-Zero", "GPQA Diamond", 55.0),
        ("small-rl", "Qwen2-Math-7B-Zero", "AIME 2025", 18.1),
    ],
)
def test_figures_are_the_papers(table: str, row: str, column: str, value: float | None) -> None:
    assert TABLES[table].value(row, column) == value


def test_every_row_has_a_source_and_a_figure_for_every_column() -> None:
    for table in published_tables():
        for row in table.rows:
            assert re.match(r"\[(v1|v2|Nat|README)\] (Tables? \d|[A-Z]\.\d)", row.source), row
            assert len(row.values) == len(table.columns), row
            assert any(value is not None for value in row.values)
        assert len({row.name for row in table.rows}) == len(table.rows)


def test_shares_are_percentages() -> None:
    for table in published_tables():
        for row in table.rows:
            for column, value in zip(table.columns, row.values, strict=True):
                if value is not None and "rating" not in f"{row.name} {column}":
                    assert 0 < value <= 100


def test_where_two_tables_give_one_figure_they_agree() -> None:
    stages, models = TABLES["stages"], TABLES["models"]
    for short, long in (("R1", "DeepSeek-R1"), ("R1-Zero", "DeepSeek-R1-Zero, as of Nature and v2")):
        assert stages.value("AIME 2024", short) == models.value(long, "AIME 2024, pass@1")
        assert stages.value("GPQA Diamond", short) == models.value(long, "GPQA Diamond")
        assert stages.value("Codeforces, rating", short) == models.value(long, "Codeforces rating")
    for column in TABLES["distil-or-rl"].columns:
        name = "R1-Distill-Qwen-32B"
        assert TABLES["distil-or-rl"].value(name, column) == models.value(name, column)
