"""Line charts for the report: inline SVG for the lines, HTML for the words, no script.

The SVG is stretched to whatever width the page has, with strokes that keep theirs; labels are HTML and keep their size.
Pointing at a chart (or touching it) shows the values at that step.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from ponder.evaluation.html import Html, element, join
from ponder.evaluation.metrics import Estimate

Points = Sequence[tuple[float, float | None]]
"""(step, value), ascending; None is a gap in the line."""

MAX_POINTS = 300
"""Longer lines are drawn as means over neighbouring points."""
MAX_TIPS = 120
"""Strips of a chart that show values when pointed at."""
COLOURS = 9
"""Of the style sheet."""
SMOOTH_FROM = 24
"""Points from which a noisy line is drawn twice: faint as it is, bold as a running mean."""

_HEADROOM = 1.04  # of the vertical axis above the highest value


@dataclass(frozen=True)
class Line:
    """One line of a chart. `colour` is 1 to `COLOURS`; `band` holds (step, low, high).

    A line that is alone in its chart may go without a label.
    """

    label: str
    points: Points
    colour: int = 1
    band: Sequence[tuple[float, float, float]] = ()
    noisy: bool = False
    dashed: bool = False
    dots: bool = False


Format = Callable[[float], str]


def number(value: float) -> str:
    """A number for a person: two or three significant digits, thousands set apart, tiny ones as 2.4e-7."""
    size = abs(value)
    if value == 0:
        return "0"
    if size < 1e-3:
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 0.1 else f"{value:.2g}"


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f}%" if 0 < abs(value) < 0.1 else f"{100 * value:.0f}%"


def line_chart(
    title: str,
    lines: Sequence[Line],
    note: str | None = None,
    form: Format = number,
    top: float | None = None,
    wide: bool = False,
    x_label: str = "step",
    x_form: Format | None = None,
) -> Html | None:
    """A figure with a title, a legend with the last values, and the lines; None when no line has a value.

    The vertical axis begins at 0 unless a value is negative, and ends at `top` or at the highest value. `x_form` writes
    a position on the horizontal axis, `number` where it is None: points at log2(k) with 2^x make it logarithmic.
    """
    x_form = x_form or number
    drawn = [line for line in lines if any(value is not None for _, value in line.points)]
    if not drawn:
        return None
    heading = [element("h3", title), element("p", note, class_="note") if note else None]
    constant = {value for line in drawn for _, value in line.points if value is not None}
    if len(constant) == 1 and max(len(line.points) for line in drawn) > 1:
        always = element("p", element("b", form(constant.pop())), f" at every {x_label}", class_="constant")
        return element("figure", *heading, always, class_="chart")
    frame = _Frame.around(drawn, top)
    parts = [
        *heading,
        _legend(drawn, form),
        element(
            "div",
            _y_axis(frame, form),
            element(
                "div",
                _svg(title, drawn, frame, form),
                join(*(_dots(line, frame) for line in drawn)),
                _tips(drawn, frame, form, x_label, x_form),
                class_="area",
            ),
            _x_axis(frame, x_label, x_form),
            class_="plot",
        ),
    ]
    return element("figure", *parts, class_="chart wide" if wide else "chart")


def running_mean(points: Points, window: int) -> list[tuple[float, float | None]]:
    """Mean of the last `window` values at each point; a gap stays a gap, and does not count in the means after it."""
    sums = [0.0, *itertools.accumulate(value or 0.0 for _, value in points)]
    counts = [0, *itertools.accumulate(value is not None for _, value in points)]
    smooth: list[tuple[float, float | None]] = []
    for end, (step, value) in enumerate(points, start=1):
        start = max(0, end - window)
        mean = None if value is None else (sums[end] - sums[start]) / (counts[end] - counts[start])
        smooth.append((step, mean))
    return smooth


def smoothing_window(points: Points) -> int:
    """Points in the running mean of a noisy line: a twentieth of it."""
    return max(3, len(points) // 20)


@dataclass(frozen=True)
class _Frame:
    """The data range that the plot shows; positions are in percent from the left and from the bottom."""

    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, lines: Sequence[Line], top: float | None) -> _Frame:
        steps = [step for line in lines for step, _ in line.points]
        values = [value for line in lines for _, value in line.points if value is not None]
        values += [bound for line in lines for _, low, high in line.band for bound in (low, high)]
        bottom = min(0.0, *values, 0.0)
        highest = max(values) if top is None else max(top, *values)
        if highest <= bottom:
            highest = bottom + 1.0
        elif top is None:
            highest = bottom + (highest - bottom) * _HEADROOM
        return cls(min(steps), max(max(steps), min(steps) + 1), bottom, highest)

    def x(self, step: float) -> float:
        return 100 * (step - self.left) / (self.right - self.left)

    def y(self, value: float) -> float:
        return 100 * (value - self.bottom) / (self.top - self.bottom)


def _legend(lines: Sequence[Line], form: Format) -> Html:
    """Each line's name with its last value; a line alone needs no name, and shows its first value too."""
    if len(lines) == 1 and not lines[0].label:
        values = [value for _, value in _bold(lines[0]) if value is not None]
        return element("p", element("b", f"{form(values[0])} → {form(values[-1])}"), class_="legend")
    keys = []
    for line in lines:
        last = next(value for _, value in reversed(_bold(line)) if value is not None)
        swatch = element("i", class_=f"swatch c{line.colour}{' dashed' if line.dashed else ''}")
        keys.append(element("span", swatch, line.label, " ", element("b", form(last)), class_="key"))
    return element("p", *keys, class_="legend")


def _bold(line: Line) -> Points:
    """What the line's bold stroke goes through."""
    return running_mean(line.points, smoothing_window(line.points)) if _is_smoothed(line) else line.points


def _is_smoothed(line: Line) -> bool:
    return line.noisy and len(line.points) >= SMOOTH_FROM


def _svg(title: str, lines: Sequence[Line], frame: _Frame, form: Format) -> Html:
    shapes: list[Html] = [
        element("line", x1=0, x2=100, y1=_n(100 - frame.y(t)), y2=_n(100 - frame.y(t)), class_="grid")
        for t in ticks(frame.bottom, frame.top)
    ]
    for line in lines:
        if len(line.band) > 1:
            shapes.append(element("path", d=_band_path(line, frame), class_=f"band c{line.colour}"))
    for line in lines:
        colour = f"c{line.colour}{' dashed' if line.dashed else ''}"
        if _is_smoothed(line):
            shapes.append(element("path", d=_path(line.points, frame), class_=f"line faint {colour}"))
        shapes.append(element("path", d=_path(_bold(line), frame), class_=f"line {colour}"))
    return element(
        "svg",
        *shapes,
        viewBox="0 0 100 100",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{title}: {_in_words(lines, form)}",
    )


def _in_words(lines: Sequence[Line], form: Format) -> str:
    texts = []
    for line in lines:
        values = [value for _, value in line.points if value is not None]
        texts.append(f"{line.label} from {form(values[0])} to {form(values[-1])}".strip())
    return "; ".join(texts)


def _path(points: Points, frame: _Frame) -> str:
    commands, pen_down = [], False
    for step, value in _thinned(points):
        if value is None:
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{_n(frame.x(step))} {_n(100 - frame.y(value))}")
        if not pen_down:
            commands.append("h0")  # a point between two gaps shows as the line's round cap
        pen_down = True
    return "".join(commands)


def _band_path(line: Line, frame: _Frame) -> str:
    above = [f"{_n(frame.x(step))} {_n(100 - frame.y(high))}" for step, _, high in line.band]
    below = [f"{_n(frame.x(step))} {_n(100 - frame.y(low))}" for step, low, _ in reversed(line.band)]
    return f"M{'L'.join(above + below)}Z"


def _thinned(points: Points) -> Points:
    if len(points) <= MAX_POINTS:
        return points
    thinned: list[tuple[float, float | None]] = []
    for first, last in itertools.pairwise(round(i * len(points) / MAX_POINTS) for i in range(MAX_POINTS + 1)):
        values = [value for _, value in points[first:last] if value is not None]
        thinned.append((fmean(step for step, _ in points[first:last]), fmean(values) if values else None))
    return thinned


def _dots(line: Line, frame: _Frame) -> Html | None:
    """A dot at each point, or at the last one."""
    known = [(step, value) for step, value in line.points if value is not None]
    if _is_smoothed(line):
        return None
    return join(
        *(
            element("i", class_=f"dot c{line.colour}", style=f"left:{_n(frame.x(step))}%;bottom:{_n(frame.y(value))}%")
            for step, value in (known if line.dots and len(known) <= MAX_TIPS else known[-1:])
        )
    )


def _tips(lines: Sequence[Line], frame: _Frame, form: Format, x_label: str, x_form: Format) -> Html:
    """Strips side by side over the plot; each shows what the lines are worth there when it is pointed at."""
    steps = sorted({step for line in lines for step, value in line.points if value is not None})
    if len(steps) > MAX_TIPS:
        steps = [steps[round(i * (len(steps) - 1) / (MAX_TIPS - 1))] for i in range(MAX_TIPS)]
    edges = [0.0, *((frame.x(a) + frame.x(b)) / 2 for a, b in itertools.pairwise(steps)), 100.0]
    strips = []
    for step, start, end in zip(steps, edges, edges[1:], strict=False):
        rows = [element("b", f"{x_label} {x_form(step)}"), *(_tip_row(line, step, form) for line in lines)]
        side = "tip right" if frame.x(step) > 50 else "tip"
        mark = element("s", style=f"left:{_n(100 * (frame.x(step) - start) / max(1e-9, end - start))}%")
        strips.append(
            element(
                "div", mark, element("div", *rows, class_=side), style=f"left:{_n(start)}%;width:{_n(end - start)}%"
            )
        )
    return element("div", *strips, class_="tips")


def _tip_row(line: Line, step: float, form: Format) -> Html | None:
    index = bisect.bisect_left(line.points, step, key=lambda point: point[0])
    value = line.points[index][1] if index < len(line.points) and line.points[index][0] == step else None
    if value is None:
        return None
    bounds = next((f" ({form(low)} to {form(high)})" for at, low, high in line.band if at == step), "")
    return element("span", element("i", class_=f"swatch c{line.colour}"), f"{line.label} {form(value)}{bounds}".strip())


def _y_axis(frame: _Frame, form: Format) -> Html:
    labels = (element("span", form(t), style=f"bottom:{_n(frame.y(t))}%") for t in ticks(frame.bottom, frame.top))
    return element("div", *labels, class_="y")


def _x_axis(frame: _Frame, x_label: str, form: Format) -> Html:
    marks = [t for t in ticks(frame.left, frame.right) if t == int(t)]
    labels = (element("span", form(t), style=f"left:{_n(frame.x(t))}%") for t in marks)
    return element("div", *labels, element("em", x_label), class_="x")


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `wanted` of them, 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def interval_bars(rows: Iterable[tuple[str, Estimate]], form: Format = percent) -> Html:
    """Values between 0 and 1 with their intervals, one below the other on one axis, the first one in grey."""
    drawn = []
    for index, (label, estimate) in enumerate(rows):
        value, low, high = estimate.value, estimate.low, estimate.high
        whisker = element("i", class_="whisker", style=f"left:{_n(100 * low)}%;width:{_n(100 * (high - low))}%")
        dot = element("i", class_="point", style=f"left:{_n(100 * value)}%")
        drawn.append(
            element(
                "div",
                element("span", label),
                element("div", whisker, dot, class_="track"),
                element("p", element("b", form(value)), f" {form(low)} to {form(high)}"),
                class_=f"interval {'c5' if index == 0 else 'c1'}",
            )
        )
    return element("div", *drawn, class_="intervals")


def stacked_bar(parts: Sequence[tuple[str, float]], form: Format) -> Html:
    """Shares of a whole side by side, with a legend: (label, amount)."""
    whole = sum(amount for _, amount in parts) or 1.0
    pieces = [
        element("i", class_=f"c{index}", style=f"width:{_n(100 * amount / whole)}%", title=f"{label} {form(amount)}")
        for index, (label, amount) in enumerate(parts, start=1)
    ]
    keys = [
        element("span", element("i", class_=f"swatch c{index}"), label, " ", element("b", form(amount)), class_="key")
        for index, (label, amount) in enumerate(parts, start=1)
    ]
    return join(element("div", *pieces, class_="stack"), element("p", *keys, class_="legend"))


def _n(value: float) -> str:
    """A position, short: the file holds thousands of them."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
