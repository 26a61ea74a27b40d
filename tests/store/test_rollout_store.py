"""rollouts.sqlite: what is acknowledged is kept, what grows too large lets go of its oldest weight."""

import itertools
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.errors import BrokenInputError, UsageError
from ponder.store.archive import archive_rollouts
from ponder.store.metrics import read_metrics
from ponder.store.rollouts import RolloutRow, RolloutStore, RolloutWriter


def make_row(problem: str = "p0", sample: int = 0, **changes: object) -> RolloutRow:
    row = RolloutRow(
        problem_id=problem,
        task="countdown",
        prompt="make 6 of 1 2 3 <think>",
        sample=sample,
        text="wait, 1+2+3</think> 1+2+3",
        thinking="wait, 1+2+3",
        answer="1+2+3",
        rewards={"accuracy": 1.0, "format": 0.5},
        correct=True,
        finish_reason="stop",
        length=4,
        advantage=-0.25,
        reference={"numbers": [1, 2, 3], "target": 6},
        token_ids=[5, 70_000, 0, 2],
        logprobs=[-0.5, -1.25, 0.0, -8.0],
        entropies=[0.25, 2.5, 0.0, 6.5],
        ratios=[1.0, 0.5, 1.25, 4.0],
        version=3,
        versions=[(0, 3), (2, 4)],
    )
    return replace(row, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.sqlite"


@pytest.fixture
def writer(path: Path) -> Iterator[RolloutWriter]:
    writer = RolloutWriter(path, "zero")
    yield writer
    writer.close()


def test_a_rollout_comes_back_as_it_was(path: Path, writer: RolloutWriter) -> None:
    row = make_row(language="zh", difficulty=3, text="等等 🙂", answer=None, split="test", model="mini")
    writer.add(7, [row])
    assert list(RolloutStore(path).iter_rollouts(tokens=True)) == [replace(row, stage="zero", step=7)]
    (light,) = RolloutStore(path).iter_rollouts()
    assert (light.token_ids, light.logprobs, light.text) == ([], [], "等等 🙂")
    assert (light.entropies, light.ratios, light.versions, light.version) == ([], [], [], 3)


def token_arrays(count: int) -> st.SearchStrategy[dict[str, Any]]:
    """What a rollout of `count` tokens may hold one of a token, and the stretches of its versions."""

    def floats(low: float, high: float) -> st.SearchStrategy[list[float]]:
        return st.lists(st.floats(low, high, width=32), min_size=count, max_size=count)

    gaps = st.lists(st.integers(1, 10**9), min_size=1, max_size=3)
    starts = gaps.map(lambda lengths: [0, *itertools.accumulate(lengths)])
    return st.fixed_dictionaries(
        {
            "token_ids": st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count),
            "logprobs": floats(-1e4, 0),
            "entropies": st.one_of(st.just([]), floats(0, 20)),
            "ratios": st.one_of(st.just([]), floats(0, float("inf"))),
            "versions": st.one_of(st.just([]), starts.map(lambda listed: [(start, start + 7) for start in listed])),
        }
    )


@given(st.integers(1, 50).flatmap(token_arrays))
def test_tokens_survive_packing(tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("pack") / "rollouts.sqlite"
    writer = RolloutWriter(path, "zero")
    writer.add(1, [make_row(**arrays)])
    writer.close()
    (row,) = RolloutStore(path).iter_rollouts(tokens=True)
    assert {name: getattr(row, name) for name in arrays} == arrays


def test_what_holds_for_every_token_is_kept_once(path: Path, writer: RolloutWriter) -> None:
    writer.add(
        1, [make_row(version=5, versions=[(0, 5)]), make_row(version=None, versions=[], entropies=[], ratios=[])]
    )
    same, unknown = RolloutStore(path).iter_rollouts(tokens=True)
    assert (same.version, same.versions) == (5, [])
    assert (unknown.version, unknown.versions, unknown.entropies, unknown.ratios) == (None, [], [], [])


def without_later_columns(path: Path) -> None:
    """Makes a file what an earlier version would have written."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("ALTER TABLE rollouts DROP COLUMN version")
        for name in ("entropies", "ratios", "versions"):
            db.execute(f"ALTER TABLE tokens DROP COLUMN {name}")


def test_a_file_of_an_earlier_version_is_read_as_it_is(path: Path, writer: RolloutWriter, tmp_path: Path) -> None:
    writer.add(7, [make_row(problem="old")])
    writer.close()
    without_later_columns(path)
    path.chmod(0o444)
    before = path.read_bytes()
    old = make_row(problem="old", version=None, versions=[], entropies=[], ratios=[], stage="zero", step=7)
    store = RolloutStore(path)
    assert list(store.iter_rollouts(tokens=True)) == [old] == [store.get(1)]
    assert [row.problem_id for row in store.search("wait")] == ["old"]
    archive_rollouts(store, tmp_path / "archive")
    assert path.read_bytes() == before
    path.chmod(0o644)


def test_a_writer_brings_a_file_of_an_earlier_version_up_to_date(path: Path, writer: RolloutWriter) -> None:
    writer.add(7, [make_row(problem="old")])
    writer.close()
    without_later_columns(path)
    reader = RolloutStore(path).iter_rollouts(tokens=True)
    assert next(reader).problem_id == "old"  # a reader at work does not hold the writer up
    writer.add(8, [make_row(problem="new")])
    assert list(reader) == []
    old, new = RolloutStore(path).iter_rollouts(tokens=True)
    assert (old.version, old.entropies, old.logprobs) == (None, [], new.logprobs)
    assert new == make_row(problem="new", stage="zero", step=8)


def test_a_step_is_kept_whole_or_not_at_all(path: Path, writer: RolloutWriter) -> None:
    writer.add(1, [make_row()])
    with pytest.raises(TypeError):
        writer.add(2, [make_row(), make_row(reference=object())])
    assert RolloutStore(path).steps("zero") == [1]


def test_rewind_drops_this_stages_later_steps(path: Path, writer: RolloutWriter) -> None:
    other = RolloutWriter(path, "dev2")
    for step in (1, 2, 3):
        writer.add(step, [make_row()])
        other.add(step, [make_row()])
    other.close()
    writer.rewind(1)
    store = RolloutStore(path)
    assert (store.steps("zero"), store.steps("dev2"), store.count()) == ([1], [1, 2, 3], 4)
    database = sqlite3.connect(path)
    assert database.execute("SELECT (SELECT COUNT(*) FROM texts), (SELECT COUNT(*) FROM tokens)").fetchone() == (4, 4)
    database.close()


def test_reading_does_not_wait_for_the_writer(path: Path, writer: RolloutWriter) -> None:
    writer.add(1, [make_row()])
    with writer._connection as open_transaction:
        open_transaction.execute("DELETE FROM rollouts")
        assert RolloutStore(path).count("zero") == 1
        open_transaction.rollback()


def test_history_follows_the_same_problems_through_the_steps(path: Path, writer: RolloutWriter) -> None:
    for step in (0, 20):
        rows = [make_row(problem, sample, split="test") for problem in ("b", "a") for sample in (0, 1)]
        writer.add(step, rows)
    writer.add(20, [make_row("0-seen-once", split="test"), make_row("a", split="train")])
    history = RolloutStore(path).sample_problem_history("zero", num_problems=2)
    assert list(history) == ["a", "b"]
    assert [(row.step, row.sample, row.split) for row in history["a"]] == [(0, 0, "test"), (20, 0, "test")]
    assert len(RolloutStore(path).sample_problem_history("zero", 1, samples=2)["a"]) == 4


def test_search_finds_text_as_it_is_written(path: Path, writer: RolloutWriter) -> None:
    writer.add(1, [make_row(text="Wait, 100%_sure\\", correct=False), make_row(text="no doubt at all 100 sure")])
    writer.add(2, [make_row(text="wait")])
    store = RolloutStore(path)
    assert [row.step for row in store.search("WAIT")] == [2, 1]
    assert [row.step for row in store.search("wait", correct=True)] == [2]
    assert len(store.search("0%_s")) == 1
    assert len(store.search("sure\\")) == 1
    assert store.search("wait", stage="dev2") == []
    assert len(store.search("wait", limit=1)) == 1


def test_beyond_the_cap_the_oldest_steps_lose_tokens_then_texts_and_keep_their_rows(path: Path) -> None:
    said: list[str] = []
    writer = RolloutWriter(path, "zero", cap_mib=400_000 / 2**20, warn=said.append)
    for step in range(1, 41):
        split = "test" if step == 1 else "train"
        noise = [(step * 7919 + i * 104_729) % 65_536 for i in range(2_000)]
        text = "".join(chr(97 + number % 26) for number in noise)
        writer.add(step, [make_row(token_ids=noise, logprobs=[-float(n) for n in noise], text=text, split=split)])
    assert writer._used_bytes() < 400_000 * 1.1
    writer.close()
    rows = list(RolloutStore(path).iter_rollouts(tokens=True))
    assert len(rows) == 40
    with_tokens = [row.step for row in rows if row.token_ids]
    with_texts = [row.step for row in rows if not row.text_dropped]
    assert with_tokens == list(range(with_tokens[0], 41))  # the newest keep theirs
    assert set(with_tokens) <= set(with_texts)
    assert said == [
        "rollouts.sqlite reached its cap of 0.38147 MiB (store.rollouts_mib): from here on the oldest steps lose their "
        "token ids"
    ]


def test_at_last_the_rows_of_the_oldest_steps_go_and_the_disk_holds_little_more_than_the_cap(path: Path) -> None:
    said: list[str] = []
    with closing(RolloutWriter(path, "zero", cap_mib=0.25, warn=said.append)) as writer:
        for step in range(1, 301):
            split = "test" if step % 100 == 1 else "train"
            writer.add(step, [make_row(f"p{i}", sample=i, split=split, text="x" * 500) for i in range(10)])
            on_disk = path.stat().st_size
            assert on_disk < 0.3 * 2**20
    store = RolloutStore(path)
    steps = store.steps("zero")
    assert steps == [step for step in range(steps[0], 301) if step % 100 != 1]
    assert 20 < len(steps) < 250
    assert store.steps("zero", "test") == [1, 101, 201]  # evaluations outlast training
    assert [text.split()[-1] for text in said] == ["ids", "texts", "rows"]


def test_texts_of_training_go_before_those_of_evaluation(path: Path) -> None:
    writer = RolloutWriter(path, "zero", cap_mib=120_000 / 2**20)
    for step in range(1, 20):
        writer.add(step, [make_row(token_ids=[], text=str(step) * 10_000, split="test" if step < 3 else "train")])
    writer.close()
    kept = [row.step for row in RolloutStore(path).iter_rollouts() if not row.text_dropped]
    assert kept[:2] == [1, 2]
    assert kept[-1] == 19
    assert 3 not in kept


def test_a_full_disk_is_one_sentence_and_loses_nothing(path: Path, writer: RolloutWriter) -> None:
    writer.add(1, [make_row()])
    writer._connection.execute("PRAGMA max_page_count = 20")
    with pytest.raises(BrokenInputError, match="the disk is full; free space and run the same command again"):
        writer.add(2, [make_row(text="x" * 200_000)])
    writer._connection.execute("PRAGMA max_page_count = 100000")
    writer.add(2, [make_row()])
    assert RolloutStore(path).steps("zero") == [1, 2]


def test_what_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.sqlite"
    path.write_bytes(b"not a database, but long enough to be looked at as one" * 50)
    with pytest.raises(BrokenInputError, match="is no SQLite database"):
        RolloutStore(path).count()
    with pytest.raises(BrokenInputError, match="is no SQLite database"):
        RolloutWriter(path, "zero").add(1, [make_row()])


def test_no_file_holds_no_rollouts(tmp_path: Path) -> None:
    store = RolloutStore(tmp_path / "rollouts.sqlite")
    assert (store.stages(), store.count(), store.search("x"), list(store.iter_rollouts())) == ([], 0, [], [])
    RolloutWriter(store.path, "zero").rewind(-1)
    assert not store.path.exists()


def test_the_archive_holds_every_rollout_in_parts(path: Path, writer: RolloutWriter, tmp_path: Path) -> None:
    for step in range(5):
        writer.add(step, [make_row(f"p{step}", advantage=None, token_ids=[] if step == 4 else [1, 2])])
    parts = archive_rollouts(RolloutStore(path), tmp_path / "archive", rows_per_part=2)
    assert [part.name for part in parts] == [f"rollouts-0000{i}.parquet" for i in range(3)]
    assert sorted(parts) == sorted((tmp_path / "archive").iterdir())  # nothing temporary is left
    table = pyarrow.parquet.read_table(tmp_path / "archive")
    assert table.column("problem_id").to_pylist() == [f"p{i}" for i in range(5)]
    assert table.column("token_ids").to_pylist() == [[1, 2]] * 4 + [[]]
    assert table.column("rewards")[0].as_py() == '{"accuracy": 1.0, "format": 0.5}'


def test_the_archive_gives_back_what_was_stored(path: Path, writer: RolloutWriter, tmp_path: Path) -> None:
    unknown = make_row("p1", version=None, versions=[], entropies=[], ratios=[], token_ids=[], logprobs=[])
    writer.add(1, [make_row(), unknown])
    archive_rollouts(RolloutStore(path), tmp_path / "archive", rows_per_part=1)
    rows = pyarrow.parquet.read_table(tmp_path / "archive").to_pylist()
    for row in rows:
        row |= {name: json.loads(row[name]) for name in ("rewards", "reference")}
        row["versions"] = [tuple(stretch) for stretch in row["versions"]]
    assert [RolloutRow(**row) for row in rows] == list(RolloutStore(path).iter_rollouts(tokens=True))


def test_nothing_to_archive_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no rollouts to archive"):
        archive_rollouts(RolloutStore(path), tmp_path / "archive")


_WRITE_FOREVER = """
import sys
from pathlib import Path
from ponder.store.metrics import MetricsLog
from ponder.store.rollouts import RolloutRow, RolloutWriter
folder = Path(sys.argv[1])
rollouts, metrics = RolloutWriter(folder / "rollouts.sqlite", "zero"), MetricsLog(folder / "metrics.jsonl", "zero")
step = 0
while True:
    step += 1
    rollouts.add(step, [RolloutRow("p", "t", "q", i, "x" * 3000, "", None, {}, False, "stop", 1, token_ids=range(500),
                                   logprobs=[0.0] * 500) for i in range(8)])
    metrics.write(step, {"reward/mean": 0.5})
    print(step, flush=True)
"""


@pytest.mark.parametrize("seconds", [0.02, 0.11, 0.23])
def test_kill_9_in_the_middle_of_writing_loses_no_acknowledged_row(tmp_path: Path, seconds: float) -> None:
    process = subprocess.Popen([sys.executable, "-c", _WRITE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    process.kill()
    acknowledged = max(int(line) for line in [first, *process.stdout.read().splitlines()])
    process.stdout.close()
    process.wait()

    store = RolloutStore(tmp_path / "rollouts.sqlite")
    steps = store.steps("zero")
    assert steps == list(range(1, len(steps) + 1))
    assert acknowledged <= len(steps) <= acknowledged + 1
    assert store.count() == 8 * len(steps)  # no step is there in part
    logged = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")]
    assert logged[:acknowledged] == list(range(1, acknowledged + 1))
    database = sqlite3.connect(store.path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_reader_never_finds_a_file_without_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at before every statement of the writer's that is not a query."""
    path = tmp_path / "rollouts.sqlite"
    connect, seen = sqlite3.connect, []

    class Watched(sqlite3.Connection):
        def execute(self, *arguments: Any) -> sqlite3.Cursor:
            seen.append(RolloutStore(path).count())
            return super().execute(*arguments)

        def executescript(self, script: str) -> sqlite3.Cursor:
            seen.append(RolloutStore(path).count())
            return super().executescript(script)

    def watched(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        return connect(*arguments, **settings, **({} if "uri" in settings else {"factory": Watched}))

    monkeypatch.setattr(sqlite3, "connect", watched)
    with closing(RolloutWriter(path, "zero")) as writer:
        writer.add(1, [])
    assert set(seen) == {0}
    assert len(seen) > 3
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
