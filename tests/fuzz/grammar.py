"""The grammar of random networks.

A *production* gets a `Writer` and a value and writes lines that compute a new value; whatever it
raises makes the writer take the lines back and draw another one. To teach the fuzzer a
construction, write one in `affine` or `surroundings` and give it a weight in the table there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch

from tests.fuzz.affine import AFFINE
from tests.fuzz.graphs import Graph, live
from tests.fuzz.surroundings import NEAR, NONLINEAR
from tests.fuzz.writer import Production, Writer


def graph_of(seed: int) -> Graph:
    """The graph of a seed: an affine one if it is even, else one of all productions."""
    return random_graph(seed, AFFINE | NEAR | NONLINEAR if seed % 2 else AFFINE)


def random_graph(seed: int, grammar: Mapping[Production, int]) -> Graph:
    """A graph of a few productions, drawn by their weights, from one or several inputs."""
    w = Writer(random.Random(seed))
    torch.manual_seed(seed)
    size = [w.random.choice((1, 3, 6, 8, 9, 12, 13)) for _ in range(2)]
    for _ in range(w.random.choice((1, 1, 1, 1, 1, 2, 3))):
        w.input((w.integer(1, 2), w.integer(1, 12), *size))
    productions, weights = list(grammar), list(grammar.values())
    wanted = w.integer(1, 7)
    for _ in range(4 * wanted):
        x = w.values[-1] if w.chance(0.8) else w.random.choice(w.values)
        value = w.attempt(w.random.choices(productions, weights)[0], x)
        if value is not None:
            w.values.append(value)
            wanted -= 1
        if not wanted:
            break
    inputs = tuple(v.shape for v in w.values if v.name.startswith("x"))
    outputs = [w.values[-1].name]
    if w.chance(0.15):
        outputs.append(w.random.choice(w.values[len(inputs) - 1 :]).name)
    graph = Graph(seed, inputs, tuple(w.layers), tuple(w.lines), tuple(dict.fromkeys(outputs)))
    return live(graph) if w.lines else random_graph(seed + 10**9, grammar)
