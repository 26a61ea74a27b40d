"""The outer shape of answers: brackets, lists, units, words and numbers."""

from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.verifiers.notation import Group, Leaf, ShapeError, plain, read_shape, squeezed, unit_name


@pytest.mark.parametrize(
    ("text", "number", "unit"),
    [
        ("\\$1,234.50", Fraction(2469, 2), "$"),
        ("$5", 5, "$"),
        ("$5$", 5, ""),
        ("12\\%", 12, "%"),
        ("90^{\\circ}", 90, "°"),
        ("90°", 90, "°"),
        ("15\\mbox{ cm}^2", 15, "cm^2"),
        ("15 square cm", 15, "cm^2"),
        ("6\\frac{1}{6}\\text{ feet}", Fraction(37, 6), "ft"),
        ("-1./3", Fraction(-1, 3), ""),
        ("\\frac{1}{29,\\!322}", Fraction(1, 29322), ""),
        ("3\\times10^{-2}", Fraction(3, 100), ""),
        ("-10^{4}", -10000, ""),
        ("x = 4", 4, ""),
        ("m_{\\max} = 4", 4, ""),
        ("4=x", 4, ""),
        ("\\theta=4", 4, ""),
        ("12\\sqrt{13}\\text{ feet}", None, "ft"),
        ("2x", None, ""),
        ("-+4", None, ""),
        ("\\sqrt=4", None, ""),
        ("2=1+1", None, ""),
    ],
)
def test_numbers_and_units(text, number, unit):
    shape = read_shape(text)
    assert isinstance(shape, Leaf)
    assert (shape.number, shape.unit) == (number, unit)


@pytest.mark.parametrize(
    ("text", "kind", "items"),
    [
        ("(1,2)", "()", ["1", "2"]),
        ("\\left[1, 2\\right)", "[)", ["1", "2"]),
        ("\\{1;2\\}", "{}", ["1", "2"]),
        ("\\{5\\}", "{}", ["5"]),
        ("\\varnothing", "{}", []),
        ("\\langle 1,2\\rangle", "⟨⟩", ["1", "2"]),
        ("3, 5, and 7", "list", ["3", "5", "7"]),
        ("3 \\text{ or } 5", "list", ["3", "5"]),
        ("102, 103", "list", ["102", "103"]),
        ("1\\pm x", "list", ["1+x", "1-x"]),
        ("\\{1\\pm x,2\\}", "{}", ["1+x", "1-x", "2"]),
        ("\\text{A, B}", "words", ["A", "B"]),
    ],
)
def test_groups(text, kind, items):
    shape = read_shape(text)
    assert isinstance(shape, Group)
    assert shape.kind == kind
    assert [(item.words or item.text).upper() if kind == "words" else item.text for item in shape.items] == items


def test_groups_within_groups():
    union = read_shape("(-\\infty,2)\\cup[3,4]")
    assert union.kind == "union"
    assert [part.kind for part in union.items] == ["()", "[]"]
    matrix = read_shape("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}")
    assert [[cell.number for cell in row.items] for row in matrix.items] == [[1, 2], [3, 4]]
    pairs = read_shape("(1,2), (3,4)")
    assert pairs.kind == "list"
    assert [pair.kind for pair in pairs.items] == ["()", "()"]


@pytest.mark.parametrize("text", ["(1,2)+(3,4)", "1,234", "n-1", "p-q", "f(1,2)", "x", "(1)", "\\sqrt{1,000}"])
def test_what_is_one_value(text):
    shape = read_shape(text)
    assert isinstance(shape, Leaf)
    assert shape.words is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cm", "centimeters"),
        ("sq. inches", "in^2"),
        ("\\text{min}", "minute"),
        ("cubic feet", "ft^{3}"),
        ("$cm^2$", "cm^2"),
    ],
)
def test_one_unit_by_two_names(first, second):
    assert unit_name(first) == unit_name(second)


def test_units_that_are_not_one():
    names = ["m", "min", "cm", "cm^2", "mm", "km", "km/h", "%", "°", "$", "€", "s", "h", "in", "apple"]
    assert len({unit_name(name) for name in names}) == len(names)


def test_spaces_join_neither_digits_nor_letters():
    assert squeezed(plain("1 2")) != "12"
    assert squeezed(plain("1, 234")) != squeezed(plain("1,234"))
    assert squeezed(plain("\\pi r")) == "\\pi r"
    assert squeezed(plain("2 \\pi  + x")) == "2\\pi+x"


@pytest.mark.parametrize("text", ["((((((1,2),3),4),5),6),7)", "1," * 100 + "1"])
def test_too_much(text):
    with pytest.raises(ShapeError):
        read_shape(text)


@given(st.text(alphabet="\\{}()[],;x2 .$%=andor_^cuptexbg&", max_size=80))
@settings(max_examples=300)
def test_any_text_is_something(text):
    with suppress(ShapeError):
        assert isinstance(read_shape(text), Leaf | Group)


@pytest.mark.parametrize(
    "piece", ["(", "{", "\\{", ",", "1,", "\\text{", "\\frac", "a ", "=", "1", "\\begin{pmatrix}", " "]
)
@pytest.mark.timeout(60)
def test_the_time_is_bounded(piece):
    with suppress(ShapeError):
        read_shape(piece * (20_000 // len(piece)))
