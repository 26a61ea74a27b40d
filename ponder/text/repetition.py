"""How much of a text says again what it said before, by n-grams.

After Yeo et al., 2502.03373, section 4, who mark every token that belongs to a repeated n-gram. Words are counted
without regard to any tokenizer, so that models can be compared.
"""

from __future__ import annotations

import re

# A word, a number, one Chinese character, or one sign.
_UNIT = re.compile(r"[A-Za-z]+|[0-9]+|\S")


def repeated_share(text: str, n: int) -> float:
    """Share (0..1) of the words that lie in an n-gram which occurred before in the text, in either case of letters.

    0 for an empty text. Raises `ValueError` when `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"an n-gram has at least 1 word (got {n})")
    words = _UNIT.findall(text.lower())
    seen: set[tuple[str, ...]] = set()
    repeated = 0
    counted_up_to = 0  # words before this position are counted already
    for start in range(len(words) - n + 1):
        ngram = tuple(words[start : start + n])
        if ngram in seen:
            repeated += start + n - max(start, counted_up_to)
            counted_up_to = start + n
        seen.add(ngram)
    return repeated / len(words) if words else 0.0


def is_repetitive(text: str, n: int, max_share: float) -> bool:
    """Whether more than `max_share` of the words lie in a repeated n-gram: the detector of [R1 B.3.2].

    Raises `ValueError` when `n` is below 1.
    """
    return repeated_share(text, n) > max_share
