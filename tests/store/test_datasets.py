"""Data sets on disk: what is written is read, and a card says it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.errors import BrokenInputError
from ponder.store.datasets import Example, LabelledReply, PreferencePair, has_rows, read_card, read_rows, write_rows

EXAMPLE = Example(
    id="a/1",
    source="a",
    domain="math",
    language="zh",
    prompt="2+3?",
    thinking="",
    answer="五",
    task="arithmetic",
    problem_id="p",
    reference={"expression": "2+3", "steps": [1, 2.5, None]},
    history=({"role": "system", "content": "Be brief."},),
)

text = st.text(st.characters(exclude_categories=["Cs"]))
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text, lambda x: st.lists(x) | st.dictionaries(text, x)
)


def test_rows_of_each_kind_come_back_as_they_were(tmp_path: Path) -> None:
    pair = PreferencePair("i", "s", "en", "p", "good", "bad", 1.5)
    labelled = LabelledReply("i", "s", "en", "p", "r", safe=False)
    for rows, kind in (([EXAMPLE, EXAMPLE], Example), ([pair], PreferencePair), ([labelled], LabelledReply)):
        assert not has_rows(tmp_path, kind)
        write_rows(tmp_path, rows, kind, {"kept": len(rows)})  # type: ignore[type-var]
        assert has_rows(tmp_path, kind)
        assert read_rows(tmp_path, kind) == rows
    assert read_card(tmp_path) == {"kept": 1}
    assert not list(tmp_path.glob(".*"))


@settings(max_examples=15)  # each writes to the disk
@given(texts=st.lists(st.tuples(text, text, text), min_size=1, max_size=4), reference=json_values)
def test_any_text_and_reference_survive(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, str]], reference: Any
) -> None:
    folder = tmp_path_factory.mktemp("data")
    rows = [Example(str(i), "s", "d", "en", *parts, reference=reference) for i, parts in enumerate(texts)]
    write_rows(folder, rows, Example, {})
    assert read_rows(folder, Example) == rows


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, [EXAMPLE] * 3, Example, {"kept": 3})
    assert (tmp_path / "a/examples.parquet").read_bytes() == (tmp_path / "b/examples.parquet").read_bytes()


def test_the_card_reads_well(tmp_path: Path) -> None:
    write_rows(tmp_path, [EXAMPLE], Example, {"kept": 1, "dropped": {"correct": 2, "finished": 0}, "read": {"x": 1}})
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert page == "# Data card\n\n- kept: 1\n\n## dropped\n\n- correct: 2\n- finished: 0\n\n## read\n\n- x: 1\n"


def test_what_is_no_data_set_is_said(tmp_path: Path) -> None:
    with pytest.raises(BrokenInputError, match="cannot read"):
        read_rows(tmp_path, Example)
    (tmp_path / "examples.parquet").write_bytes(b"nonsense")
    with pytest.raises(BrokenInputError, match=r"examples\.parquet"):
        read_rows(tmp_path, Example)
    pyarrow.parquet.write_table(pyarrow.table({"id": ["x"]}), tmp_path / "examples.parquet")
    with pytest.raises(BrokenInputError, match="no column"):
        read_rows(tmp_path, Example)
    with pytest.raises(BrokenInputError, match=r"card\.json"):
        read_card(tmp_path)
