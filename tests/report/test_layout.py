"""Boxes do not overlap, edges go down, and what reaches far goes straight."""

import random
from itertools import pairwise

import pytest

from fuseq.report.layout import layered

PITCH = 60.0


def drawn(edges: list[tuple[str, str]], count: int, width: float = 50.0):
    names = [f"n{k}" for k in range(count)]
    return layered(dict.fromkeys(names, width), edges, PITCH)


def random_edges(count: int, seed: int) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    return [
        (f"n{draw.randrange(max(0, b - 12), b)}", f"n{b}")
        for b in range(1, count)
        for _ in range(draw.choice((1, 1, 2, 3)))
    ]


def test_a_chain_is_a_line():
    layout = drawn([("n0", "n1"), ("n1", "n2")], 3)
    assert {x for x, _ in layout.centers.values()} == {25.0}
    assert [y for _, y in layout.centers.values()] == [30.0, 90.0, 150.0]
    assert (layout.width, layout.height) == (50.0, 180.0)


def test_a_skip_goes_around_the_nodes_between():
    chain = [(f"n{k}", f"n{k + 1}") for k in range(5)]
    layout = drawn([*chain, ("n0", "n5")], 6)
    bends = layout.routes["n0", "n5"][1:-1]
    assert len(bends) == 4
    assert max(x for x, _ in bends) - min(x for x, _ in bends) < 1.0
    for (x, y), name in zip(bends, ("n1", "n2", "n3", "n4"), strict=True):
        center = layout.centers[name]
        assert y == center[1]
        assert abs(x - center[0]) > 25.0


def test_edges_of_one_node_share_their_bends():
    chain = [(f"n{k}", f"n{k + 1}") for k in range(5)]
    layout = drawn([*chain, ("n0", "n3"), ("n0", "n5")], 6)
    short, long = layout.routes["n0", "n3"], layout.routes["n0", "n5"]
    assert short[:3] == long[:3]


def test_two_crossed_pairs_are_uncrossed():
    layout = drawn([("n0", "n3"), ("n1", "n2")], 4)
    x = {name: place[0] for name, place in layout.centers.items()}
    assert (x["n0"] < x["n1"]) == (x["n3"] < x["n2"])


@pytest.mark.parametrize("seed", range(5))
def test_no_two_boxes_overlap_and_every_edge_goes_down(seed):
    count, width = 120, 50.0
    edges = random_edges(count, seed)
    layout = drawn(edges, count, width)
    rows: dict[float, list[float]] = {}
    for x, y in layout.centers.values():
        assert width / 2 - 1e-6 <= x <= layout.width - width / 2 + 1e-6
        rows.setdefault(y, []).append(x)
    for row in map(sorted, rows.values()):
        assert all(b - a >= width for a, b in pairwise(row))
    for route in layout.routes.values():
        assert all(a[1] < b[1] for a, b in pairwise(route))
    assert set(layout.routes) == set(edges)


def test_the_same_graph_is_drawn_the_same():
    edges = random_edges(60, 7)
    assert drawn(edges, 60) == drawn(edges, 60)


def test_an_empty_graph_has_no_size():
    assert (drawn([], 0).width, drawn([], 0).height) == (0.0, 0.0)
