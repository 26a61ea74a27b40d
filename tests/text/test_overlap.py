"""Shared n-grams and near-duplicates, against their definitions."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.text.overlap import NearDuplicates, NgramIndex, ngrams, words


def test_words_of_the_normalised_text() -> None:
    assert words("Tom's ２ Apples, (really)!") == ["tom", "s", "2", "apples", "really"]
    assert words("先算3+5, then 写") == ["先", "算", "3", "5", "then", "写"]
    assert words("3+5=8, a-b.", signs=True) == ["3", "+", "5", "=", "8", "a", "-", "b"]


def test_ngrams_by_hand() -> None:
    assert len(ngrams("a b c d", 2)) == 3
    assert len(ngrams("a b a b a b", 2)) == 2
    assert ngrams("A, b. c", 2) == ngrams("a b c", 2)
    assert ngrams("a b", 2) != ngrams("b a", 2)
    assert ngrams("a b", 5) == ngrams("a b", 2)  # shorter than n: one of its own length
    assert ngrams("3+5", 5) == ngrams("3*5", 5)
    assert ngrams("3+5", 5, signs=True) != ngrams("3*5", 5, signs=True)
    with pytest.raises(ValueError, match="at least 1"):
        ngrams("a", 0)


WORD_LISTS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=14)


def true_ngrams(listed: list[str], n: int) -> set[tuple[str, ...]]:
    n = min(n, len(listed))
    return {tuple(listed[i : i + n]) for i in range(len(listed) - n + 1)}


@given(a=WORD_LISTS, b=WORD_LISTS, n=st.integers(1, 5))
def test_ngrams_stand_for_their_words(a: list[str], b: list[str], n: int) -> None:
    hashed = ngrams(" ".join(a), n), ngrams(" ".join(b), n)
    true = true_ngrams(a, n), true_ngrams(b, n)
    assert [len(h) for h in hashed] == [len(t) for t in true]
    assert len(hashed[0] & hashed[1]) == len(true[0] & true[1])


def test_hashes_are_the_same_in_every_process() -> None:
    code = "from ponder.text.overlap import ngrams; print(sorted(ngrams('one two three 四', 2)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    assert done.stdout.strip() == str(sorted(ngrams("one two three 四", 2)))


BENCHMARK = [
    ("first", "Alice has three red apples and gives away one of them to Bob"),
    ("second", "What is 2 + 2?"),
    ("third", "Bob and Alice has three red apples and gives away one of the pears"),
]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("alice HAS three red, apples: and gives away one of. Then?", "first"),  # ten words in a row
        ("So alice has three red apples and gives away one too", None),  # nine
        ("gives away one of them to Bob and has three red apples", None),
        ("and Alice has three red apples and gives away one some", "third"),
        ("what is 2+2", "second"),
        ("Tell me: what is 2+2", None),  # a short one is compared whole
        ("2 + 2 what is", None),
        ("", None),
    ],
)
def test_the_index_names_what_is_shared(text: str, label: str | None) -> None:
    assert NgramIndex(BENCHMARK).hits(text) == label


def test_the_first_of_several_is_named() -> None:
    index = NgramIndex([("a", "one two three four"), ("b", "zero one two three")], n=3)
    assert index.hits("one two three") == "a"
    assert index.hits("zero one two three") == "b"  # by the order in the text that is looked up
    assert NgramIndex([], n=3).hits("one two three") is None


@given(benchmark=st.lists(WORD_LISTS, max_size=4), text=WORD_LISTS, n=st.integers(1, 5))
def test_hits_against_the_definition(benchmark: list[list[str]], text: list[str], n: int) -> None:
    index = NgramIndex([(str(i), " ".join(words)) for i, words in enumerate(benchmark)], n)
    sharing = {str(i) for i, words in enumerate(benchmark) if true_ngrams(words, n) & true_ngrams(text, n)}
    found = index.hits(" ".join(text))
    assert (found in sharing) if sharing else (found is None)


def brute_force(texts: list[str], threshold: float, n: int) -> list[bool]:
    kept: list[frozenset[int]] = []
    seen = []
    for text in texts:
        own = ngrams(text, n, signs=True)
        seen.append(any(len(own & other) / len(own | other) >= threshold for other in kept))
        if not seen[-1]:
            kept.append(own)
    return seen


def mutations(rng: random.Random, count: int) -> list[str]:
    """Texts of which many are made from an earlier one by changing, dropping or adding a few words."""
    vocabulary = [f"w{i}" for i in range(30)]
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and rng.random() < 0.6:
            text = list(rng.choice(texts))
            for _ in range(rng.randrange(4)):
                place = rng.randrange(len(text) + 1)
                text[place : place + rng.randrange(2)] = rng.choices(vocabulary, k=rng.randrange(2))
        else:
            text = ["let", "us", "go", "step", "by", "step", *rng.choices(vocabulary, k=rng.randrange(30))]
        texts.append(text)
    return [" ".join(text) for text in texts]


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_near_duplicates_are_exact_through_several_recounts(threshold: float) -> None:
    texts = mutations(random.Random(threshold), 400)
    near = NearDuplicates(threshold)
    found = [near.seen_before(text) for text in texts]
    assert found == brute_force(texts, threshold, 5)
    assert 0 < sum(found) < len(texts) - 64  # more were kept than until the first recount


@given(
    texts=st.lists(st.lists(st.sampled_from(["a", "b", "+", "我"]), max_size=10).map(" ".join), max_size=12),
    threshold=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.6, 0.75, 0.8, 1.0]) | st.floats(0.05, 1.0),
    n=st.integers(1, 4),
)
def test_near_duplicates_against_the_definition(texts: list[str], threshold: float, n: int) -> None:
    near = NearDuplicates(threshold, n)
    assert [near.seen_before(text) for text in texts] == brute_force(texts, threshold, n)


def test_what_was_dropped_is_not_compared_with() -> None:
    """c is like b, and b like a, but c is not like a."""
    a, b, c = "1 2 3 4 5 6", "1 2 3 4 5 7", "1 2 3 4 8 7"
    near = NearDuplicates(0.6, n=1)
    assert [near.seen_before(text) for text in (a, b, c)] == [False, True, False]
    assert NearDuplicates(0.6, n=1).seen_before(b) is False


def test_a_threshold_of_one_finds_equal_texts_only() -> None:
    near = NearDuplicates(1.0)
    asked = ["Try 3+5=8, yes", "try 3+5=8: yes!", "Try 3*5=8, yes", "", "", "你好"]
    assert [near.seen_before(text) for text in asked] == [False, True, False, False, True, False]


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1])
def test_a_threshold_is_a_share(threshold: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        NearDuplicates(threshold)
