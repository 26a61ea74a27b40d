"""What a person sees: time left, curves, plain lines in a log file, silence when asked."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import ponder.progress
from ponder.progress import Reporter, duration, sparkline


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ponder.progress.time, "monotonic", clock.monotonic)
    return clock


def log_file() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def text_of(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_time_left_follows_the_pace_of_this_process(clock: Clock) -> None:
    reporter = Reporter("zero", console=log_file())
    clock.now = 1000.0
    reporter.begin(total_steps=100, done=40)
    assert reporter.seconds_left() is None
    for step in range(41, 51):
        clock.now += 3.0
        reporter.step(step)
    assert reporter.seconds_left() == pytest.approx(50 * 3.0)
    clock.now += 2.0
    assert reporter.seconds_left() == pytest.approx(50 * 3.0 - 2.0)
    for step in range(51, 81):  # the pace changes, and after some steps only the new one counts
        clock.now += 1.0
        reporter.step(step)
    assert reporter.seconds_left() == pytest.approx(20 * 1.0)


def test_a_log_file_gets_a_plain_line_now_and_then_and_one_at_the_end(clock: Clock) -> None:
    console = log_file()
    with Reporter("zero", console=console, line_every_s=5.0) as reporter:
        reporter.begin(20)
        for step in range(1, 21):
            clock.now += 2.0
            reporter.step(step, {"reward/mean": step / 100})
    lines = text_of(console).splitlines()
    assert len(lines) == 8  # the first, then every third, then the last
    assert lines[1] == "[zero] step 4/20  reward/mean 0.04  32 s left"
    assert lines[-1] == "[zero] step 20/20  reward/mean 0.2  0 s left"
    assert "\x1b" not in text_of(console)


def test_a_resume_says_so() -> None:
    console = log_file()
    Reporter("zero", console=console).begin(20, done=7)
    assert text_of(console) == "[zero] goes on after step 7 of 20\n"


def test_quiet_keeps_warnings_only() -> None:
    console = log_file()
    reporter = Reporter("zero", quiet=True, console=console)
    reporter.begin(2)
    reporter.step(2, {"reward/mean": 1.0})
    reporter.note("hello")
    reporter.warn("look [here]")
    assert text_of(console) == "[zero] warning: look [here]\n"


def test_a_terminal_shows_a_bar_with_curves() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Reporter("zero", console=console) as reporter:
        reporter.begin(10)
        reporter.within(1, 4)
        for step in range(1, 9):
            reporter.step(step, {"accuracy/pass@1": step / 8})
    shown = text_of(console)
    assert "8/10" in shown
    assert "accuracy/pass@1" in shown
    assert "▁▂▃▄▅▆▇█" in shown


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert sparkline([8, 1]) == "█▁"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([0, 0, 4, 4], width=2) == "▁█"
    assert sparkline([float("nan"), 1.0, float("inf")]) == "▁"
    assert sparkline([]) == ""


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 60))
def test_a_sparkline_fits_its_width(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(width, len(values))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.6, "8 s"), (59.4, "59 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
