"""A graph of stages as inline SVG: boxes in layers from top to bottom, with curves between them.

The usual way to draw a directed graph (Sugiyama et al. 1981): layers by the longest path, stand-ins where an edge
passes a layer, an order within layers that keeps neighbours together, then positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from ponder.evaluation.html import Html, element, join

MAX_CHARS = 34
"""Longest text in a box; longer ones are cut."""

_CHAR, _LINE, _PAD = 6.3, 17.0, 10.0  # pixels: width of a character, height of a line, around the text
_BOLD = 1.35  # how much wider a character of a name is
_COLUMN_GAP, _ROW_GAP = 22.0, 40.0
_PASSAGE = 14.0  # width kept free for an edge that passes a layer
_ROUNDS = 8


@dataclass(frozen=True)
class Box:
    """A node: its name, and what else stands in the box; `kind` is a class of the style sheet."""

    name: str
    lines: Sequence[str] = ()
    kind: str = ""


@dataclass(frozen=True)
class Edge:
    """From one box to another, by their names; `kind` is a class of the style sheet."""

    source: str
    target: str
    kind: str = ""


@dataclass
class _Place:
    """Where something lies: a box, or the passage of an edge through a layer (`box` is None)."""

    box: Box | None
    layer: int
    width: float
    x: float = 0.0
    """Of its middle."""
    above: list[_Place] = field(default_factory=list)
    below: list[_Place] = field(default_factory=list)


def draw_graph(boxes: Sequence[Box], edges: Sequence[Edge], label: str) -> Html:
    """The drawing, at its natural size in pixels. `edges` run between known boxes, without a circle."""
    layers, routes = _place(boxes, edges)
    for _ in range(_ROUNDS):
        _order(layers)
    for _ in range(_ROUNDS):
        _spread(layers)
    left = min(place.x - place.width / 2 for layer in layers for place in layer)
    for place in (place for layer in layers for place in layer):
        place.x += 1 - left
    width = 1 + max(place.x + place.width / 2 for layer in layers for place in layer)
    heights = [max((_height(place) for place in layer), default=0.0) for layer in layers]
    tops = [1 + sum(heights[:i]) + i * _ROW_GAP for i in range(len(layers))]
    height = tops[-1] + heights[-1] + 1
    curves = [_curve(edge.kind, route, tops, heights) for edge, route in zip(edges, routes, strict=True)]
    drawn = [_draw_box(p, p.box, tops[p.layer]) for layer in layers for p in layer if p.box is not None]
    return element(
        "svg",
        *curves,
        *drawn,
        viewBox=f"0 0 {_n(width)} {_n(height)}",
        width=_n(width),
        height=_n(height),
        role="img",
        aria_label=label,
        class_="graph",
    )


def layers_of(boxes: Sequence[Box], edges: Sequence[Edge]) -> dict[str, int]:
    """The layer of each box: below all that it comes from, and no higher than right above the first it leads to."""
    layer = {box.name: 0 for box in boxes}
    for _ in boxes:  # the longest path has at most as many edges as there are boxes
        for edge in edges:
            layer[edge.target] = max(layer[edge.target], layer[edge.source] + 1)
    for _ in boxes:
        for name in layer:
            targets = [layer[edge.target] for edge in edges if edge.source == name]
            layer[name] = max(layer[name], min(targets, default=layer[name] + 1) - 1)
    return layer


def _place(boxes: Sequence[Box], edges: Sequence[Edge]) -> tuple[list[list[_Place]], list[list[_Place]]]:
    """(places by layer, the places that each edge runs through from its source to its target)."""
    layer = layers_of(boxes, edges)
    layers: list[list[_Place]] = [[] for _ in range(1 + max(layer.values(), default=0))]
    found: dict[str, _Place] = {}
    for box in boxes:
        found[box.name] = _Place(box, layer[box.name], _width(box))
        layers[layer[box.name]].append(found[box.name])
    routes = []
    for edge in edges:
        passages = [_Place(None, i, _PASSAGE) for i in range(layer[edge.source] + 1, layer[edge.target])]
        route = [found[edge.source], *passages, found[edge.target]]
        for passage in passages:
            layers[passage.layer].append(passage)
        for upper, lower in itertools.pairwise(route):
            upper.below.append(lower)
            lower.above.append(upper)
        routes.append(route)
    return layers, routes


def _order(layers: Sequence[list[_Place]]) -> None:
    """Sort each layer by the mean position of its neighbours, downwards and then upwards."""
    for rows, side in ((layers, "above"), (layers[::-1], "below")):
        position = {id(place): index for layer in layers for index, place in enumerate(layer)}
        for layer in rows:
            layer.sort(key=lambda place: _mean_of(getattr(place, side), position, position[id(place)]))
            position |= {id(place): index for index, place in enumerate(layer)}


def _mean_of(neighbours: Sequence[_Place], position: Mapping[int, int], own: float) -> float:
    return fmean(position[id(place)] for place in neighbours) if neighbours else own


def _spread(layers: Sequence[Sequence[_Place]]) -> None:
    """Move everything towards the middle of its neighbours, as far as those beside it allow."""
    for layer in layers:
        wanted = [_pull(place) for place in layer]
        right = float("-inf")
        for place, x in zip(layer, wanted, strict=True):
            place.x = max(x, right + place.width / 2)
            right = place.x + place.width / 2 + _COLUMN_GAP
        shift = fmean(x - place.x for place, x in zip(layer, wanted, strict=True)) if layer else 0.0
        for place in layer:
            place.x += shift


def _pull(place: _Place) -> float:
    neighbours = [*place.above, *place.below]
    return fmean(neighbour.x for neighbour in neighbours) if neighbours else place.x


def _curve(kind: str, route: Sequence[_Place], tops: Sequence[float], heights: Sequence[float]) -> Html:
    first, last = route[0], route[-1]
    x, y = first.x, tops[first.layer] + _height(first)
    path = f"M{_n(x)} {_n(y)}"
    for place in route[1:]:
        top = tops[place.layer] - (5 if place is last else 0)
        middle = (y + top) / 2
        path += f"C{_n(x)} {_n(middle)} {_n(place.x)} {_n(middle)} {_n(place.x)} {_n(top)}"
        x, y = place.x, tops[place.layer] + heights[place.layer]
        if place is not last:
            path += f"V{_n(y)}"
    tip = tops[last.layer]
    head = f"M{_n(last.x)} {_n(tip)}l-4 -7h8Z"
    return join(
        element("path", d=path, class_=f"edge {kind}"),
        element("path", d=head, class_=f"head {kind}"),
    )


def _draw_box(place: _Place, box: Box, top: float) -> Html:
    left = place.x - place.width / 2
    texts = [
        element(
            "text",
            shorten_line(text),
            x=_n(left + _PAD),
            y=_n(top + _PAD + _LINE * (index + 0.72)),
            class_="name" if index == 0 else None,
        )
        for index, text in enumerate((box.name, *box.lines))
    ]
    frame = element("rect", x=_n(left), y=_n(top), width=_n(place.width), height=_n(_height(place)), rx=8)
    return element("g", frame, *texts, class_=f"box {box.kind}")


def shorten_line(text: str) -> str:
    """At most `MAX_CHARS` characters, with an ellipsis where some were cut."""
    return text if len(text) <= MAX_CHARS else f"{text[: MAX_CHARS - 1]}…"


def _width(box: Box) -> float:
    longest = max(len(shorten_line(box.name)) * _BOLD, *(len(shorten_line(line)) for line in box.lines), 8)
    return longest * _CHAR + 2 * _PAD


def _height(place: _Place) -> float:
    return 0.0 if place.box is None else (1 + len(place.box.lines)) * _LINE + 2 * _PAD


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")
