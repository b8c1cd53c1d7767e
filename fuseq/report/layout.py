"""Where the nodes of a graph stand: layers from top to bottom (Sugiyama, Tagawa and Toda 1981).

1. Each node gets a layer: below all it reads, and as near to its readers as that costs no length.
2. An edge past more than one layer gets a bend in each layer between; edges from one node share
   their bends, so that a skip connection is one line however many read it.
3. Layers are put in order by the mean place of their neighbours, swept down and up; the order with
   the fewest crossings wins.
4. Each layer then takes the places nearest to the mean of its neighbours that keep the order and
   the gaps: least squares under an order, solved by pooling (Barlow and Brunk 1972).
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import networkx as nx

GAP = 14.0
BEND_WIDTH = 4.0
ORDER_SWEEPS, PLACE_SWEEPS = 12, 32
BEND_WEIGHT = 32.0
"""How much more a bend resists being off its line than a node: long edges come out straight."""

Key: TypeAlias = str | tuple[str, int]
"""A node, or the bend of a node's long edges in one layer."""


@dataclass(frozen=True)
class Layout:
    """Places in pixels.

    Attributes:
        centers: of each node.
        routes: points of each edge, from the center of its source to that of its target.
        width: of everything.
        height: of everything.
    """

    centers: Mapping[str, tuple[float, float]]
    routes: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]
    width: float
    height: float


def layered(widths: Mapping[str, float], edges: Sequence[tuple[str, str]], pitch: float) -> Layout:
    """Lay out an acyclic graph.

    Args:
        widths: of each node, in an order in which every edge goes forward.
        edges: from a node to one of its readers.
        pitch: distance between layers.
    """
    edges = list(dict.fromkeys(edges))
    layer = _layers(list(widths), edges)
    bent, segments = _with_bends(layer, edges)
    order = _ordered(bent, segments)
    sizes = {key: widths[key] if isinstance(key, str) else BEND_WIDTH for key in bent}
    x = _placed(order, segments, sizes)
    left = min((x[key] - sizes[key] / 2 for key in sizes), default=0.0)
    right = max((x[key] + sizes[key] / 2 for key in sizes), default=0.0)

    def center(key: Key) -> tuple[float, float]:
        return x[key] - left, (bent[key] + 0.5) * pitch

    routes = {
        (a, b): (center(a), *(center((a, n)) for n in range(layer[a] + 1, layer[b])), center(b))
        for a, b in edges
    }
    height = (max(layer.values(), default=-1) + 1) * pitch
    return Layout({name: center(name) for name in widths}, routes, right - left, height)


def _layers(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from(names)
    graph.add_edges_from(edges)
    layer = {n: k for k, names in enumerate(nx.topological_generations(graph)) for n in names}
    for name in reversed(names):
        readers = [layer[reader] for reader in graph.successors(name)]
        if readers and len(readers) > graph.in_degree(name):
            layer[name] = min(readers) - 1
    return layer


def _with_bends(
    layer: Mapping[str, int], edges: Sequence[tuple[str, str]]
) -> tuple[dict[Key, int], list[tuple[Key, Key]]]:
    """Layers of nodes and bends, and the edges between neighbouring layers."""
    bent: dict[Key, int] = {name: number for name, number in layer.items()}
    segments: dict[tuple[Key, Key], None] = {}
    for a, b in edges:
        bends: list[Key] = [(a, n) for n in range(layer[a] + 1, layer[b])]
        bent |= {(a, n): n for n in range(layer[a] + 1, layer[b])}
        segments |= dict.fromkeys(zip([a, *bends], [*bends, b], strict=True))
    return bent, list(segments)


def _neighbours(
    segments: Sequence[tuple[Key, Key]], keys: Sequence[Key]
) -> tuple[dict[Key, list[Key]], dict[Key, list[Key]]]:
    above: dict[Key, list[Key]] = {key: [] for key in keys}
    below: dict[Key, list[Key]] = {key: [] for key in keys}
    for a, b in segments:
        below[a].append(b)
        above[b].append(a)
    return above, below


def _ordered(bent: Mapping[Key, int], segments: Sequence[tuple[Key, Key]]) -> list[list[Key]]:
    """Order of each layer from left to right."""
    layers: list[list[Key]] = [[] for _ in range(max(bent.values(), default=-1) + 1)]
    for key, number in bent.items():
        layers[number].append(key)
    above, below = _neighbours(segments, list(bent))
    best, fewest = layers, _crossings(layers, below)
    for sweep in range(ORDER_SWEEPS):
        if not fewest:
            break
        down = sweep % 2 == 0
        layers = _swept(layers if down else layers[::-1], above if down else below)
        layers = layers if down else layers[::-1]
        count = _crossings(layers, below)
        if count < fewest:
            best, fewest = layers, count
    return best


def _swept(layers: list[list[Key]], fixed: Mapping[Key, list[Key]]) -> list[list[Key]]:
    """Each layer sorted by the mean place of its neighbours in the one before."""
    swept: list[list[Key]] = []
    place: dict[Key, float] = {}
    for layer in layers:
        wanted = {
            key: sum(place[n] for n in fixed[key]) / len(fixed[key]) if fixed[key] else index
            for index, key in enumerate(layer)
        }
        swept.append(sorted(layer, key=wanted.__getitem__))
        place = {key: index for index, key in enumerate(swept[-1])}
    return swept


def _crossings(layers: Sequence[Sequence[Key]], below: Mapping[Key, list[Key]]) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        place = {key: index for index, key in enumerate(lower)}
        seen: list[int] = []
        for key in upper:
            ends = sorted(place[reader] for reader in below[key])
            count += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return count


def _placed(
    order: Sequence[Sequence[Key]],
    segments: Sequence[tuple[Key, Key]],
    sizes: Mapping[Key, float],
) -> dict[Key, float]:
    """Horizontal center of each node and bend."""
    above, below = _neighbours(segments, list(sizes))
    x: dict[Key, float] = {}
    for layer in order:
        x |= _nearest(layer, [0.0] * len(layer), sizes)
    for sweep in range(PLACE_SWEEPS):
        down = sweep % 2 == 0
        near = above if down else below
        if sweep >= PLACE_SWEEPS - 4:
            near = {key: above[key] + below[key] for key in sizes}
        line = _lines(x)
        for layer in order if down else reversed(order):
            wanted = [
                line[key[0]]
                if isinstance(key, tuple)
                else sum(x[n] for n in near[key]) / len(near[key])
                if near[key]
                else x[key]
                for key in layer
            ]
            x |= _nearest(layer, wanted, sizes)
    return x


def _lines(x: Mapping[Key, float]) -> dict[str, float]:
    """Mean place of the bends of each node: where its long edges go straight down."""
    bends: dict[str, list[float]] = {}
    for key, place in x.items():
        if isinstance(key, tuple):
            bends.setdefault(key[0], []).append(place)
    return {name: sum(places) / len(places) for name, places in bends.items()}


def _nearest(
    layer: Sequence[Key], wanted: Sequence[float], sizes: Mapping[Key, float]
) -> dict[Key, float]:
    """Places nearest to those wanted, in order and apart."""
    offset, offsets = 0.0, []
    for key, before in zip(layer, (None, *layer), strict=False):
        if before is not None:
            offset += (sizes[before] + sizes[key]) / 2 + GAP
        offsets.append(offset)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, number of members
    for key, place, shift in zip(layer, wanted, offsets, strict=True):
        weight = 1.0 if isinstance(key, str) else BEND_WEIGHT
        mean, members = place - shift, 1
        while blocks and blocks[-1][0] > mean:
            other, heavy, count = blocks.pop()
            mean = (mean * weight + other * heavy) / (weight + heavy)
            weight, members = weight + heavy, members + count
        blocks.append((mean, weight, members))
    means = [mean for mean, _, members in blocks for _ in range(members)]
    return {key: mean + shift for key, mean, shift in zip(layer, means, offsets, strict=True)}
