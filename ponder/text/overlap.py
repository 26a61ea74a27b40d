"""What two texts have in common, by word n-grams: decontamination and near-duplicates.

Words are those of the normalised text: NFKC, lower case, without punctuation, one Chinese character a word. An n-gram
is known by a 64-bit hash that is the same in every process and every run, so that whatever is decided here is a
function of the texts alone.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_HAN = "々\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_HAN}]|[^\\W{_HAN}]+")
_WORD_OR_SIGN = re.compile(f"[{_HAN}]|[^\\W{_HAN}]+|[-+*/^=<>×÷±√%−·]")
"""The signs of arithmetic count where 3+5 and 3*5 must not be the same."""

_MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, so that n-grams that differ in one word never share a hash unless the words do."""


def words(text: str, signs: bool = False) -> list[str]:
    """The words of the normalised text in their order; `signs` makes each sign of arithmetic a word too."""
    return (_WORD_OR_SIGN if signs else _WORD).findall(unicodedata.normalize("NFKC", text).lower())


def ngrams(text: str, n: int, signs: bool = False) -> frozenset[int]:
    """Hashes of the word n-grams of a text; one that is shorter than n words is a single n-gram of its own length.

    Raises `ValueError` when `n` is below 1.
    """
    return frozenset(_hashes(words(text, signs), n).tolist())


class NgramIndex:
    """Benchmark texts, and which of them another text shares an n-gram with [R1 D.1: 10 words].

    A benchmark text shorter than n words is found only where the other text has the same words and no others.
    """

    def __init__(self, texts: Iterable[tuple[str, str]], n: int = 10) -> None:
        """`texts`: (label, text). Where several hold an n-gram, the first is named. `ValueError` when n is below 1."""
        self.n = n
        self._labels: dict[int, str] = {}
        for label, text in texts:
            for ngram in _hashes(words(text), n).tolist():
                self._labels.setdefault(ngram, label)

    def hits(self, text: str) -> str | None:
        """The label of the benchmark text that holds the first shared n-gram of this text; None where there is none."""
        return next((self._labels[g] for g in _hashes(words(text), self.n).tolist() if g in self._labels), None)


class NearDuplicates:
    """Tells whether a text says what one that was kept before said.

    Two texts are near-duplicates where the Jaccard similarity |A and B| / |A or B| of their sets of n-grams (signs of
    arithmetic included) reaches the threshold. Exact: nothing is missed and nothing is found wrongly, by prefix
    filtering (Chaudhuri et al. 2006; Bayardo et al. 2007). With all n-grams in one order, two sets that overlap by
    a share t share one among their first (1 - t) size + 1 each; only these are indexed. The order puts rare n-grams
    first, so that phrases which stand in every text are never looked up, and is counted anew at each doubling.
    """

    def __init__(self, threshold: float, n: int = 5) -> None:
        """`threshold` lies in (0, 1]: 1 finds texts with equal n-grams only. Raises `ValueError` otherwise."""
        if not 0 < threshold <= 1:
            raise ValueError(f"a threshold of similarity lies above 0 and up to 1 (got {threshold})")
        self.threshold = threshold
        self.n = n
        self._kept: list[NDArray[np.uint64]] = []
        self._index: dict[int, list[int]] = {}
        self._frequency: dict[int, int] = {}  # in how many kept texts at the last doubling, where in several
        self._next_count = 64

    def seen_before(self, text: str) -> bool:
        """Whether the text is a near-duplicate of one kept before; if not, it is kept from now on."""
        hashes = np.unique(_hashes(words(text, signs=True), self.n))
        prefix = self._prefix(hashes)
        ngram_set = frozenset(hashes.tolist())
        candidates = {place for ngram in prefix for place in self._index.get(ngram, ())}
        if any(self._similarity(ngram_set, self._kept[place]) >= self.threshold for place in candidates):
            return True
        self._keep(hashes, prefix)
        return False

    def _similarity(self, ngram_set: frozenset[int], other: NDArray[np.uint64]) -> float:
        """Jaccard similarity, or 0 where the sizes alone rule the threshold out."""
        small, large = sorted((len(ngram_set), len(other)))
        if small / large < self.threshold:
            return 0.0
        common = len(ngram_set.intersection(other.tolist()))
        return common / (small + large - common)

    def _prefix(self, hashes: NDArray[np.uint64]) -> list[int]:
        """The rarest n-grams of a set, as many as a near-duplicate cannot avoid."""
        shared = math.ceil(self.threshold * len(hashes) - 1e-9)  # a rounding must not shorten the prefix
        ordered = sorted(hashes.tolist(), key=lambda ngram: (self._frequency.get(ngram, 1), ngram))
        return ordered[: len(ordered) - shared + 1]

    def _keep(self, hashes: NDArray[np.uint64], prefix: Sequence[int]) -> None:
        place = len(self._kept)
        self._kept.append(hashes)
        for ngram in prefix:
            self._index.setdefault(ngram, []).append(place)
        if len(self._kept) == self._next_count:
            self._next_count *= 2
            self._count_anew()

    def _count_anew(self) -> None:
        ngram, count = np.unique(np.concatenate(self._kept), return_counts=True)
        several = count > 1
        self._frequency = dict(zip(ngram[several].tolist(), count[several].tolist(), strict=True))
        self._index = {}
        for place, hashes in enumerate(self._kept):
            for rare in self._prefix(hashes):
                self._index.setdefault(rare, []).append(place)


def _hashes(tokens: Sequence[str], n: int) -> NDArray[np.uint64]:
    """(len(tokens) - n + 1,) hashes of the n-grams in their order; one hash of all where there are fewer than n."""
    if n < 1:
        raise ValueError(f"an n-gram has at least 1 word (got {n})")
    n = min(n, len(tokens))
    hashed = np.fromiter(map(_word_hash, tokens), dtype=np.uint64, count=len(tokens))
    combined = np.zeros(len(tokens) - n + 1, dtype=np.uint64)
    for offset in range(n):  # a polynomial in wrapping 64-bit arithmetic
        combined = combined * np.uint64(_MULTIPLIER) + hashed[offset : offset + len(combined)]
    return combined


@functools.lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
