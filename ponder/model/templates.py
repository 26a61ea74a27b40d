"""Prompt templates: how a problem is put to a model.

A template is one of the names below, `chat` for the model's own chat template, a text that holds `{prompt}`, or the
path of a file with such a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ponder.errors import BrokenInputError, UsageError

if TYPE_CHECKING:
    from ponder.model.tokenizer import Tokenizer

CHAT = "chat"
PLACEHOLDER = "{prompt}"

TEMPLATES: Mapping[str, str] = {
    # The structure of [R1] Table 1 in our own words: who talks, thinking before the answer, the tags of both, and
    # nothing about how to think. Plain text without chat tokens, since it is put to a base model.
    "r1-zero": (
        "Here a User talks with an Assistant. Whatever the User asks, the Assistant first works it out privately and "
        "then replies. The private reasoning stands between <think> and </think>, the reply that the User sees "
        "between <answer> and </answer>, in this order: <think> reasoning </think> <answer> reply </answer>.\n"
        "User: {prompt}\nAssistant:"
    ),
    # For models that were trained on this form and need no explanation, such as the mini base.
    "mini": "User: {prompt}\nAssistant:",
}


def render(template: str, prompt: str, tokenizer: Tokenizer) -> str:
    """The whole text that the model is to continue.

    What its end says about thinking is for the parser to know: hand the text on as `prompt_tail`. Raises `UsageError`
    for a template that is neither a name nor a text nor a file, `BrokenInputError` for a file that cannot be read.
    """
    if template == CHAT:
        return tokenizer.apply_chat_template([{"role": "user", "content": prompt}])
    # not str.format: mathematics is full of braces
    return template_text(template).replace(PLACEHOLDER, prompt)


def template_text(template: str) -> str:
    """The text with `{prompt}` behind a template's name, path, or the text itself. Raises as `render` does."""
    if template in TEMPLATES:
        return TEMPLATES[template]
    if PLACEHOLDER in template:
        return template
    path = Path(template)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        names = ", ".join([*TEMPLATES, CHAT])
        raise UsageError(f"template {template!r} is none of {names}, holds no {PLACEHOLDER}, and is no file") from error
    except (OSError, ValueError) as error:
        raise BrokenInputError(f"cannot read the template {template!r}: {error}") from error
    if PLACEHOLDER not in text:
        raise UsageError(f"the template in {template} must hold {PLACEHOLDER}, where the problem is put")
    return text


def template_hash(template: str, tokenizer: Tokenizer) -> str:
    """16 hex digits that change when the text around the problem does: results are comparable where they agree."""
    text = tokenizer.chat_template or "" if template == CHAT else template_text(template)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
