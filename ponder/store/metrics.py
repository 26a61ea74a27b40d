"""metrics.jsonl: one line a step, `{"stage", "step", "time", "elapsed", "<group>/<name>": number, ...}`.

`time` is Unix time in seconds; `elapsed` is seconds of work in the stage, without the pauses between a stop and
a resume, whatever is done to the machine's clock meanwhile. A number that is NaN or infinite is written as null, so
that every line is valid JSON.

The file has a cap. Beyond it the older half of the lines is thinned: every second step of training stays, or every
fourth, and so on, so that a curve keeps its whole range, finest near its end. Evaluations and a stage's first and last
line stay, alarms go last, and a line that goes leaves its counts of tokens to the next one: sums over a stage hold.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ponder.errors import BrokenInputError
from ponder.recipe import StoreSettings
from ponder.store.files import atomic_write, disk_errors
from ponder.store.tracking import Sink

Line = dict[str, Any]

_THINNED_SHARE = 0.9
"""Of the cap, to which a file beyond it is thinned, so that not every line has to thin it again."""

_TRAINED = "grad/norm"
"""Every line of training holds it, and no other line does."""

_ALARMS = "watchdog/"
"""Metrics that are 0 while all is well."""

_COUNTS = "tokens/"
"""Metrics that count since the line before."""


class MetricsLog:
    """Appends the metrics of one stage to the run's file. Unbuffered; used by one process at a time."""

    def __init__(
        self,
        path: Path,
        stage: str,
        sinks: Sequence[Sink] = (),
        cap_mib: float = StoreSettings().metrics_mib,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`sinks` are handed every line's finite numbers; `warn` is told once that a file beyond `cap_mib` is thinned.

        Raises `BrokenInputError` when the file cannot be written.
        """
        self.path = path
        self.stage = stage
        self._sinks = sinks
        self._cap = self._limit = int(cap_mib * 2**20)
        self._warn: Callable[[str], None] | None = warn
        self._file: io.FileIO | None = None
        self._resume_clock()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line; when this returns, a `kill -9` no longer loses it.

        `values` are numbers by metric name (`<group>/<name>`); NumPy and torch scalars are welcome.
        """
        elapsed = time.monotonic() - self._zero
        line: Line = {"stage": self.stage, "step": step, "time": round(time.time(), 3), "elapsed": round(elapsed, 3)}
        for name, value in values.items():
            line[name] = _finite(value)
        try:
            with disk_errors(self.path):
                _write_whole(self._open(), _encode(line))
        except BrokenInputError:
            self._close_file()  # what a full disk took of the line is cut off when the file is opened again
            raise
        if self._open().tell() > self._limit:
            self._thin()
        finite = {name: line[name] for name in values if line[name] is not None}
        for sink in self._sinks:
            sink.write(step, finite)

    def rewind(self, step: int) -> None:
        """Drop this stage's lines after `step`, so that a resume writes them anew; -1 drops all. Atomic."""
        self._close_file()
        edit_metrics(self.path, lambda line: line if line["stage"] != self.stage or line["step"] <= step else None)
        self._resume_clock()

    def _thin(self) -> None:
        self._close_file()
        size = thin_metrics(self.path, int(self._cap * _THINNED_SHARE))
        # where all that is left must stay, the file may grow, and is not gone through at every line
        self._limit = max(self._cap, int(size / _THINNED_SHARE))
        if self._warn is not None:
            self._warn(
                f"{self.path.name} reached its cap of {self._cap / 2**20:g} MiB (store.metrics_mib): from here on its "
                "older half keeps every second step of training only, or fewer"
            )
            self._warn = None

    def close(self) -> None:
        """Close the file, which the next `write` opens again, and the sinks for good."""
        self._close_file()
        for sink in self._sinks:
            sink.close()
        self._sinks = ()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> io.FileIO:
        if self._file is None:
            _drop_torn_line(self.path)
            self._file = open(self.path, "ab", buffering=0)
        return self._file

    def _resume_clock(self) -> None:
        """Set the clock's zero so that `elapsed` goes on where the last kept line left it."""
        lines = (line for line in _lines(self.path) if line["stage"] == self.stage)
        done = max((line.get("elapsed", 0.0) for line in lines), default=0.0)
        self._zero = time.monotonic() - done


def read_metrics(path: Path, stage: str | None = None) -> list[Line]:
    """The lines of one stage, or of all present stages (those that were set aside have a dot in their name).

    A torn last line, as a running writer may leave it for a moment, is skipped. A missing file holds no lines.
    """
    return [
        line for line in _lines(path) if (line["stage"] == stage if stage is not None else "." not in line["stage"])
    ]


def newest_steps(path: Path) -> dict[str, int]:
    """The furthest step of each stage that has a line."""
    newest: dict[str, int] = {}
    for line in _lines(path):
        newest[line["stage"]] = max(line["step"], newest.get(line["stage"], 0))
    return newest


def edit_metrics(path: Path, change: Callable[[Line], Line | None]) -> None:
    """Pass every line through `change` (None drops it) and replace the file at once."""
    if any(change(dict(line)) != line for line in _lines(path)):
        _replace(path, (kept for line in _lines(path) if (kept := change(line)) is not None))


def _replace(path: Path, lines: Iterable[Line]) -> int:
    """Put these lines into the file's place; returns their bytes."""
    content = io.BytesIO()
    content.writelines(map(_encode, lines))
    atomic_write(path, content.getvalue())
    return content.tell()


def thin_metrics(path: Path, target: int) -> int:
    """Thin the file, at once, until it holds `target` bytes or nothing more can go; returns the bytes that it holds.

    Of the older half only every second step of training stays, or every fourth, eighth, ....
    """
    entries = [_Entry.of(line) for line in _lines(path)]
    return _replace(path, _without(_lines(path), _off_stride(entries, target)))


class _Entry(NamedTuple):
    """What thinning must know of a line: the lines themselves may be too many to be held at once."""

    stage: str
    step: int
    num_bytes: int
    trained: bool
    """Whether it is a line of training that measures nothing held out."""
    alarmed: bool
    """Whether a rule of the watchdog was broken."""

    @classmethod
    def of(cls, line: Line) -> _Entry:
        trained = _TRAINED in line and not any("heldout" in name for name in line)
        alarmed = any(name.startswith(_ALARMS) and value for name, value in line.items())
        return cls(line["stage"], line["step"], len(_encode(line)), trained, alarmed)


def _off_stride(entries: Sequence[_Entry], target: int) -> set[int]:
    """Places of the lines that go: those that lie off the smallest stride that is enough; alarms after all others."""
    longest = max((entry.step for entry in entries), default=0)
    size = sum(entry.num_bytes for entry in entries)
    candidates = _may_go(entries)
    going: set[int] = set()
    for alarmed in (False, True):
        stride = 1
        while size > target and stride <= longest:
            stride *= 2
            off = {p for p in candidates if entries[p].alarmed is alarmed and entries[p].step % stride} - going
            size -= sum(entries[place].num_bytes for place in off)
            going |= off
    return going


def _may_go(entries: Sequence[_Entry]) -> list[int]:
    """Places of the lines of training in the older half, but for each stage's first and last line."""
    ends = {entry.stage: place for place, entry in enumerate(entries)}
    begun: set[str] = set()
    places: list[int] = []
    for place, entry in enumerate(entries[: len(entries) // 2]):
        if entry.trained and entry.stage in begun and place != ends[entry.stage]:
            places.append(place)
        begun.add(entry.stage)
    return places


def _without(lines: Iterable[Line], going: Collection[int]) -> Iterator[Line]:
    """The other lines; what a line that goes has counted is counted by its stage's next one."""
    carried: dict[str, Counter[str]] = {}
    for place, line in enumerate(lines):
        counts = carried.pop(line["stage"], Counter())
        if place in going:
            counts.update({name: value for name, value in line.items() if name.startswith(_COUNTS) and value})
            carried[line["stage"]] = counts
        else:
            yield {**line, **{name: count + (line.get(name) or 0) for name, count in counts.items()}}


def series(lines: Iterable[Line], name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric wherever it was logged and finite, in the file's order."""
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def _lines(path: Path) -> Iterator[Line]:
    if not path.exists():
        return
    with disk_errors(path, "read"), open(path, encoding="utf-8", errors="replace") as file:
        for number, text in enumerate(file, start=1):
            if text.endswith("\n"):
                yield _decode(text, path, number)


def _encode(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _decode(text: str, path: Path, number: int) -> Line:
    try:
        line = json.loads(text)
    except ValueError as error:
        raise BrokenInputError(f"{path} is damaged: line {number} is not JSON; remove that line") from error
    if not (isinstance(line, dict) and isinstance(line.get("stage"), str) and isinstance(line.get("step"), int)):
        raise BrokenInputError(f"{path} is damaged: line {number} has no stage and step; remove that line")
    return line


def _write_whole(file: io.FileIO, data: bytes) -> None:
    """Write all of it, or raise: a disk that fills up takes a part of a line without a word."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left after the last newline: that line was never acknowledged."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        data = file.read()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            file.truncate(whole)
            os.fsync(file.fileno())


def _finite(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
