"""Arithmetic expressions of untrusted origin: read by a parser of our own, valued exactly, compared by structure.

Nothing is ever handed to Python to evaluate. The grammar is small on purpose: whole numbers in ASCII digits, the four
operations and parentheses. No signs, powers, decimals or implicit products, so a text either is an expression of the
given numbers or is rejected, and the cost is bounded by the length limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from ponder.verifiers.extraction import AnswerError

Node = int | tuple[str, "Node", "Node"]
"""An expression: a whole number, or (operator, left, right)."""

MAX_CHARACTERS = 200
"""Longest text that is read at all."""

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}

# How people and models write the same signs.
SPELLINGS = {
    "×": "*", "·": "*", "⋅": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/",
    "−": "-", "–": "-", "（": "(", "）": ")", "\\left": "", "\\right": "",
}  # fmt: skip

# Up to four digits, none of them a leading zero; then `03` reads as two numbers side by side and is rejected.
TOKEN = re.compile(r"\s*(0|[1-9][0-9]{0,3}|[-+*/()])")


class ExpressionError(AnswerError):
    """The text is no expression, or has no value; the message is one short clause."""


def normalise(text: str) -> str:
    """The text with one spelling for each sign. Raises `ExpressionError` when it is too long to be an answer."""
    if len(text) > MAX_CHARACTERS:
        raise ExpressionError("the answer is too long to be an expression")
    for spelling, sign in SPELLINGS.items():
        text = text.replace(spelling, sign)
    return text.strip().strip("$").strip()


def parse(text: str) -> Node:
    """Read an expression by Dijkstra's shunting yard. Raises `ExpressionError`."""
    operands: list[Node] = []
    pending: list[str] = []  # operators and opening parentheses
    operand_next = True
    for token in _tokens(normalise(text)):
        if token.isdigit() or token == "(":
            if not operand_next:
                raise ExpressionError(f"an operator is missing before {token!r}")
            if token == "(":
                pending.append(token)
            else:
                operands.append(int(token))
                operand_next = False
            continue
        if operand_next:
            raise ExpressionError(f"a number is missing before {token!r}")
        if token == ")":
            while pending and pending[-1] != "(":
                _apply(operands, pending.pop())
            if not pending:
                raise ExpressionError("a parenthesis closes that was never opened")
            pending.pop()
        else:
            while pending and pending[-1] != "(" and PRECEDENCE[pending[-1]] >= PRECEDENCE[token]:
                _apply(operands, pending.pop())
            pending.append(token)
            operand_next = True
    if operand_next:
        raise ExpressionError("a number is missing at the end")
    while pending:
        operator = pending.pop()
        if operator == "(":
            raise ExpressionError("a parenthesis is never closed")
        _apply(operands, operator)
    return operands[0]


def parse_equation(text: str) -> Node:
    """Read `expression` or `expression = value`, where the value must be right. Raises `ExpressionError`."""
    left, equals, right = normalise(text).partition("=")
    node = parse(left)
    if equals:
        claimed = parse(right)
        if not isinstance(claimed, int) or value(node) != claimed:
            raise ExpressionError("what stands after = is not the value of the expression")
    return node


def value(node: Node) -> int | Fraction:
    """The exact value, a fraction only where something was divided. Raises `ExpressionError` on a division by zero."""
    if isinstance(node, int):
        return node
    operator, left, right = node
    a, b = value(left), value(right)
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    if b == 0:
        raise ExpressionError("it divides by zero")
    return Fraction(a) / b


def numbers(node: Node) -> list[int]:
    """The numbers of the expression, from left to right."""
    return [node] if isinstance(node, int) else numbers(node[1]) + numbers(node[2])


def operators(node: Node) -> list[str]:
    """The operators of the expression, from left to right."""
    return [] if isinstance(node, int) else [*operators(node[1]), node[0], *operators(node[2])]


def render(node: Node) -> str:
    """The expression with no more parentheses than it needs to keep its structure."""
    if isinstance(node, int):
        return str(node)
    operator, left, right = node
    return _operand(left, PRECEDENCE[operator]) + operator + _operand(right, PRECEDENCE[operator] + 1)


def canonical(node: Node) -> str:
    """One form for all expressions that differ only by the commutative and associative laws.

    `8-(3-5)`, `5+8-3` and `8-3+5` are one; so are `2*(3/4)` and `3*2/4`. Values are not compared.
    """
    if isinstance(node, int):
        return str(node)
    if PRECEDENCE[node[0]] == 1:
        return _joined(_parts(node, "+", "-", False), "+", "-")
    return _joined(_parts(node, "*", "/", False), "*", "/")


def _tokens(text: str) -> Iterator[str]:
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"{text[position:].strip()[:12]!r} is no part of an expression")
        yield match.group(1)
        position = match.end()


def _apply(operands: list[Node], operator: str) -> None:
    right, left = operands.pop(), operands.pop()
    operands.append((operator, left, right))


def _operand(node: Node, least_precedence: int) -> str:
    text = render(node)
    needs_parentheses = not isinstance(node, int) and PRECEDENCE[node[0]] < least_precedence
    return f"({text})" if needs_parentheses else text


def _parts(node: Node, plain: str, inverse: str, inverted: bool) -> Iterator[tuple[bool, str]]:
    """Terms of a sum (or factors of a product), each with whether it is subtracted (or divided by)."""
    if isinstance(node, int) or node[0] not in (plain, inverse):
        text = canonical(node)
        yield inverted, text if isinstance(node, int) else f"({text})"
        return
    operator, left, right = node
    yield from _parts(left, plain, inverse, inverted)
    yield from _parts(right, plain, inverse, inverted != (operator == inverse))


def _joined(parts: Iterator[tuple[bool, str]], plain: str, inverse: str) -> str:
    # the leftmost part of any expression is never inverted, so a plain part comes first
    signed = [(inverse if inverted else plain) + text for inverted, text in sorted(parts)]
    return "".join(signed).removeprefix(plain)
