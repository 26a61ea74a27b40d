"""The models inside the package. Importing this costs nothing: it only knows where they lie."""

from __future__ import annotations

from pathlib import Path

_MINI = Path(__file__).parent.parent / "mini"

FOLDERS = {
    "mini": _MINI / "weights",
    "mini-qwen": _MINI / "students" / "qwen",
    "mini-llama": _MINI / "students" / "llama",
}
"""By name: the base, and the two smaller ones that it is distilled into."""
