"""What reward models learn from: pairs and labelled replies from the mini world, from data sets and from files.

Shapes of rows in files (JSON Lines, gzipped or not, and Parquet), told apart by their columns:

    prompt, chosen, rejected                  a pair; the replies as text, or as messages of which the last is the reply
    chosen, rejected                          a pair of transcripts, as hh-rlhf has them, or of messages
    prompt, completion_a, completion_b,
        preference                            a pair graded by a person, a-is-better to b-is-better; ties are left out
    prompt, a, b                              a pair that nobody has judged; also response_a, response_b and
                                              completion_a, completion_b
    prompt, reply or response, safe           a reply; also is_safe and label: true, 1 and `safe` mean safe

A transcript is `\\n\\nHuman: ... \\n\\nAssistant: ...`, in turns; the last is the reply and all before it the prompt.
A point-wise model takes pairs, too: the chosen reply for safe, the rejected one for unsafe. That is an approximation:
people chose the better of two, and both may have been safe, or neither.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from ponder.errors import UsageError
from ponder.store.datasets import LabelledReply, PreferencePair, has_rows, read_rows
from ponder.tasks._table import data_files, data_rows


@dataclass(frozen=True)
class UnjudgedPair:
    """Two replies to one prompt, of which nobody has said which is better."""

    id: str
    source: str
    language: str
    prompt: str
    a: str
    b: str


Item = PreferencePair | LabelledReply | UnjudgedPair
Kind = Literal["pairwise", "pointwise"]
Row = Mapping[str, Any]
T = TypeVar("T")


def generate_items(kind: Kind, seed: int, count: int, options: Mapping[str, Any]) -> list[Item]:
    """Rows of the mini world's annotators. Raises `UsageError` for options that it does not have."""
    from ponder.mini.preferences import labelled_replies, preference_pairs

    arguments = {"seed": seed, "count": count, **options}
    try:
        if kind == "pairwise":
            return [
                PreferencePair(f"mini-world-{i}", "mini-world", p.language, p.prompt, p.chosen, p.rejected, p.margin)
                for i, p in enumerate(preference_pairs(**arguments))
            ]
        return [
            LabelledReply(f"mini-world-{i}", "mini-world", r.language, r.prompt, r.reply, r.safe)
            for i, r in enumerate(labelled_replies(**arguments))
        ]
    except TypeError as error:
        raise UsageError(f"data_options do not fit `mini-world`: {error}") from error


def read_items(setting: str, path: Path, dropped: Counter[str]) -> list[Item]:
    """The rows of a data set's folder, or of a file or folder of files in any of the shapes above.

    Rows that cannot be used are counted in `dropped` by reason. Raises `BrokenInputError` when there is nothing to
    read; `setting` names it.
    """
    items: list[Item] = []
    if has_rows(path, PreferencePair):
        items += read_rows(path, PreferencePair)
    if has_rows(path, LabelledReply):
        items += read_rows(path, LabelledReply)
    if items:
        return items
    for file in data_files(setting, path):
        for row in data_rows(file):
            if row:
                try:
                    items.append(parse_row(row, file.name))
                except RowError as error:
                    dropped[str(error)] += 1
    return items


def draw_rows(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """`count` of them, drawn without putting back; all of them, in their order, where `count` is 0 or too many."""
    if not 0 < count < len(items):
        return list(items)
    return random.Random(f"rows of {seed}").sample(list(items), count)


def as_judged(pair: UnjudgedPair, grade: float) -> PreferencePair:
    """The pair in the order that a judge's grade (in favour of `a`, not 0) gives it."""
    chosen, rejected = (pair.a, pair.b) if grade > 0 else (pair.b, pair.a)
    return PreferencePair(pair.id, pair.source, pair.language, pair.prompt, chosen, rejected, abs(grade))


def as_labelled(items: Iterable[PreferencePair | LabelledReply]) -> list[LabelledReply]:
    """For a point-wise model: labelled replies as they are; of a pair the chosen one as safe, the other as unsafe."""
    found: list[LabelledReply] = []
    for item in items:
        if isinstance(item, LabelledReply):
            found.append(item)
        else:
            for side, reply in (("chosen", item.chosen), ("rejected", item.rejected)):
                row_id = f"{item.id}-{side}"
                safe = side == "chosen"
                found.append(LabelledReply(row_id, item.source, item.language, item.prompt, reply, safe))
    return found


def split_by_prompt(
    rows: Sequence[T], prompt_of: Callable[[T], str], share: float, seed: int
) -> tuple[list[T], list[T]]:
    """(to train on, held out): the given share of the prompts, at least one, chosen by a hash of prompt and seed.

    A prompt is the same whatever its spacing and case, and is never on both sides. One prompt alone is trained on.
    """
    hashes = [_prompt_hash(prompt_of(row), seed) for row in rows]
    order = sorted(set(hashes))
    held_out = set(order[: min(len(order) - 1, math.ceil(share * len(order)))])
    parts: tuple[list[T], list[T]] = ([], [])
    for row, digest in zip(rows, hashes, strict=True):
        parts[digest in held_out].append(row)
    return parts


def _prompt_hash(prompt: str, seed: int) -> str:
    same = " ".join(prompt.split()).casefold()
    return hashlib.blake2b(f"{seed}\x1f{same}".encode(), digest_size=16).hexdigest()


# --- rows of files ---------------------------------------------------------------------------------------------------


class RowError(ValueError):
    """A row that cannot be used; the message is the reason by which such rows are counted."""


_GRADES = {
    "a-is-better": 2.0,
    "a-is-slightly-better": 1.0,
    "b-is-slightly-better": -1.0,
    "b-is-better": -2.0,
}
"""Margins on the judges' scale of five grades [R1 B.2]."""

_SIDES = (("completion_a", "completion_b"), ("response_a", "response_b"), ("a", "b"))
_TURN = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")


def parse_row(row: Row, source: str) -> Item:
    """One row in any of the shapes above. Raises `RowError`."""
    if "chosen" in row and "rejected" in row:
        return _pair(row, source)
    for first, second in _SIDES:
        if first in row and second in row:
            unjudged = _unjudged(row, source, _text(row, first), _text(row, second))
            return _graded(unjudged, row["preference"]) if "preference" in row else unjudged
    return _labelled(row, source)


def parse_transcript(text: str) -> list[tuple[str, str]]:
    """(role, text) of each turn of an hh-rlhf transcript, roles being Human and Assistant. Raises `RowError`."""
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise RowError("no transcript")
    return [(role, turn.strip()) for role, turn in zip(parts[::2], parts[1::2], strict=True)]


def _pair(row: Row, source: str) -> PreferencePair:
    (asked, chosen), (asked_too, rejected) = (_conversation(row, side) for side in ("chosen", "rejected"))
    if asked != asked_too:
        raise RowError("the two differ before the last reply")
    _require_difference(chosen, rejected)
    return PreferencePair(_id(row, asked, chosen, rejected), source, _language(row), asked, chosen, rejected)


def _conversation(row: Row, side: str) -> tuple[str, str]:
    """(prompt, reply) of one side of a pair."""
    value = row[side]
    if isinstance(value, list):
        turns = [_message(message) for message in value]
    elif "prompt" in row:
        return _text(row, "prompt"), _text(row, side)
    else:
        turns = parse_transcript(_text(row, side))
    if not turns or turns[-1][0] != "Assistant":
        raise RowError("no reply at the end")
    *earlier, (_, reply) = turns
    prompt = _text(row, "prompt") if "prompt" in row else _as_prompt(earlier)
    if not prompt or not reply:
        raise RowError("an empty prompt or reply")
    return prompt, reply


def _message(message: Any) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise RowError("a message that is none")
    return ("Assistant" if message.get("role") == "assistant" else "Human"), _text(message, "content").strip()


def _as_prompt(turns: Sequence[tuple[str, str]]) -> str:
    """Earlier turns as one text: the first is the user's, the others say whose they are."""
    names = {"Human": "User", "Assistant": "Assistant"}
    return "\n\n".join(text if not i else f"{names[role]}: {text}" for i, (role, text) in enumerate(turns))


def _unjudged(row: Row, source: str, a: str, b: str) -> UnjudgedPair:
    _require_difference(a, b)
    prompt = _text(row, "prompt")
    return UnjudgedPair(_id(row, prompt, a, b), source, _language(row), prompt, a, b)


def _graded(pair: UnjudgedPair, preference: Any) -> PreferencePair:
    if preference == "tie":
        raise RowError("a tie")
    if not isinstance(preference, str) or preference not in _GRADES:
        raise RowError("a preference that is none of the grades")
    return as_judged(pair, _GRADES[preference])


def _labelled(row: Row, source: str) -> LabelledReply:
    name = _present(row, ("reply", "response"), "no pair and no reply")
    label = row[_present(row, ("safe", "is_safe", "label"), "a reply without a label")]
    prompt, reply = _text(row, "prompt"), _text(row, name)
    return LabelledReply(_id(row, prompt, reply), source, _language(row), prompt, reply, _is_safe(label))


def _is_safe(label: Any) -> bool:
    if label in (True, "safe"):  # 1 == True
        return True
    if label in (False, "unsafe"):
        return False
    raise RowError("a label that is neither safe nor unsafe")


def _present(row: Row, names: Sequence[str], why: str) -> str:
    for name in names:
        if name in row:
            return name
    raise RowError(why)


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise RowError(f"`{name}` is no text")
    if not value.strip():
        raise RowError("an empty prompt or reply")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise RowError(
            "text that is no Unicode"
        )  # half a surrogate pair, which JSON can hold and no tokenizer can read
    return value.strip() if name == "prompt" else value


def _require_difference(a: str, b: str) -> None:
    if a == b:
        raise RowError("both replies are the same")


def _language(row: Row) -> str:
    language = row.get("language")
    return language if isinstance(language, str) else "en"


def _id(row: Row, *texts: str) -> str:
    if isinstance(row.get("id"), str):
        return str(row["id"])
    return hashlib.blake2b("\x1f".join(texts).encode(), digest_size=8).hexdigest()
