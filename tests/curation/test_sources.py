"""Examples from elsewhere: the shapes of rows, what is broken, and what the mini world answers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.curation.keep import Candidate
from ponder.curation.sources import RowError, parse_row, read_source
from ponder.errors import BrokenInputError, UsageError
from ponder.recipe import SourceSettings
from ponder.tasks.base import TEST_SHARE


def parsed(row: dict[str, Any], **settings: Any) -> Candidate:
    return parse_row(row, SourceSettings(**settings), "file:x", "file:x/1")


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


R1_REPLY = "<think>\nTwo and three.\n</think>\n\nIt is 5."


def test_a_problem_and_a_solution() -> None:
    example = parsed({"problem": " 2+3? ", "solution": R1_REPLY, "language": "zh"}, domain="math").example
    assert (example.prompt, example.thinking, example.answer) == ("2+3?", "Two and three.", "It is 5.")
    assert (example.id, example.source, example.domain, example.language) == ("file:x/1", "file:x", "math", "zh")


def test_messages_give_the_last_reply_and_all_before_it_is_history() -> None:
    first, again, reply = turn("user", "Hi"), turn("assistant", "Hello"), turn("assistant", R1_REPLY)
    messages = [turn("system", "Be brief."), first, again, turn("user", "2+3?"), reply, turn("user", "Thanks")]
    example = parsed({"messages": messages}, language="en").example
    assert (example.prompt, example.thinking, example.answer) == ("2+3?", "Two and three.", "It is 5.")
    assert example.history == (turn("system", "Be brief."), first, again)


def test_thinking_may_stand_in_a_column_or_key_of_its_own() -> None:
    row = {"problem": "2+3?", "solution": "5", "trace": "so"}
    assert parsed(row, thinking_field="trace").example.thinking == "so"
    messages = [turn("user", "2+3?"), turn("assistant", "5", reasoning_content="so")]
    candidate = parsed({"messages": messages})
    assert (candidate.example.thinking, candidate.example.answer, candidate.finished) == ("so", "5", True)


@pytest.mark.parametrize(
    ("reply", "thinking", "answer", "finished"),
    [
        ("It is 5.", "", "It is 5.", True),
        (R1_REPLY, "Two and three.", "It is 5.", True),
        ("Two and three.\n</think>\n\nIt is 5.", "Two and three.", "It is 5.", True),  # the template opened the block
        ("<think>a</think><answer>5</answer>", "a", "5", True),
        ("<think>a</think>", "a", "", False),
        ("<think>never closed", "never closed", "", False),
        ("<think>a</think> 5 <think>b</think>", "a", "5 <think>b</think>", False),
    ],
)
def test_the_one_parser_tells_thinking_from_answer(reply: str, thinking: str, answer: str, finished: bool) -> None:
    candidate = parsed({"problem": "p", "solution": reply})
    assert (candidate.example.thinking, candidate.example.answer) == (thinking, answer)
    assert candidate.finished is finished


BROKEN: list[dict[str, Any]] = [
    {"problem": "p"},
    {"problem": "", "solution": "s"},
    {"problem": "p", "solution": 5},
    {"problem": "p\ud800", "solution": "s"},
    {"messages": "text"},
    {"messages": [1, 2]},
    {"messages": []},
    {"messages": [turn("assistant", "5")]},
    {"messages": [turn("user", "p")]},
    {"messages": [turn("user", " "), turn("assistant", "5")]},
    {"messages": [turn("user", "p"), turn("assistant", "")]},
    {"messages": [turn("user", "p"), turn("assistant", None)]},
    {"messages": [turn("assistant", "a"), turn("assistant", "b")]},
]


@pytest.mark.parametrize("row", BROKEN)
def test_a_row_without_prompt_or_reply_is_broken(row: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        parsed(row)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "problem", "solution", "messages", "reasoning"]) | st.text(), x
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["problem", "solution", "messages", "language", "t"]), json_values))
def test_no_row_breaks_the_reading(row: dict[str, Any]) -> None:
    try:
        candidate = parsed(row, thinking_field="t")
    except RowError:
        return
    assert candidate.example.prompt


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(lines)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.parquet"])
def test_files_of_every_kind_are_read_and_broken_rows_counted(tmp_path: Path, name: str) -> None:
    rows = [{"problem": f"p{i}", "solution": "" if i == 1 else R1_REPLY} for i in range(4)]
    write(tmp_path / name, rows)
    found = read_source("file:cold", SourceSettings(path=str(tmp_path / name)), seed=0)
    assert found.broken == 1
    assert [c.example.prompt for c in found.candidates] == ["p0", "p2", "p3"]
    assert [c.example.id for c in found.candidates] == [f"file:cold/{name}/{n}" for n in (1, 3, 4)]
    assert all(c.correct and not c.content for c in found.candidates)
    two = read_source("file:cold", SourceSettings(path=str(tmp_path / name), rows=2), seed=0)
    assert two.candidates == found.candidates[:2]


def test_messages_survive_parquet(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", [{"messages": [turn("user", "2+3?"), turn("assistant", R1_REPLY)]}])
    (candidate,) = read_source("file", SourceSettings(path=str(tmp_path)), seed=0).candidates
    assert (candidate.example.prompt, candidate.example.answer) == ("2+3?", "It is 5.")


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"problem": ')
    with pytest.raises(BrokenInputError, match="row 1 is no JSON"):
        read_source("file", SourceSettings(path=str(tmp_path / "x.jsonl")), seed=0)
    with pytest.raises(BrokenInputError, match=r"sources\.file:a\.path"):
        read_source("file:a", SourceSettings(path=str(tmp_path / "absent.jsonl")), seed=0)
    with pytest.raises(UsageError, match=r"sources\.file\.path"):
        read_source("file", SourceSettings(), seed=0)
    with pytest.raises(UsageError, match="no kind `disk`"):
        read_source("disk", SourceSettings(), seed=0)


def test_a_set_of_the_hub_is_fetched_by_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def snapshot_download(repository: str, **arguments: Any) -> str:
        assert (repository, arguments["repo_type"]) == ("open/set", "dataset")
        assert "math/*.parquet" in arguments["allow_patterns"]
        (tmp_path / "math").mkdir()
        write(tmp_path / "math" / "a.jsonl", [{"q": "2+3?", "a": "5"}])
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    settings = SourceSettings(path="open/set", folder="math", prompt_field="q", reply_field="a")
    (candidate,) = read_source("hub", settings, seed=0).candidates
    assert (candidate.example.prompt, candidate.example.answer) == ("2+3?", "5")


def test_the_mini_world_answers_its_train_problems_rightly_and_the_same_each_time() -> None:
    settings = SourceSettings.model_validate(
        {"rows": 40, "tasks": {"general": {"languages": ["en", "zh"]}, "safety": {}}}
    )
    found = read_source("mini-world", settings, seed=3)
    assert found == read_source("mini-world", settings, seed=3)
    assert found.candidates != read_source("mini-world", settings, seed=4).candidates
    assert all(c.correct and c.content and c.example.answer for c in found.candidates)
    assert {c.example.task for c in found.candidates} == {"general", "safety"}
    assert any(not c.example.thinking for c in found.candidates)
    assert all(int(c.content[:8], 16) / 2**32 >= TEST_SHARE for c in found.candidates)  # none of the test split


def test_a_world_without_end_needs_a_number() -> None:
    with pytest.raises(UsageError, match=r"sources\.mini-world needs `rows`"):
        read_source("mini-world", SourceSettings.model_validate({"tasks": {"general": {}}}), seed=0)


def test_solutions_of_grade_school_problems(shared_data: Path) -> None:
    path = shared_data / "math" / "gsm8k_train.jsonl.gz"
    found = read_source("file", SourceSettings(path=str(path), rows=200, domain="math"), seed=0)
    assert (len(found.candidates), found.broken) == (200, 0)
    assert all(c.finished and not c.example.thinking for c in found.candidates)


def test_columns_that_no_row_has_are_said(tmp_path: Path) -> None:
    write(tmp_path / "x.jsonl", [{"question": "2+3?", "solution": "5"}])
    with pytest.raises(BrokenInputError, match="`prompt_field`"):
        read_source("file", SourceSettings(path=str(tmp_path / "x.jsonl")), seed=0)
