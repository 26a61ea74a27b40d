"""What a person sees while a stage runs: a bar with the time left and the curves so far, or plain lines.

On a terminal the display is redrawn in place; elsewhere (a log file, a pipe) one plain line is written every few
seconds. All of it goes to standard error, so that standard output stays free for what a program reads.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

_BLOCKS = "▁▂▃▄▅▆▇█"
_CURVE_WIDTH = 40  # characters
_PACE_STEPS = 20  # the time left follows the last so many steps


class Reporter:
    """Progress of one stage. Use as a context manager, or call `close` at the end."""

    def __init__(
        self, title: str, quiet: bool = False, console: Console | None = None, line_every_s: float = 5.0
    ) -> None:
        """`quiet` keeps only warnings; `line_every_s` is the pace of plain lines, in seconds."""
        self.title = title
        self._quiet = quiet
        self._console = console if console is not None else Console(stderr=True)
        self._line_every = line_every_s
        self._last_line = float("-inf")
        self._total = 0
        self._done = 0
        self._within = 0.0
        self._curves: dict[str, list[float]] = {}
        self._ticks: deque[tuple[float, int]] = deque(maxlen=_PACE_STEPS + 1)
        self._live: Live | None = None

    def begin(self, total_steps: int, done: int = 0) -> None:
        """Start the display; `done` steps were made before (by the run that this one resumes)."""
        self._total, self._done = total_steps, done
        self._ticks.clear()
        self._ticks.append((time.monotonic(), done))
        if self._quiet:
            return
        if done:
            self.note(f"goes on after step {done} of {total_steps}")
        if self._console.is_terminal and self._live is None:
            # a getter instead of a value: the clock moves although no step has ended
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.start()

    def step(self, done: int, shown: Mapping[str, float] | None = None) -> None:
        """`done` steps are behind us; `shown` are the few numbers worth a person's eye, by metric name."""
        self._done, self._within = done, 0.0
        self._ticks.append((time.monotonic(), done))
        for name, value in (shown or {}).items():
            self._curves.setdefault(name, []).append(float(value))
        last = done >= self._total
        if self._live is None and not self._quiet and (last or time.monotonic() - self._last_line >= self._line_every):
            self._last_line = time.monotonic()
            self._print(self._plain_line())

    def within(self, done: int, total: int) -> None:
        """`done` of `total` pieces (rollouts, say) of the present step are behind us."""
        self._within = done / total if total else 0.0

    def note(self, text: str) -> None:
        """Say something that is good to know."""
        if not self._quiet:
            self._print(f"[{self.title}] {text}")

    def warn(self, text: str) -> None:
        """Say something that a person should look at; shown in quiet mode too."""
        self._console.print(f"[yellow]\\[{escape(self.title)}] warning:[/yellow] {escape(text)}", highlight=False)

    def close(self) -> None:
        """End the display; what it showed last stays on the screen."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end, from the pace of the last steps; None before the first step has ended."""
        (start, first), (end, last) = self._ticks[0], self._ticks[-1]
        if last <= first:
            return None
        return max(0.0, (self._total - self._done) * (end - start) / (last - first) - (time.monotonic() - end))

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _plain_line(self) -> str:
        numbers = "  ".join(f"{name} {values[-1]:.4g}" for name, values in self._curves.items())
        return f"[{self.title}] step {self._done}/{self._total}  {numbers}  {self._time_text()}"

    def _time_text(self) -> str:
        left = self.seconds_left()
        return "time left: measuring" if left is None else f"{duration(left)} left"

    def _render(self) -> RenderableType:
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self._total, 1), completed=self._done + self._within, width=_CURVE_WIDTH)
        head.add_row(Text(self.title, "bold"), bar, f"{self._done}/{self._total}", self._time_text())
        curves = Table.grid(padding=(0, 2))
        for name, values in self._curves.items():
            curves.add_row(f"  {name}", f"{values[-1]:.4g}", Text(sparkline(values), "cyan"))
        return Group(head, curves)


def sparkline(values: list[float], width: int = _CURVE_WIDTH) -> str:
    """The values as a line of block characters, lowest to highest; the mean of each bin where there are too many."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [round(i * len(finite) / count) for i in range(count + 1)]
    bins = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(bins), max(bins)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in bins)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
