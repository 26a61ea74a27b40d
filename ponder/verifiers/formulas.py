"""The comparison of formulas by math-verify. Imported by the worker process only: see `ponder/verifiers/math.py`."""

from __future__ import annotations

from math_verify import LatexExtractionConfig, parse, verify

DECIMALS = 12
"""To how many decimals values are rounded: math-verify's own 6 would take 0.3333333 for 1/3."""


def compare_formulas(reference: str, answer: str) -> bool:
    """Whether two LaTeX formulas are equal. No limit on time or memory: the caller must be able to kill it."""
    # math-verify's own limits are signals; no fallback, or it takes any number out of the text
    gold, given = (
        parse(f"${formula}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
        for formula in (reference, answer)
    )
    return bool(gold and given and verify(gold, given, float_rounding=DECIMALS, timeout_seconds=None))
