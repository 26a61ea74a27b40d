"""Which examples stay in a data set: one small function a rule, in the order of `KeepSettings` [R1 2.3.3, B.3.2].

What breaks a rule is counted under the first rule that it breaks, so that the counts add up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ponder.recipe import KeepSettings
from ponder.store.datasets import Example
from ponder.text.languages import consistency
from ponder.text.overlap import NearDuplicates, words
from ponder.text.repetition import is_repetitive

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_BETWEEN_PARAGRAPHS = re.compile(r"\n\s*\n")


@dataclass(frozen=True)
class Candidate:
    """An example that has yet to pass the rules."""

    example: Example
    correct: bool | None = True
    """By the task's rule or the judge; True where there is nothing to check, None where the judge could not be read."""
    finished: bool = True
    """It ended by itself, with one block of thinking (or none, where it comes from elsewhere) and an answer."""
    content: str = ""
    """Content hash of the generated problem that it answers; empty where it answers none."""
    sampled: bool = False
    """The stage's own model wrote it."""


def is_unjudged(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether it has no verdict where one is needed."""
    return keep.correct and candidate.correct is None


def is_wrong(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether the rule or the judge says no."""
    return keep.correct and candidate.correct is False


def is_unfinished(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether it was cut, or has no answer, or more than one block of thinking."""
    return keep.finished and not candidate.finished


def mixes_languages(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether too few words of the thinking are in the prompt's language; thinking without words mixes none."""
    if not keep.min_consistency:  # examples from elsewhere may be in a language that no detector here knows
        return False
    share = consistency(candidate.example.thinking, candidate.example.language)
    return share is not None and share < keep.min_consistency


def repeats_itself(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether thinking or answer, each by itself, says too much again."""
    parts = (candidate.example.thinking, candidate.example.answer)
    return any(is_repetitive(part, keep.repeated_ngram, keep.max_repeated_share) for part in parts)


def has_long_paragraph(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether a paragraph of the thinking, which an empty line ends, is too long."""
    paragraphs = _BETWEEN_PARAGRAPHS.split(candidate.example.thinking)
    return 0 < keep.max_paragraph_chars < max(len(paragraph.strip()) for paragraph in paragraphs)


def has_code(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether a fence of a code block stands in the thinking."""
    return not keep.code_blocks_in_thinking and _FENCE.search(candidate.example.thinking) is not None


def is_too_long(candidate: Candidate, keep: KeepSettings) -> bool:
    """Whether the thinking has too many words."""
    return 0 < keep.max_thinking_words < len(words(candidate.example.thinking))


RULES: Mapping[str, Callable[[Candidate, KeepSettings], bool]] = {
    "unjudged": is_unjudged,
    "correct": is_wrong,
    "finished": is_unfinished,
    "min_consistency": mixes_languages,
    "max_repeated_share": repeats_itself,
    "max_paragraph_chars": has_long_paragraph,
    "code_blocks_in_thinking": has_code,
    "max_thinking_words": is_too_long,
}
"""What breaks each rule, by the rule's setting; `unjudged` goes with `correct`."""

SELECTION = ("near_duplicate", "per_problem")
"""The rules that look at what was kept before."""


def broken_rule(candidate: Candidate, keep: KeepSettings) -> str | None:
    """The first rule that the candidate breaks by itself; None if it keeps all."""
    return next((name for name, breaks in RULES.items() if breaks(candidate, keep)), None)


def keep_by_rules(candidates: Iterable[Candidate], keep: KeepSettings, dropped: Counter[str]) -> list[Candidate]:
    """Those that keep every rule; the others are counted in `dropped`."""
    kept = []
    for candidate in candidates:
        rule = broken_rule(candidate, keep)
        if rule is None:
            kept.append(candidate)
        else:
            dropped[rule] += 1
    return kept


def select(candidates: Iterable[Candidate], keep: KeepSettings, dropped: Counter[str]) -> list[Candidate]:
    """Without near-duplicates of earlier ones, and no more of one problem than the cap allows."""
    seen = NearDuplicates(keep.near_duplicate)
    of_problem: Counter[str] = Counter()
    kept = []
    for candidate in candidates:
        example = candidate.example
        if seen.seen_before(f"{example.prompt}\n{example.thinking}\n{example.answer}"):
            dropped["near_duplicate"] += 1
        elif example.problem_id and 0 < keep.per_problem <= of_problem[example.problem_id]:
            dropped["per_problem"] += 1
        else:
            of_problem[example.problem_id] += 1
            kept.append(candidate)
    return kept
