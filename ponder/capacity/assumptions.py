"""The factors that no data sheet and no recipe gives: one set for all runs, each of which a user can replace."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ponder.errors import UsageError


@dataclass(frozen=True)
class Assumptions:
    """Set once, before the comparison with published runs, and fitted to none of them (docs/capacity.md)."""

    mfu: float = 0.4
    """Share of the peak that forward and backward passes reach; 38 to 43% in Llama 3's pretraining [2407.21783, Table
    4], which packs its sequences, as Ponder does."""
    decode_bandwidth: float = 0.6
    """Share of the memory bandwidth that decoding reaches. A round figure of ours."""
    links: float = 0.7
    """Share of a link's rate that collectives reach. A round figure of ours."""
    engine_step_s: float = 0.005
    """Seconds of each decoding step in which the device waits for the engine's own work. A round figure of ours: before
    vLLM 0.6 it was most of the time of an 8B model on an H100 (vLLM's blog, 5 September 2024)."""
    collective_s: float = 20e-6
    """Seconds that one all-reduce takes however short it is; a decoder layer has two. A round figure of ours."""
    usable_memory: float = 0.9
    """Share of a device's memory that is there to be planned with; the rest is the driver's, the context's and lost
    between blocks."""
    mean_share: float = 0.25
    """Mean length of a completion as a share of `max_tokens`, where `mean_tokens` is 0. R1-Zero's mean over its whole
    run was about that [R1 Fig. 1b]."""
    mean_tokens: float = 0.0
    """Mean length of a completion, in tokens; 0 takes `mean_share`."""
    long_tail: float = 0.0
    """The longest completion of a batch over the mean; 0 takes that of exponential lengths, ln n + 0.58 for n of them.
    Never above `max_tokens`."""
    prompt_tokens: float = 200.0
    """Mean length of a prompt; 122 to 420 in [R1 B.3.1]."""
    example_tokens: float = 5355.0
    """Mean length of an example of supervised data [R1 Table 5]."""
    kept_share: float = 0.5
    """Share of sampled examples that the filters keep."""
    rows: float = 0.0
    """Examples in a file or data set whose number the recipe does not give; 0 leaves such stages without a time."""

    def completion_tokens(self, max_tokens: int) -> float:
        """Mean length of a completion, never above `max_tokens`."""
        return min(self.mean_tokens or self.mean_share * max_tokens, max_tokens)

    def longest_tokens(self, mean_tokens: float, completions: int, max_tokens: int) -> float:
        """Expected length of the longest of so many completions, between the mean and `max_tokens`."""
        over_mean = self.long_tail or math.log(max(1, completions)) + 0.5772
        return min(max(mean_tokens, mean_tokens * over_mean), max_tokens)


_SHARES = ("mfu", "decode_bandwidth", "links", "usable_memory", "mean_share", "kept_share")


def parse_assumptions(given: Iterable[str]) -> Assumptions:
    """The defaults with `name=value` put in their place. Raises `UsageError` for an unknown name or a bad value."""
    names = [field.name for field in fields(Assumptions)]
    values: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
            raise UsageError(f"--assume {text!r} names no factor: {hint}")
        values[name] = _number(text, name, number)
    return replace(Assumptions(), **values)


def _number(text: str, name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    top = 1.0 if name in _SHARES else math.inf
    if not 0 <= value <= top or math.isinf(value) or (name in _SHARES and not value):
        wanted = "a number above 0, at most 1" if name in _SHARES else "a number of at least 0"
        raise UsageError(f"--assume {text!r}: {name} must be {wanted}")
    return value
