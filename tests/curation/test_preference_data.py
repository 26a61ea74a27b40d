"""Pairs and labelled replies in the shapes that people keep them in, and prompts that never stand on both sides."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.curation.preference_data import (
    RowError,
    UnjudgedPair,
    as_judged,
    as_labelled,
    draw_rows,
    generate_items,
    parse_row,
    parse_transcript,
    read_items,
    split_by_prompt,
)
from ponder.errors import BrokenInputError, UsageError
from ponder.store.datasets import LabelledReply, PreferencePair, write_rows

TURN = st.text(alphabet="ab:\nH u", max_size=12).map(str.strip).filter(lambda t: "\n\nHuman:" not in t)
TURNS = st.lists(st.tuples(st.sampled_from(["Human", "Assistant"]), TURN), min_size=1, max_size=5)


def transcript(turns: list[tuple[str, str]]) -> str:
    return "".join(f"\n\n{role}: {text}" for role, text in turns)


def parsed_pair(**row: Any) -> PreferencePair:
    found = parse_row(row, "test")
    assert isinstance(found, PreferencePair)
    return found


@given(TURNS)
def test_a_transcript_is_read_back(turns: list[tuple[str, str]]) -> None:
    assert parse_transcript(transcript(turns)) == turns


@given(st.text(alphabet="\n HumanAsit:x", max_size=40))
def test_no_text_breaks_the_transcript_parser(text: str) -> None:
    try:
        turns = parse_transcript(text)
    except RowError:
        return
    assert turns
    assert all(role in ("Human", "Assistant") for role, _ in turns)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content"]), inner),
    max_leaves=6,
)
COLUMNS = (
    "prompt chosen rejected a b completion_a completion_b preference reply response safe label id language".split()
)


@given(st.dictionaries(st.sampled_from(COLUMNS), JSON))
def test_no_row_raises_anything_else(row: dict[str, Any]) -> None:
    try:
        found = parse_row(row, "test")
    except RowError:
        return
    assert found.prompt.strip()
    json.dumps([found.prompt, found.id, found.language], ensure_ascii=False).encode()


def test_a_plain_pair() -> None:
    pair = parsed_pair(prompt=" why? ", chosen="because", rejected="no", language="zh", id="x7")
    assert pair == PreferencePair("x7", "test", "zh", "why?", "because", "no", 1.0)
    assert parsed_pair(prompt="p", chosen="a", rejected="b").id != parsed_pair(prompt="p", chosen="b", rejected="a").id


def test_transcripts_share_all_but_the_last_reply() -> None:
    asked = [("Human", "hi"), ("Assistant", "hello"), ("Human", "why?")]
    row = {side: transcript([*asked, ("Assistant", side)]) for side in ("chosen", "rejected")}
    pair = parsed_pair(**row)
    assert (pair.prompt, pair.chosen, pair.rejected) == ("hi\n\nAssistant: hello\n\nUser: why?", "chosen", "rejected")
    assert parsed_pair(**{k: v.replace(transcript(asked[:2]), "") for k, v in row.items()}).prompt == "why?"


def test_messages() -> None:
    turns = [{"role": "user", "content": "why?"}]
    row = {side: [*turns, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    assert parsed_pair(**row).prompt == "why?"
    pair = parsed_pair(**row, prompt="the same question")
    assert (pair.prompt, pair.chosen, pair.rejected) == ("the same question", "chosen", "rejected")


@pytest.mark.parametrize(
    ("preference", "chosen", "margin"),
    [
        ("a-is-better", "A", 2.0),
        ("a-is-slightly-better", "A", 1.0),
        ("b-is-slightly-better", "B", 1.0),
        ("b-is-better", "B", 2.0),
    ],
)
def test_graded_pairs(preference: str, chosen: str, margin: float) -> None:
    pair = parsed_pair(prompt="p", completion_a="A", completion_b="B", preference=preference)
    assert (pair.chosen, pair.margin) == (chosen, margin)
    assert {pair.chosen, pair.rejected} == {"A", "B"}


@pytest.mark.parametrize("sides", [("a", "b"), ("response_a", "response_b"), ("completion_a", "completion_b")])
def test_pairs_that_nobody_judged(sides: tuple[str, str]) -> None:
    pair = parse_row({"prompt": "p", sides[0]: "A", sides[1]: "B"}, "test")
    assert isinstance(pair, UnjudgedPair)
    assert (pair.a, pair.b) == ("A", "B")
    assert (as_judged(pair, 1.5).chosen, as_judged(pair, 1.5).margin) == ("A", 1.5)
    assert (as_judged(pair, -0.5).chosen, as_judged(pair, -0.5).margin) == ("B", 0.5)


@pytest.mark.parametrize(
    ("row", "safe"),
    [
        ({"reply": "r", "safe": True}, True),
        ({"response": "r", "is_safe": False}, False),
        ({"reply": "r", "label": 1}, True),
        ({"reply": "r", "label": 0}, False),
        ({"response": "r", "label": "unsafe"}, False),
        ({"response": "r", "label": "safe"}, True),
    ],
)
def test_labelled_replies(row: dict[str, Any], safe: bool) -> None:
    found = parse_row({"prompt": "p", **row}, "test")
    assert isinstance(found, LabelledReply)
    assert (found.reply, found.safe) == ("r", safe)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p", "completion_a": "A", "completion_b": "B", "preference": "tie"}, "a tie"),
        ({"prompt": "p", "completion_a": "A", "completion_b": "B", "preference": "A"}, "none of the grades"),
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "both replies are the same"),
        ({"prompt": " ", "chosen": "x", "rejected": "y"}, "empty"),
        ({"prompt": "p", "chosen": 3, "rejected": "y"}, "`chosen` is no text"),
        ({"prompt": "p", "chosen": "x\ud800", "rejected": "y"}, "no Unicode"),
        ({"chosen": "x", "rejected": "y"}, "no transcript"),
        ({"chosen": "\n\nHuman: x", "rejected": "\n\nHuman: x"}, "no reply at the end"),
        ({"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: y"}, "empty"),
        (
            {
                "chosen": transcript([("Human", "x"), ("Assistant", "1")]),
                "rejected": transcript([("Human", "y"), ("Assistant", "1")]),
            },
            "differ before",
        ),
        ({"prompt": "p", "reply": "r"}, "without a label"),
        ({"prompt": "p", "reply": "r", "safe": "maybe"}, "neither safe nor unsafe"),
        ({"prompt": "p", "text": "r"}, "no pair and no reply"),
    ],
)
def test_rows_that_cannot_be_used_say_why(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_row(row, "test")


def test_files_and_data_sets(tmp_path: Path) -> None:
    lines = [{"prompt": "p", "chosen": f"c{i}", "rejected": "r"} for i in range(3)] + [{"prompt": "p"}, {"prompt": "q"}]
    with gzip.open(tmp_path / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "other.jsonl").write_text(json.dumps({"prompt": "p", "reply": "r", "safe": True}) + "\n\n")
    dropped: Counter[str] = Counter()
    items = read_items("data", tmp_path, dropped)
    assert [type(item) for item in items] == [LabelledReply, *[PreferencePair] * 3]
    assert items[1].source == "pairs.jsonl.gz"
    assert dropped == {"no pair and no reply": 2}
    write_rows(tmp_path / "set", [item for item in items if isinstance(item, PreferencePair)], PreferencePair, {})
    assert read_items("data", tmp_path / "set", Counter()) == items[1:]
    with pytest.raises(BrokenInputError, match=r"^stages\.x\.data: .*nowhere"):
        read_items("stages.x.data", tmp_path / "nowhere", Counter())


def test_pairs_as_labels() -> None:
    pair = parsed_pair(prompt="p", chosen="good", rejected="bad")
    label = LabelledReply("i", "s", "en", "p", "r", False)
    assert [(row.reply, row.safe) for row in as_labelled([pair, label])] == [
        ("good", True),
        ("bad", False),
        ("r", False),
    ]


def test_the_mini_world() -> None:
    pairs = generate_items("pairwise", 3, 5, {})
    assert pairs == generate_items("pairwise", 3, 8, {})[:5]
    assert all(isinstance(item, PreferencePair) for item in pairs)
    labels = generate_items("pointwise", 3, 20, {})
    assert {item.safe for item in labels if isinstance(item, LabelledReply)} == {True, False}
    with pytest.raises(UsageError, match="data_options do not fit"):
        generate_items("pairwise", 3, 5, {"flavour": 1})


def test_rows_are_drawn_by_the_seed() -> None:
    items = generate_items("pairwise", 0, 30, {})
    assert draw_rows(items, 0, 1) == draw_rows(items, 30, 1) == draw_rows(items, 99, 1) == items
    drawn = draw_rows(items, 10, 1)
    assert len({item.id for item in drawn}) == 10
    assert draw_rows(items, 10, 1) == drawn != draw_rows(items, 10, 2)


@given(
    st.lists(st.sampled_from(["a", "b", "A", " b ", "b\nc", "B C", "d"]), max_size=30),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_no_prompt_is_on_both_sides(prompts: list[str], share: float, seed: int) -> None:
    training, held_out = split_by_prompt(prompts, str, share, seed)
    assert Counter(training + held_out) == Counter(prompts)
    sides = [{" ".join(p.split()).casefold() for p in part} for part in (training, held_out)]
    assert not sides[0] & sides[1]
    if len(sides[0] | sides[1]) > 1:
        assert training and held_out
    else:
        assert not held_out


def test_the_share_is_kept_and_the_seed_decides() -> None:
    prompts = [f"prompt {i}" for i in range(200)]
    _, held_out = split_by_prompt(prompts, str, 0.15, 0)
    assert len(held_out) == 30
    assert held_out != split_by_prompt(prompts, str, 0.15, 1)[1]


def test_the_example_data(shared_data: Path) -> None:
    """Tülu's graded pairs lose their ties; hh-rlhf's transcripts nearly all share all but the last reply."""
    folder = shared_data / "preference_safety"
    dropped: Counter[str] = Counter()
    helpful = read_items("data", folder / "human_helpful_prefs_1150.jsonl.gz", dropped)
    assert dropped["a tie"] + dropped["both replies are the same"] >= 376
    assert len(helpful) + dropped.total() == 1150
    assert len(helpful) > 740
    dropped.clear()
    harmless = read_items("data", folder / "hh_harmless_test_pairs.jsonl.gz", dropped)
    assert len(harmless) > 2250
    assert len(harmless) + dropped.total() == 2312
