"""The second check: what it reads, when formulas are equal to it, and what it refuses."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ponder.verifiers.numeric import ReadError, TooLargeError, equal, fingerprint, longest_number, read


def same(first: str, second: str) -> bool:
    return equal(read(first), read(second), longest_number(first, second))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("\\sqrt{12}", "2\\sqrt{3}", True),
        ("\\sqrt[3]{-8}", "-2", True),
        ("\\frac43", "\\frac{4}{3}", True),
        ("2^10", "1024", True),
        ("x^{-1}", "1/x", True),
        ("-x^2", "(-x)^2", False),
        ("2x^2", "(2x)^2", False),
        ("a-b-c", "a-(b-c)", False),
        ("a/b/c", "a/(bc)", True),
        ("\\sin 2x", "2\\sin x\\cos x", True),
        ("\\sin^2 x+\\cos^2 x", "1", True),
        ("\\sin x^2", "\\sin^2 x", False),
        ("\\log_2 8", "3", True),
        ("\\log x", "\\ln x", False),
        ("\\log \\frac{a}{b}", "-\\log \\frac{b}{a}", True),
        ("e^{i\\pi}", "-1", True),
        ("(1+2i)(1-2i)", "5", True),
        ("5!", "120", True),
        ("2^{2008}-2", "2^{2008}-1", False),
        ("2^{4950}", "2^{4950}+1", False),
        ("2^{4950}", "2\\cdot2^{4949}", True),
        ("\\frac{100!}{2^{50}}", "\\frac{100!}{2^{50}}+1", False),
        ("\\pi\\cdot2^{2008}", "\\pi\\cdot2^{2008}+10^{-9}", False),
        ("10^{900}x-y=0", "10^{900}x-y+1=0", False),
        ("\\binom{5}{2}", "10", True),
        ("\\binom{n}{2}", "\\frac{n(n-1)}{2}", True),
        ("\\frac{d!}{(d-k)!}", "k!\\binom{d}{k}", True),
        ("\\lfloor n/2\\rfloor+\\lceil n/2\\rceil", "n", True),
        ("\\lfloor n/2\\rfloor", "n/2", False),
        ("|x|", "\\sqrt{x^2}", True),
        ("x", "\\sqrt{x^2}", False),
        ("60^\\circ", "\\pi/3", True),
        ("x_1", "x_{1}", True),
        ("x_1", "x_2", False),
        ("x'", "x", False),
        ("y^{\\prime}", "y'", True),
        ("\\dot{x}", "x", False),
        ("M", "m", False),
        ("2.2\\cdot10^{-34}\\pi", "1.1\\cdot10^{-34}\\pi", False),
        ("0." + "3" * 300, "1/3", False),
        ("(n-2)2^n", "n\\cdot2^n-2^{n+1}", True),
        ("2x-y+3=0", "y=2x+3", True),
        ("2x-y+3=0", "4x-2y+6=0", True),
        ("2x-y+3=0", "4x-2y+5=0", False),
        ("x<2", "2>x", True),
        ("x<2", "-x<-2", False),
        ("-x<-2", "x>2", True),
        ("x\\le2", "x<2", False),
        ("1<x<2", "2>x>1", True),
        ("1<x<2", "1<x<3", False),
    ],
)
def test_by_hand(first, second, expected):
    assert same(first, second) is expected
    assert same(second, first) is expected


@pytest.mark.parametrize(
    "text",
    [
        "", "+", "1+", "(", ")", "(1", "1)", "1 2", "x 2", "--1", "2^3^4", "x!!", "1/2x", "2\\frac{1}{2}",
        "1011_2", "3:5", "1,2", "\\text{no}", "\\mho", "\\infty", "５", "x\x00", "\\begin{a}1\\end{a}",
        "(" * 50 + "1" + ")" * 50, "1+" * 600 + "1", "\\sqrt" * 100 + "2", "x^" * 100 + "2", "5'", "f_", "\\sin_2 x",
        "\\sin^{-1} x", "x**2",
    ],
)  # fmt: skip
def test_what_is_not_clear_is_not_read(text):
    with pytest.raises(ReadError):
        read(text)


@pytest.mark.parametrize(
    "text", ["9^{9^{9}}", "10^{10^{10}}", "2^{-10^{10}}", "((9!)!)!", "100000!", "e^{10^9}", "\\binom{10^9}{5}"]
)
@pytest.mark.timeout(60)
def test_what_is_too_large_is_refused_at_once(text):
    with pytest.raises(TooLargeError):
        same(text, "1")


@pytest.mark.parametrize("text", ["1/0", "1/(x-x)", "\\ln 0", "0^{-1}", "(-1)!", "(1/2)!", "\\binom{-1}{2}"])
def test_what_has_no_value_equals_nothing(text):
    with pytest.raises(ReadError):
        same(text, text)


@pytest.mark.parametrize("text", ["1=2", "x=x"])
def test_an_equation_that_says_nothing_equals_none(text):
    with pytest.raises(ReadError):
        same(text, text)


leaves = st.sampled_from(["x", "y", "n", "2", "3", "0.5", "\\pi", "\\sqrt{2}"])
trees = st.recursive(leaves, lambda inner: st.tuples(st.sampled_from("+-*/"), inner, inner), max_leaves=7)


def latex(node, mirrored=False):
    """The tree as LaTeX; mirrored, sums and products are written the other way round and divisions as powers."""
    if isinstance(node, str):
        return node
    sign, left, right = node[0], latex(node[1], mirrored), latex(node[2], mirrored)
    if not mirrored:
        return f"\\frac{{{left}}}{{{right}}}" if sign == "/" else f"({left}{sign}{right})"
    return {
        "+": f"({right}+{left})",
        "-": f"(-({right})+{left})",
        "*": f"({right})({left})" if not right[0].isdigit() else f"({right}\\times {left})",
        "/": f"({left})({right})^{{-1}}",
    }[sign]


@given(trees)
@settings(max_examples=100)
def test_a_formula_equals_itself_written_otherwise_and_not_itself_and_one(tree):
    with suppress(ReadError):  # it may divide by zero
        assert same(latex(tree), latex(tree, mirrored=True))
        assert not same(latex(tree), latex(tree) + "+1")
        assert fingerprint(latex(tree)) == fingerprint(latex(tree, mirrored=True))


pieces = st.sampled_from(
    ["x", "2", "10", "^", "_", "{", "}", "(", ")", "|", "!", "+", "-", "/", "=", "<", "\\frac", "\\sqrt", "\\sin",
     "\\log", "\\binom", "\\pi", "\\text", "e", "i", ".", "'", "\\lfloor", "\\rfloor", " ", "\\cdot"]
)  # fmt: skip


@given(st.lists(pieces, max_size=25).map("".join))
@settings(max_examples=400)
def test_nothing_but_a_read_error_comes_of_any_text(text):
    with suppress(ReadError):
        assert same(text, text)
