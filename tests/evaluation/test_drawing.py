"""The drawing of a graph: layers by hand, boxes that never overlap, edges that end at their boxes."""

import re

from hypothesis import given
from hypothesis import strategies as st

from ponder.evaluation.drawing import Box, Edge, draw_graph, layers_of, shorten_line


def boxes_of(page: str) -> list[tuple[float, float, float, float]]:
    """(left, top, right, bottom) of every box, in the order in which they are drawn."""
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page)
    return [(float(x), float(y), float(x) + float(w), float(y) + float(h)) for x, y, w, h in found]


def test_layers_by_hand() -> None:
    """a -> b -> d and a -> d; c, which nothing leads to, stands right above what it leads to."""
    boxes = [Box(name) for name in "abcde"]
    edges = [Edge("a", "b"), Edge("b", "d"), Edge("a", "d"), Edge("c", "d")]
    assert layers_of(boxes, edges) == {"a": 0, "b": 1, "c": 1, "d": 2, "e": 0}


def test_an_edge_runs_from_the_bottom_of_one_box_to_the_top_of_the_other() -> None:
    page = draw_graph([Box("a", ["x"]), Box("b")], [Edge("a", "b", "data")], "two stages")
    (left, _, right, bottom), (to_left, to_top, to_right, _) = boxes_of(page)
    start = re.search(r'<path d="M([\d.]+) ([\d.]+)C', page)
    end = re.search(r'<path d="M([\d.]+) ([\d.]+)l', page)
    assert start is not None
    assert end is not None
    assert [float(x) for x in start.groups()] == [(left + right) / 2, bottom]
    assert [float(x) for x in end.groups()] == [(to_left + to_right) / 2, to_top]
    assert 'class="edge data"' in page
    assert bottom < to_top


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=20, unique=True))
def test_boxes_never_overlap_and_lie_inside(pairs: list[tuple[int, int]]) -> None:
    boxes = [Box(f"stage{i}", ["fine_tune from mini"] * (i % 3)) for i in range(9)]
    edges = [Edge(f"stage{a}", f"stage{b}") for a, b in pairs if a < b]
    page = draw_graph(boxes, edges, "stages")
    places = boxes_of(page)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', page)
    assert size is not None
    width, height = map(float, size.groups())
    assert len(places) == 9
    for index, (left, top, right, bottom) in enumerate(places):
        assert left >= 0
        assert top >= 0
        assert right <= width + 0.2
        assert bottom <= height + 0.2
        for other_left, other_top, other_right, other_bottom in places[:index]:
            apart = right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top
            assert apart


def test_text_stays_text_and_is_cut() -> None:
    page = draw_graph([Box("<b>", ["<script>" * 20])], [], '"')
    assert "<script>" not in page
    assert "&lt;b&gt;" in page
    assert len(shorten_line("x" * 100)) == 34
