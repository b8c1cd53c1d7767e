"""Graphs that look as if one convolution computed them: each stays, with the code of its rule."""

from __future__ import annotations

import random

import pytest

from fuseq.affine.fuse import fuse
from tests.fuzz.graphs import Graph
from tests.fuzz.verdict import EAGER, Settings, captured, judge

NEAR_MISSES = {
    "zeros padded after a bias": (
        "border-bias",
        ["nn.Conv2d({c}, {d}, 1)", "nn.Conv2d({d}, {e}, {odd}, padding={half})"],
        ["self.m0(x0)", "self.m1(v0)"],
    ),
    "a norm before a padded window": (
        "border-bias",
        ["nn.BatchNorm2d({c})", "nn.Conv2d({c}, {d}, {odd}, padding={half}, bias=False)"],
        ["self.m0(x0)", "self.m1(v0)"],
    ),
    "a padded value other than the bias": (
        "border-bias",
        ["nn.Conv2d({c}, {d}, 1)", "nn.Conv2d({d}, {e}, {odd})"],
        ["self.m0(x0)", "F.pad(v0, ({half}, {half}, {half}, {half}), value=0.5)", "self.m1(v1)"],
    ),
    "two padded windows": (
        "ring",
        [
            "nn.Conv2d({c}, {d}, 3, padding=1, bias=False)",
            "nn.Conv2d({d}, {e}, {odd}, padding={half})",
        ],
        ["self.m0(x0)", "self.m1(v0)"],
    ),
    "cropped, then padded": (
        "ring",
        ["nn.Conv2d({c}, {d}, {odd}, padding={half})"],
        ["x0[:, :, 1:-1, :]", "self.m0(v0)"],
    ),
    "reflected padding": (
        "pad-mode",
        ["nn.Conv2d({c}, {d}, 3)", "nn.BatchNorm2d({c})"],
        ["self.m1(x0)", "F.pad(v0, (1, 1, 1, 1), 'reflect')", "self.m0(v1)"],
    ),
    "a convolution that pads circularly": (
        "pad-mode",
        ["nn.Conv2d({c}, {d}, 3, padding=1, padding_mode='circular')", "nn.Conv2d({d}, {e}, 1)"],
        ["self.m0(x0)", "self.m1(v0)"],
    ),
    "an inner value that is read outside": (
        "leak",
        ["nn.Conv2d({c}, {d}, {odd})", "nn.Conv2d({d}, {e}, 1)"],
        ["self.m0(x0)", "torch.relu(v0)", "self.m1(v0)"],
    ),
    "windows that hang over": (
        "ceil-mode",
        ["nn.Conv2d({c}, {d}, 1)"],
        ["F.avg_pool2d(x0, 3, 2, 0, True)", "self.m0(v0)"],
    ),
    "averages that count no padding": (
        "count-include-pad",
        ["nn.Conv2d({c}, {d}, 1, bias=False)"],
        ["self.m0(x0)", "F.avg_pool2d(v0, 3, 1, 1, count_include_pad=False)"],
    ),
    "strides that agree at one size": (
        "stride-mismatch",
        [
            "nn.Conv2d({c}, {d}, 1, stride=2)",
            "nn.Conv2d({c}, {d}, (5, 5), dilation=(1, 1))",
            "nn.Conv2d({d}, {e}, 1)",
        ],
        ["self.m0(x0)", "self.m1(x0)", "v0 + v1", "self.m2(v2)"],
    ),
    "sizes that agree at one size": (
        "size-mismatch",
        ["nn.Conv2d({c}, {d}, 2, stride=2)", "nn.Conv2d({c}, {d}, 3, stride=2, padding=1)"],
        ["self.m0(x0)", "self.m1(x0)", "v0 + v1"],
    ),
    "a constant for every position": (
        "layout",
        ["nn.Conv2d({c}, {d}, 1)", "nn.Parameter(torch.randn({d}, 8, 8))"],
        ["self.m0(x0)", "v0 * self.m1"],
    ),
    "more rows cropped than the map has, after a padding": (
        "layout",
        ["nn.Conv2d({c}, {d}, 1)"],
        ["F.pad(x0, (0, 0, 0, 10))", "self.m0(v0)", "v1[:, :, 9:]"],
    ),
    "an activation in between": (
        "nonlinear",
        ["nn.Conv2d({c}, {d}, {odd})", "nn.BatchNorm2d({d})"],
        ["self.m0(x0)", "F.hardswish(v0)", "self.m1(v1)"],
    ),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_are_refused_by_their_code(name: str, seed: int) -> None:
    code, layers, lines = NEAR_MISSES[name]
    draw = random.Random(seed)
    numbers = {letter: draw.randint(1, 9) for letter in "cde"}
    half = draw.randint(1, 2)
    numbers |= {"half": half, "odd": 2 * half + 1}
    outputs = [f"v{len(lines) - 1}"] + (["v1"] if code == "leak" else [])
    graph = Graph(
        seed=seed,
        inputs=((1, numbers["c"], 8, 8),),
        layers=tuple((f"m{i}", text.format(**numbers)) for i, text in enumerate(layers)),
        lines=tuple((f"v{i}", text.format(**numbers)) for i, text in enumerate(lines)),
        outputs=tuple(outputs),
    )
    outcome = fuse(captured(graph.build(), graph), EAGER)
    assert code in [refusal.code for refusal in outcome.refusals], graph
    assert not judge(graph, Settings(EAGER)).wrong, graph
