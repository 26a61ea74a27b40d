"""metrics.jsonl: a line is whole or absent, a rewind drops exactly what a resume writes again."""

import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import BrokenInputError
from ponder.store.metrics import MetricsLog, edit_metrics, read_metrics, series


def write(path: Path, step: int, values: dict[str, float]) -> None:
    """One line of stage `a`, by a log of its own."""
    with closing(MetricsLog(path, "a")) as log:
        log.write(step, values)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_line_holds_stage_step_times_and_numbers(path: Path) -> None:
    write(path, 3, {"reward/mean": np.float32(0.5), "groups/dead": 2})
    (line,) = read_metrics(path)
    assert {key: line[key] for key in ("stage", "step", "reward/mean", "groups/dead")} == {
        "stage": "a",
        "step": 3,
        "reward/mean": 0.5,
        "groups/dead": 2,
    }
    assert line["time"] > 1.7e9
    assert 0 <= line["elapsed"] < 60


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null(path: Path, value: float) -> None:
    write(path, 1, {"grad/norm": value})

    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["grad/norm"] is None
    assert series(read_metrics(path), "grad/norm") == []


def test_each_line_is_on_disk_when_write_returns(path: Path) -> None:
    with closing(MetricsLog(path, "a")) as log:
        for step in range(3):
            log.write(step, {})
            assert len(path.read_text().splitlines()) == step + 1


@given(steps=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9)), max_size=20), cut=st.integers(-1, 9))
def test_rewind_drops_only_this_stages_later_lines(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("rewind") / "metrics.jsonl"
    logs = {stage: MetricsLog(path, stage) for stage in "ab"}
    for stage, step in steps:
        logs[stage].write(step, {})
    logs["a"].close()
    logs["b"].close()
    logs["a"].rewind(cut)
    logs["a"].write(99, {})
    kept = [(stage, step) for stage, step in steps if stage == "b" or step <= cut]
    assert [(line["stage"], line["step"]) for line in read_metrics(path)] == [*kept, ("a", 99)]
    logs["a"].close()


def test_elapsed_leaves_out_the_pause_before_a_resume(path: Path) -> None:
    path.write_text('{"stage": "a", "step": 1, "time": 5.0, "elapsed": 100.0}\n')
    with closing(MetricsLog(path, "a")) as log:
        log.write(2, {})
        assert 100.0 <= read_metrics(path)[-1]["elapsed"] < 110.0
        log.rewind(0)
        log.write(1, {})
    assert read_metrics(path)[-1]["elapsed"] < 10.0


def test_a_torn_last_line_is_skipped_and_then_cut(path: Path) -> None:
    write(path, 1, {"x/y": 1.0})
    with open(path, "a") as file:
        file.write('{"stage": "a", "st')
    assert len(read_metrics(path)) == 1
    write(path, 2, {"x/y": 2.0})
    assert series(read_metrics(path), "x/y") == [(1, 1.0), (2, 2.0)]
    assert len(path.read_text().splitlines()) == 2


def test_stages_set_aside_are_read_by_name_only(path: Path) -> None:
    write(path, 1, {})
    edit_metrics(path, lambda line: {**line, "stage": "a.old-12345678"})
    assert read_metrics(path) == []
    assert len(read_metrics(path, "a.old-12345678")) == 1


def test_a_full_disk_is_one_sentence_and_the_log_goes_on_afterwards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(path, "a")
    log.write(1, {})
    log.close()
    with monkeypatch.context() as patch, open("/dev/full", "wb", buffering=0) as full:
        patch.setattr(log, "_open", lambda: full)
        with pytest.raises(BrokenInputError, match=r"metrics\.jsonl: the disk is full; free space"):
            log.write(2, {})
    log.write(2, {})
    log.close()
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_a_damaged_line_is_named(path: Path) -> None:
    path.write_text('{"stage": "a", "step": 1}\nnot json\n')
    with pytest.raises(BrokenInputError, match="line 2 is not JSON"):
        read_metrics(path)
