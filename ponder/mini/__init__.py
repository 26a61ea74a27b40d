"""The embedded models and the world of text that they come from."""

from __future__ import annotations

from pathlib import Path

FOLDERS = {
    "mini": Path(__file__).parent / "weights",
    "mini-qwen": Path(__file__).parent / "students" / "qwen",
    "mini-llama": Path(__file__).parent / "students" / "llama",
}
"""Models inside the package by name: the base, and the two smaller ones that it is distilled into."""
