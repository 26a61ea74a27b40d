"""Expressions: parsed by the usual rules, valued exactly, one form under the commutative and associative laws."""

import re
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ponder.verifiers.expressions import (
    ExpressionError,
    canonical,
    numbers,
    operators,
    parse,
    parse_equation,
    render,
    value,
)

trees = st.recursive(st.integers(0, 99), lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner), max_leaves=8)


def exact(text: str) -> Fraction:
    """The value by Python's own parser: every number becomes a fraction."""
    return eval(re.sub(r"(\d+)", r"Fraction(\1)", text), {"Fraction": Fraction})


@given(trees)
def test_rendering_and_parsing_give_the_same_tree(tree):
    assert parse(render(tree)) == tree


@given(trees)
def test_values_are_those_of_python(tree):
    try:
        expected = exact(render(tree))
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="divides by zero"):
            value(tree)
    else:
        assert value(tree) == expected


@given(trees, st.randoms())
def test_the_canonical_form_ignores_order_and_keeps_the_value(tree, rng):
    def shuffled(node):
        if isinstance(node, int):
            return node
        operator, left, right = node[0], shuffled(node[1]), shuffled(node[2])
        if operator in "+*" and rng.random() < 0.5:
            left, right = right, left
        return operator, left, right

    other = shuffled(tree)
    assert canonical(other) == canonical(tree)
    assert sorted(numbers(other)) == sorted(numbers(tree))
    assert sorted(operators(other)) == sorted(operators(tree))
    try:
        expected = value(tree)
    except ExpressionError:
        return
    assert exact(canonical(tree)) == expected


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("8-(3-5)", "5+8-3", True),
        ("2*(3/4)", "3*2/4", True),
        ("8/(2/4)", "4*8/2", True),
        ("1+(2+3)*4", "4*(3+2)+1", True),
        ("8-3-5", "8-(3-5)", False),
        ("8/2/4", "8/(2/4)", False),
        ("2+3", "2*3", False),
        ("4+4", "8", False),
    ],
)
def test_canonical_forms(first, second, same):
    assert (canonical(parse(first)) == canonical(parse(second))) is same


@pytest.mark.parametrize(
    ("text", "result"), [("7+8*3-5", 26), ("8-3-2", 3), ("8/4/2", 1), ("(1+2)*3", 9), ("1/3", Fraction(1, 3))]
)
def test_values_by_hand(text, result):
    assert value(parse(text)) == result


@pytest.mark.parametrize(
    "text", ["(3+5)*2", "(3 + 5) × 2", "(3+5)\\cdot2", "$\\left(3+5\\right)\\times 2$", "（3+5）*2"]
)
def test_signs_may_be_written_otherwise(text):
    assert render(parse(text)) == "(3+5)*2"


@pytest.mark.parametrize(
    "text",
    [
        "", "+", "3+", "+3", "-3", "3-+5", "3 5", "3(5)", "(3)(5)", "()", "(3", "3)", ")3(", "03", "12345", "3.5",
        "3e2", "3^2", "3**2", "3//2", "3%2", "3!", "x", "３", "٣", "3=3", "3\x00", "a.b", "lambda:0", "1_0", "0x1",
        "1" * 201, "(" * 100,
    ],
)  # fmt: skip
def test_anything_else_is_rejected(text):
    with pytest.raises(ExpressionError):
        parse(text)


@given(st.text(max_size=300))
def test_no_text_raises_anything_else(text):
    with suppress(ExpressionError):
        parse_equation(text)


def test_an_equation_must_be_true():
    assert parse_equation("3+5 = 8") == ("+", 3, 5)
    for text in ("3+5=9", "3+5=", "=8", "3+5=5+3", "3+5=8=8"):
        with pytest.raises(ExpressionError):
            parse_equation(text)


def test_the_deepest_nesting_that_the_length_limit_allows():
    assert parse("(" * 99 + "7" + ")" * 99) == 7
    assert value(parse("+".join("1" * 100))) == 100
