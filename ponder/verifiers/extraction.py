"""What a text puts forward as its final answer.

One answer, or none: never a number picked from somewhere in the prose, for a reward that searches can be hacked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MAX_CHARACTERS = 100_000
"""Longer texts hold no answer."""

# Words that may stand before the answer on its line.
LEAD_IN = re.compile(
    r"(?:####"
    r"|(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:final )?answer ?(?:is|:|=):?"
    r"|(?:最终)?答案(?:是|为|:|：))\s*",
    re.IGNORECASE,
)
BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
# A box's opening, an escaped brace (which is text), or a brace.
BRACE = re.compile(rf"{BOX.pattern}|\\[{{}}\\]|[{{}}]")


class AnswerError(ValueError):
    """The text puts no answer forward that can be read; the message is one short clause."""


def final_answer(text: str) -> str:
    r"""The final answer: what stands in the boxes; else the last line, without words such as `The answer is`.

    Within the last `<answer>` tags, if there are any, else in the whole text. Empty boxes do not count; two boxes that
    say different things are no answer, so that nobody can answer twice. Raises `AnswerError`.
    """
    if len(text) > MAX_CHARACTERS:
        raise AnswerError("the text is too long to hold an answer")
    before, closing_tag, _ = text.rpartition("</answer>")
    if closing_tag:
        text = before.rpartition("<answer>")[2]
    boxes = [box for box in (content.strip() for content in _boxes(text)) if box]
    if boxes:
        if len({re.sub(r"\s", "", box) for box in boxes}) > 1:
            raise AnswerError("two boxes say different things")
        return boxes[-1]
    if BOX.search(text):
        raise AnswerError("the box is empty or never closed")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise AnswerError("there is no answer")
    last = lines[-1].strip("*").strip()
    lead_in = LEAD_IN.match(last)
    return last[lead_in.end() :].strip() if lead_in else last


def readings(text: str) -> list[str]:
    """The whole text, which may be an answer of several lines, and the final answer if there is one."""
    if not text.strip() or len(text) > MAX_CHARACTERS:
        return []
    try:
        return [text.strip(), final_answer(text)]
    except AnswerError:
        return [text.strip()]


def _boxes(text: str) -> Iterator[str]:
    """The contents of the outermost boxes, in one pass; a box that is never closed is left out."""
    starts: list[int | None] = []  # for each open brace: where its box's content starts, None for other braces
    depth = 0  # boxes that are open
    for brace in BRACE.finditer(text):
        sign = brace.group()
        if sign == "}" and starts:
            start = starts.pop()
            depth -= start is not None
            if start is not None and depth == 0:
                yield text[start : brace.start()]
        elif sign == "{":
            starts.append(None)
        elif sign.startswith(("\\boxed", "\\fbox")):
            starts.append(brace.end())
            depth += 1
