"""A few hundred random graphs, and proof that the oracles would notice a wrong fusion.

`make fuzz` runs ten thousand of them.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fuseq.affine.form
from fuseq import Program
from fuseq.rounding import float32_bound
from tests.fuzz import verdict as oracle
from tests.fuzz.grammar import graph_of
from tests.fuzz.graphs import Graph, shrunk
from tests.fuzz.verdict import EAGER, Settings, judge, judge_publicly, settings_of

CHUNK = 20
PLAIN = Settings(EAGER)


@pytest.mark.parametrize("first", range(0, 240, CHUNK))
def test_fused_graphs_are_the_unfused_ones_at_every_size(first: int) -> None:
    for seed in range(first, first + CHUNK):
        graph = graph_of(seed)
        assert not judge(graph, settings_of(seed)).wrong, graph


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize("seed", [1002, 1003, 1005, 1009])
def test_users_fuse_random_graphs_within_every_promise(seed: int, front_end: str) -> None:
    graph = graph_of(seed)
    assert not judge_publicly(graph, front_end), graph


def test_random_graphs_stay_within_the_float32_bound() -> None:
    for seed in range(2000, 2040):
        graph = graph_of(seed)
        program = oracle.captured(graph.build(), graph)
        inputs = tuple(x.float() for x in graph.example())
        narrow = program.twin(torch.float32)
        truth = fuseq.verify.outputs(narrow.twin(torch.float64), tuple(x.double() for x in inputs))
        pairs = zip(fuseq.verify.outputs(narrow, inputs), truth, strict=True)
        errors = [float((a - b).abs().max()) for a, b in pairs]
        bounds = float32_bound(inputs, narrow)
        assert all(e <= b for e, b in zip(errors, bounds, strict=True)), graph


def test_refusing_everything_would_not_pass() -> None:
    verdicts = [judge(graph_of(seed), PLAIN) for seed in range(3000, 3080, 2)]
    whole = [verdict for verdict in verdicts if verdict.whole]
    assert len(whole) >= 10
    assert sum(verdict.collapsed for verdict in whole) >= 0.3 * len(whole)
    assert sum(verdict.probed for verdict in verdicts) >= 5


BLOCK = Graph(
    seed=0,
    inputs=((1, 3, 9, 8),),
    layers=(
        ("m0", "nn.Conv2d(3, 4, 3, padding=1)"),
        ("m1", "nn.BatchNorm2d(4)"),
        ("m2", "nn.Conv2d(3, 4, 1, bias=False)"),
    ),
    lines=(
        ("v0", "self.m0(x0)"),
        ("v1", "self.m1(v0)"),
        ("v2", "self.m2(x0)"),
        ("v3", "v1 + v2"),
        ("v4", "v3 / 3"),
    ),
    outputs=("v4",),
)


def test_a_right_fusion_is_found_right_by_both_oracles() -> None:
    verdict = judge(BLOCK, PLAIN)
    assert not verdict.wrong
    assert verdict.whole
    assert verdict.collapsed
    assert verdict.probed
    assert verdict.sizes == len(oracle.SIZES)


@pytest.mark.parametrize("fault", ["weight", "bias", "shift"])
@pytest.mark.parametrize("blind", ["_impulses", "_differences"])
def test_a_wrong_fusion_is_noticed_by_either_oracle(
    fault: str, blind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrongly(program: Program, settings: Settings) -> object:
        outcome = fuseq.affine.fuse.fuse(program, settings.cost)
        (layer,) = (m for m in program.module.modules() if isinstance(m, torch.nn.Conv2d))
        assert layer.bias is not None
        with torch.no_grad():
            if fault == "weight":
                layer.weight[-1, -1, -1, -1] += 1e-6
            elif fault == "bias":
                layer.bias[0] += 1e-6
            else:
                layer.weight.copy_(layer.weight.roll(1, -1))
        return outcome

    monkeypatch.setattr(oracle, "_fuse", wrongly)
    monkeypatch.setattr(oracle, blind, lambda *_: "")
    found = judge(BLOCK, PLAIN).wrong
    assert found.startswith("impulses" if blind == "_differences" else "error"), found


def test_a_failing_graph_shrinks_to_the_lines_that_matter() -> None:
    graph = replace(BLOCK, outputs=("v4", "v1"))
    small = shrunk(graph, lambda g: "self.m1" in g.source())
    assert str(small) == (
        "class Graph(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.m1 = nn.BatchNorm2d(4)\n\n"
        "    def forward(self, x0):\n"
        "        v1 = self.m1(x0)\n"
        "        return v1\n\n"
        "# seed 0; inputs: torch.randn(1, 3, 9, 8).double()\n"
    )
