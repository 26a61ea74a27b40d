"""The models that have names. Importing this costs nothing: it only knows where they lie."""

from __future__ import annotations

import re
from pathlib import Path

_MINI = Path(__file__).parent.parent / "mini"

FOLDERS = {
    "mini": _MINI / "weights",
    "mini-qwen": _MINI / "students" / "qwen",
    "mini-llama": _MINI / "students" / "llama",
}
"""By name: the base, and the two smaller ones that it is distilled into."""

SMOLLM2 = "smollm2-135m"
"""Comes in a package of its own."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(reference: str) -> bool:
    """Whether a reference that is no path here is asked of the Hub: a mistyped path must not be, so only a name whose
    first part is no folder here is."""
    path = Path(reference).expanduser()
    return bool(_HUB_ID.fullmatch(reference)) and not path.parent.exists() and path.suffix != ".gguf"


def is_model_name(reference: str) -> bool:
    """Whether a reference names a model, so far as can be told without the network."""
    return reference in (*FOLDERS, SMOLLM2) or Path(reference).expanduser().exists() or is_hub_id(reference)
