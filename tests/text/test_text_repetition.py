"""The share of words in repeated n-grams: hand-worked values, and what it can never be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.text.repetition import is_repetitive, repeated_share


@pytest.mark.parametrize(
    ("text", "n", "share"),
    [
        ("a b c d", 2, 0),
        ("a b a b", 2, 2 / 4),
        ("a a a a", 2, 3 / 4),
        ("a b c a b c d", 3, 3 / 7),
        ("Wait, wait", 1, 1 / 3),
        ("等等等等", 2, 3 / 4),
        ("", 3, 0),
    ],
)
def test_by_hand(text: str, n: int, share: float) -> None:
    assert repeated_share(text, n) == pytest.approx(share)
    assert is_repetitive(text, n, share - 0.01)
    assert not is_repetitive(text, n, share)


def test_a_loop_is_nearly_all_repetition() -> None:
    assert repeated_share("let me try " * 50, 3) == pytest.approx(147 / 150)


@given(words=st.lists(st.sampled_from("ab"), min_size=1, max_size=30), n=st.integers(1, 5))
def test_against_the_definition(words: list[str], n: int) -> None:
    """A word is repeated if some n-gram over it equals an earlier one."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    marked = {i + j for i, gram in enumerate(grams) if gram in grams[:i] for j in range(n)}
    assert repeated_share(" ".join(words), n) == pytest.approx(len(marked) / len(words))


@given(text=st.text(max_size=60), n=st.integers(1, 4))
def test_a_share_of_any_text(text: str, n: int) -> None:
    assert 0 <= repeated_share(text, n) < 1


def test_an_ngram_has_words() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        repeated_share("a", 0)
