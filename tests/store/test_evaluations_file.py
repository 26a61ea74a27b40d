"""evaluations.json: one row a stage, step, model, benchmark and metric."""

from pathlib import Path

import pytest

from ponder.errors import BrokenInputError
from ponder.store.evaluations import EvaluationsWriter, read_evaluations


def test_a_row_replaces_the_one_it_repeats_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.json"
    writer = EvaluationsWriter(path, "table")
    writer.add([{"model": "mini", "benchmark": "countdown", "value": 0.1}])
    writer.add([{"model": "zero", "benchmark": "countdown", "value": 0.6}])
    EvaluationsWriter(path, "other").add([{"model": "mini", "benchmark": "countdown", "value": 0.3}])
    writer.add([{"model": "mini", "benchmark": "countdown", "value": 0.2}])
    values = {(row["stage"], row["model"]): row["value"] for row in read_evaluations(path)}
    assert values == {("table", "zero"): 0.6, ("other", "mini"): 0.3, ("table", "mini"): 0.2}


def test_rewind_drops_this_stages_later_rows(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.json"
    writer = EvaluationsWriter(path, "zero")
    for step in (0, 20, 40):
        writer.add([{"model": "zero", "benchmark": "countdown", "value": step}], step=step)
    EvaluationsWriter(path, "table").add([{"model": "zero", "benchmark": "countdown", "value": 1}])
    writer.rewind(20)
    assert [(row["stage"], row["step"]) for row in read_evaluations(path)] == [
        ("zero", 0),
        ("zero", 20),
        ("table", None),
    ]


def test_a_row_without_its_keys_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs `model` and `benchmark`"):
        EvaluationsWriter(tmp_path / "evaluations.json", "zero").add([{"model": "zero"}])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.json"
    path.write_text("[{]")
    with pytest.raises(BrokenInputError, match=r"evaluations\.json is not a JSON file"):
        read_evaluations(path)


@pytest.mark.parametrize("text", ["{}", "[1]", "[{}]"])
def test_what_is_no_list_of_rows_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "evaluations.json").write_text(text)
    with pytest.raises(BrokenInputError, match="must be a list of rows that name their stage"):
        read_evaluations(tmp_path / "evaluations.json")
