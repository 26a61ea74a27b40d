"""Each rule against examples just within and just beyond it, and the order in which drops are counted."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.curation.keep import RULES, SELECTION, Candidate, broken_rule, keep_by_rules, select
from ponder.recipe import KeepSettings
from ponder.store.datasets import Example


def candidate(
    thinking: str = "so", answer: str = "5", prompt: str = "2+3?", problem: str = "", **other: Any
) -> Candidate:
    example = Example("i", "s", "math", "en", prompt, thinking, answer, problem_id=problem)
    return Candidate(example, **other)


@pytest.mark.parametrize(
    ("rule", "settings", "kept", "dropped"),
    [
        ("correct", {}, {}, {"correct": False}),
        ("unjudged", {}, {"correct": True}, {"correct": None}),
        ("finished", {}, {}, {"finished": False}),
        ("min_consistency", {"min_consistency": 0.5}, {"thinking": "one two 一二"}, {"thinking": "one 一二"}),
        ("max_repeated_share", {"repeated_ngram": 2, "max_repeated_share": 0.5},
         {"thinking": "a b a b"}, {"thinking": "a b a b a b"}),
        ("max_repeated_share", {"repeated_ngram": 1, "max_repeated_share": 0}, {"answer": "a b"}, {"answer": "a a"}),
        ("max_paragraph_chars", {"max_paragraph_chars": 4}, {"thinking": "abcd\n\n  efgh"}, {"thinking": "a\n\nbcdef"}),
        ("max_paragraph_chars", {"max_paragraph_chars": 4}, {"thinking": ""}, {"thinking": "abc\nde"}),
        ("code_blocks_in_thinking", {"code_blocks_in_thinking": False},
         {"thinking": "say `x` or a```b"}, {"thinking": "so\n  ```python\nx\n```"}),
        ("code_blocks_in_thinking", {"code_blocks_in_thinking": False}, {"answer": "```\nx\n```"}, {"thinking": "~~~"}),
        ("max_thinking_words", {"max_thinking_words": 3}, {"thinking": "one 二三"}, {"thinking": "one two 三四"}),
    ],
)  # fmt: skip
def test_a_rule_drops_what_is_just_beyond_it(
    rule: str, settings: dict[str, Any], kept: dict[str, Any], dropped: dict[str, Any]
) -> None:
    keep = KeepSettings(**settings)
    assert broken_rule(candidate(**kept), keep) is None
    assert broken_rule(candidate(**dropped), keep) == rule


def test_rules_that_are_off_drop_nothing() -> None:
    keep = KeepSettings(correct=False, finished=False)
    worst = candidate("x x x x " * 50 + "一二三\n```\n", correct=None, finished=False)
    assert broken_rule(worst, keep) is None
    stranger = dataclasses.replace(worst, example=dataclasses.replace(worst.example, language="xx"))
    assert broken_rule(stranger, keep) is None  # no detector knows that language, and none is asked


def test_thinking_without_words_mixes_no_languages() -> None:
    assert broken_rule(candidate("3+4=7"), KeepSettings(min_consistency=1)) is None
    assert broken_rule(candidate(""), KeepSettings(min_consistency=1)) is None


def test_the_rules_stand_in_the_order_of_the_settings() -> None:
    fields = [name for name in KeepSettings.model_fields if name != "repeated_ngram"]
    assert ["unjudged", *fields] == [*RULES, *SELECTION]
    everything = candidate("一 " * 9, correct=False, finished=False)
    keep = KeepSettings(min_consistency=1, max_thinking_words=2)
    assert broken_rule(everything, keep) == "correct"
    assert broken_rule(dataclasses.replace(everything, correct=True), keep) == "finished"
    assert broken_rule(dataclasses.replace(everything, correct=True, finished=True), keep) == "min_consistency"


@given(st.lists(st.builds(candidate, st.text(), correct=st.sampled_from([True, False, None]), finished=st.booleans())))
def test_every_candidate_is_kept_or_counted_once(candidates: list[Candidate]) -> None:
    keep = KeepSettings(max_thinking_words=3, max_paragraph_chars=5, repeated_ngram=1, max_repeated_share=0.2)
    dropped: Counter[str] = Counter()
    kept = keep_by_rules(candidates, keep, dropped)
    assert len(kept) + dropped.total() == len(candidates)
    chosen = select(kept, keep, dropped)
    assert len(chosen) + dropped.total() == len(candidates)


def test_equal_examples_are_kept_once_and_the_same_reply_to_another_question_is_another_example() -> None:
    dropped: Counter[str] = Counter()
    first, again, other = candidate("a b"), candidate("a b"), candidate("a b", prompt="3+2?")
    assert select([first, again, other], KeepSettings(), dropped) == [first, other]
    assert dropped == {"near_duplicate": 1}


def test_near_duplicates_go_by_the_share_of_what_is_common() -> None:
    text = " ".join(f"w{i}" for i in range(30))
    almost = text.replace("w29", "other")
    # prompt 2 + 30 words + answer 1 = 35 with the signs: the last two 5-grams differ, and one more around the answer
    pair = [candidate(text), candidate(almost)]
    assert len(select(pair, KeepSettings(near_duplicate=0.8), Counter())) == 1
    assert len(select(pair, KeepSettings(near_duplicate=0.99), Counter())) == 2


def test_the_cap_counts_a_problem_in_order_and_leaves_examples_without_one_alone() -> None:
    dropped: Counter[str] = Counter()
    of_one = [candidate(f"way {i}", problem="p") for i in range(3)]
    free = [candidate(f"free {i}") for i in range(3)]
    assert select([*of_one, *free], KeepSettings(per_problem=2), dropped) == [*of_one[:2], *free]
    assert dropped == {"per_problem": 1}
