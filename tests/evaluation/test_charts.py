"""Charts and escaping: positions worked by hand, gaps, ticks, and markup that cannot be broken out of."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.evaluation.charts import (
    MAX_POINTS,
    MAX_TIPS,
    Line,
    interval_bars,
    line_chart,
    number,
    percent,
    running_mean,
    stacked_bar,
    ticks,
)
from ponder.evaluation.html import Html, element, escape, join, shorten
from ponder.evaluation.metrics import Estimate


def chart(*lines: Line, **options: float) -> str:
    drawn = line_chart("title", lines, **options)  # type: ignore[arg-type]
    assert drawn is not None
    return drawn


def path_of(page: str) -> str:
    found = re.search(r'<path d="([^"]*)"', page)
    assert found is not None
    return found.group(1)


def test_a_line_goes_where_its_values_are() -> None:
    """Steps 0 to 10 over 0 to 100 across, values 0 to 1 over 100 to 0 down."""
    assert path_of(chart(Line("", [(0, 0.0), (5, 0.25), (10, 1.0)]), top=1.0)) == "M0 100h0L50 75L100 0"


def test_a_gap_interrupts_the_line() -> None:
    assert path_of(chart(Line("", [(0, 0.0), (5, None), (10, 1.0)]), top=1.0)) == "M0 100h0M100 0h0"


def test_negative_values_are_inside_the_frame() -> None:
    page = chart(Line("", [(0, -1.0), (1, 1.0)]))
    numbers = [float(x) for x in re.findall(r"-?[\d.]+", path_of(page))]
    assert all(0 <= x <= 100 for x in numbers)


def test_the_band_runs_around_low_and_high() -> None:
    page = chart(Line("", [(0, 0.5), (10, 0.5001)], band=[(0, 0.25, 0.75), (10, 0.5, 1.0)]), top=1.0)
    assert path_of(page) == "M0 25L100 0L100 50L0 75Z"


def test_a_tip_tells_value_and_interval() -> None:
    page = chart(Line("pass@1", [(3, 0.5), (4, 0.6)], band=[(3, 0.4, 0.6)]))
    assert "<b>step 3</b>" in page
    assert "pass@1 0.5 (0.4 to 0.6)" in page
    assert "pass@1 0.6</span>" in page


def test_a_constant_is_told_in_words() -> None:
    page = chart(Line("", [(1, 0.0), (2, None), (3, 0.0)]))
    assert "<b>0</b> at every step" in page
    assert "<svg" not in page


def test_nothing_finite_is_no_chart() -> None:
    assert line_chart("title", [Line("", [(1, None)])]) is None
    assert line_chart("title", []) is None


def test_one_step_is_a_chart() -> None:
    assert path_of(chart(Line("", [(7, 2.0)]))).startswith("M0 ")


def test_long_runs_stay_small() -> None:
    page = chart(Line("x", [(step, float(step % 7)) for step in range(20_000)], noisy=True))
    assert page.count("L") < 3 * MAX_POINTS
    assert page.count('class="tip"') + page.count('class="tip right"') == MAX_TIPS
    assert len(page) < 100_000


def test_running_mean_by_hand() -> None:
    assert running_mean([(1, 2.0), (2, 4.0), (3, None), (4, 9.0)], 2) == [(1, 2.0), (2, 3.0), (3, None), (4, 9.0)]


@given(st.floats(-1e6, 1e6), st.floats(1e-9, 1e6))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert 1 <= len(found) <= 7 or high - low < 1e-6 * abs(low)
    slack = 1e-6 * max(abs(low), abs(high), width)
    assert all(low - slack <= tick <= high + slack for tick in found)


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert ticks(0, 120) == [0, 50, 100]
    assert ticks(-0.3, 0.3) == [-0.2, 0, 0.2]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1234.5, "1,234"),
        (122, "122"),
        (57.83, "57.8"),
        (0.8081, "0.808"),
        (2e-6, "2e-6"),
        (-3.14e-8, "-3.1e-8"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0%"), (0.716, "72%"), (0.059, "5.9%"), (1, "100%")])
def test_shares_for_people(value: float, text: str) -> None:
    assert percent(value) == text


def test_interval_bars_lie_where_the_interval_lies() -> None:
    page = interval_bars([("base", Estimate(0.25, 0.2, 0.4))])
    assert 'style="left:20%;width:20%"' in page
    assert 'style="left:25%"' in page


def test_a_stacked_bar_adds_up() -> None:
    page = stacked_bar([("a", 1.0), ("b", 3.0)], number)
    assert [float(w) for w in re.findall(r"width:([\d.]+)%", page)] == [25, 75]


# --- escaping ------------------------------------------------------------------------------------------------------


@given(st.text())
def test_text_never_becomes_markup(text: str) -> None:
    page = element("p", text, title=text)
    assert page.count("<") == 2
    assert page.count('"') == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    page.encode("utf-8")


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_visible_text_comes_back(text: str) -> None:
    assert html.unescape(escape(text)) == text


def test_markup_is_only_what_was_made_as_markup() -> None:
    assert join("<b>", Html("<b>"), None, 3) == "&lt;b&gt;<b>3"
    assert element("p", element("br"), "&", class_="x", aria_label=None) == '<p class="x"><br>&amp;</p>'


def test_shorten() -> None:
    assert shorten("abc", 3) == "abc"
    assert shorten("a" * 1005, 3) == "aaa [... 1,002 more characters]"
