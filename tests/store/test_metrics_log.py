"""metrics.jsonl: a line is whole or absent, a rewind drops exactly what a resume writes again."""

import itertools
import json
import math
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import BrokenInputError
from ponder.store import metrics
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


def test_a_clock_that_is_set_anew_is_no_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(MetricsLog(path, "a")) as log:
        log.write(1, {})
        day_later = time.time() + 86_400
        monkeypatch.setattr(time, "time", lambda: day_later)
        log.write(2, {})
    first, second = read_metrics(path)
    assert second["time"] - first["time"] > 86_000
    assert 0 <= second["elapsed"] - first["elapsed"] < 60


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


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("not json", "line 2 is not JSON"),
        ("[]", "line 2 has no stage and step"),
        ('{"stage": "a"}', "line 2 has no stage and step"),
        ('{"stage": "a", "step": "x"}', "line 2 has no stage and step"),
    ],
)
def test_a_damaged_line_is_named(path: Path, damage: str, sentence: str) -> None:
    path.write_text('{"stage": "a", "step": 1}\n' + damage + "\n")
    with pytest.raises(BrokenInputError, match=sentence):
        read_metrics(path)


# --- the cap -------------------------------------------------------------------------------------------------------

KIB = 1 / 1024
"""The cap's unit is MiB."""


def train_for(log: MetricsLog, steps: range) -> None:
    """Evaluations every 20 steps, an alarm at step 33, 3 tokens a training step and 100 an evaluation."""
    for step in steps:
        values = {"reward/mean": step / 1000, "grad/norm": 1.0, "tokens/sampled": 3, "watchdog/length": step == 33}
        log.write(step, values)
        if step % 20 == 0:
            log.write(step, {"heldout/accuracy/pass@1": 0.5, "tokens/sampled": 100})


def test_beyond_the_cap_training_is_thinned_and_evaluations_alarms_and_sums_stay(path: Path) -> None:
    said: list[str] = []
    write(path, 0, {"data/examples": 5.0, "grad/norm": 1.0})
    with closing(MetricsLog(path, "b", cap_mib=64 * KIB, warn=said.append)) as log:
        for step in range(1, 2001):
            train_for(log, range(step, step + 1))
            assert path.stat().st_size <= 64 * 1024
    assert said == [
        "metrics.jsonl reached its cap of 0.0625 MiB (store.metrics_mib): from here on its older half keeps every "
        "second step of training only, or fewer"
    ]
    assert [line["step"] for line in read_metrics(path, "a")] == [0]
    lines = read_metrics(path, "b")
    assert [line["step"] for line in lines if "heldout/accuracy/pass@1" in line] == list(range(20, 2001, 20))
    assert sum(line["tokens/sampled"] for line in lines) == 2000 * 3 + 100 * 100
    trained = [step for step, _ in series(lines, "grad/norm")]
    assert trained == sorted(set(trained))
    assert trained[0] == 1
    assert 33 in trained
    assert trained[-100:] == list(range(1901, 2001))
    gaps = [b - a for a, b in itertools.pairwise(trained)]
    assert max(gaps) <= 64
    assert all(value == step / 1000 for step, value in series(lines, "reward/mean"))


def test_where_every_step_is_an_alarm_the_cap_holds_all_the_same(path: Path) -> None:
    with closing(MetricsLog(path, "a", cap_mib=64 * KIB)) as log:
        for step in range(2000):
            log.write(step, {"grad/norm": 1.0, "watchdog/length": step})
            assert path.stat().st_size <= 64 * 1024


def test_a_resume_after_thinning_goes_on_as_if_it_had_not_happened(path: Path) -> None:
    with closing(MetricsLog(path, "a", cap_mib=64 * KIB)) as log:
        train_for(log, range(1, 400))
        log.rewind(390)
        train_for(log, range(391, 501))
    lines = read_metrics(path)
    assert len(lines) < 500
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert sum(line["tokens/sampled"] for line in lines) == 500 * 3 + 25 * 100


def test_where_nothing_may_go_the_file_grows_and_is_not_gone_through_at_every_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewritten = []
    monkeypatch.setattr(metrics, "atomic_write", lambda *args: rewritten.append(args))
    with closing(MetricsLog(path, "a", cap_mib=KIB)) as log:
        for step in range(300):
            log.write(step, {"heldout/accuracy/pass@1": 0.5})
    assert [line["step"] for line in read_metrics(path)] == list(range(300))
    assert 5 < len(rewritten) < 50
