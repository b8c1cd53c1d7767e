"""Is a graph fused rightly? Two oracles that share nothing with the algebra.

*Comparison*: the unfused module and the fused program in float64, at several sizes down to 1 x 1.
*Impulses*: the matrix of an affine module, column by column, from an impulse at every position of
a map, borders included, against the matrix that a convolution's numbers spell.
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import fuseq
from fuseq import Program, ops
from fuseq.affine.fuse import Outcome, fuse
from fuseq.affine.price import CostModel
from tests.fuzz.graphs import Graph

EAGER = CostModel(element=0.0, operation=1e12)
"""Fuses whatever the algebra allows."""

LIMIT = 1e-11
"""Allowed error, relative to the largest number of the computation; rounding gives 1e-15."""

SIZES = [(None, None), (1, 1), (2, 5), (4, 3), (7, 7), (13, 10)]


AFFINE = frozenset(
    "conv2d batch_norm add sub mul div concat avg_pool pad pad_value slice pixel_unshuffle".split()
)


@dataclass(frozen=True)
class Settings:
    """How to fuse.

    Attributes:
        cost: what pays.
        captured_size_only: also fuse what holds at the captured size alone.
    """

    cost: CostModel
    captured_size_only: bool = False


def settings_of(seed: int) -> Settings:
    """Mostly eager; default costs for one graph in three, one size for one in ten."""
    return Settings(EAGER if seed % 3 else CostModel(), captured_size_only=seed % 10 == 9)


@dataclass
class Verdict:
    """What fusing one graph came to.

    Attributes:
        wrong: what is wrong, or the empty string.
        sizes: number of sizes compared.
        regions: fused.
        refusals: by code.
        whole: several affine operations, with a convolution, that compute one output of one input.
        collapsed: one convolution is all that is left.
        probed: impulses confirmed its kernel.
        unfinished: fusing the result again fuses more of it.
    """

    wrong: str = ""
    sizes: int = 0
    regions: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    whole: bool = False
    collapsed: bool = False
    probed: bool = False
    unfinished: bool = False

    def counts(self) -> dict[str, int]:
        """What to add up over graphs."""
        return {
            "graphs": 1,
            "sizes compared": self.sizes,
            "regions fused": self.regions,
            "affine graphs of several operations, one input and one output": self.whole,
            "of these, left as one convolution": self.whole and self.collapsed,
            "kernels confirmed by impulses": self.probed,
            "graphs that fusing again fuses further": self.unfinished,
        }


class Watch(TorchFunctionMode):
    """Notes the largest number that is computed, and refuses empty maps.

    A slice of a map that is too small is empty, not an error; later padding would hide that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            if not result.numel():
                raise RuntimeError("an empty map")
            with torch._C.DisableTorchFunction():
                self.largest = max(self.largest, float(result.detach().abs().max()))
        return result


def judge(graph: Graph, settings: Settings) -> Verdict:
    """Fuse a graph and compare it with itself, unfused."""
    verdict = Verdict()
    try:
        model = graph.build()
        program = captured(model, graph)
        fused = program.clone()
        outcome = _fuse(fused, settings)
        _describe(verdict, program, fused, outcome)
        verdict.wrong = (
            _proof_failures(outcome)
            or _differences(verdict, model, fused, graph, settings.captured_size_only)
            or _impulses(verdict, model, fused)
        )
        verdict.unfinished = bool(_fuse(fused, settings).certificates)
    except Exception as error:
        verdict.wrong = f"crash: {type(error).__name__}: {error}"
    return verdict


def _fuse(program: Program, settings: Settings) -> Outcome:
    return fuse(program, settings.cost, captured_size_only=settings.captured_size_only)


def judge_publicly(graph: Graph, front_end: str) -> str:
    """What is wrong with a graph that users fuse: float32, every proof, either front end."""
    model = graph.build().float()
    try:
        program = fuseq.fuse(model, _float32(graph.example()), front_end=front_end)
    except Exception as error:
        return f"public crash ({front_end}): {type(error).__name__}: {error}"
    assert program.report is not None
    if program.report["max_rel_error_f64"] > 1e-9:
        return f"public error ({front_end}): {program.report['max_rel_error_f64']} in float64"
    if program.report["max_abs_error_f32"] > program.report["float32_bound"]:
        return (
            f"public bound ({front_end}): {program.report['max_abs_error_f32']} in float32, "
            f"bound {program.report['float32_bound']}"
        )
    return ""


def _float32(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.float() for x in inputs)


def captured(model: nn.Module, graph: Graph, front_end: str = "fx") -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fuseq.capture(model, graph.example(), front_end=front_end)


def _describe(verdict: Verdict, program: Program, fused: Program, outcome: Outcome) -> None:
    verdict.regions = len(outcome.certificates)
    verdict.refusals = Counter(refusal.code for refusal in outcome.refusals)
    before, after = _names(program), _names(fused)
    roots = [node for node in program.inputs() if node.users]
    verdict.whole = (
        len(before) > 1
        and "conv2d" in before
        and AFFINE.issuperset(before)
        and len(roots) == len(program.outputs()) == 1
    )
    copies = any(n.kwargs.get("mode", "constant") != "constant" for n in fused.graph.nodes)
    verdict.collapsed = after in (["conv2d"], ["pad", "conv2d"]) and not copies


def _names(program: Program) -> list[str]:
    nodes = [n for n in program.graph.nodes if n.op.startswith("call")]
    return [ops.name_of(program, node) for node in nodes]


def _proof_failures(outcome: Outcome) -> str:
    failed = [refusal for refusal in outcome.refusals if refusal.code == "proof"]
    failed_residuals = [c for c in outcome.certificates if not c.residual <= LIMIT]
    return f"proof: {failed[0]}" if failed else f"{failed_residuals[0]}" if failed_residuals else ""


def _differences(
    verdict: Verdict, model: nn.Module, fused: Program, graph: Graph, captured_size_only: bool
) -> str:
    smallest = _largest_crop(fused)
    free = {(i, d) for i in range(len(graph.inputs)) for d in (2, 3)} <= {*fused.origin.dynamic}
    for height, width in SIZES if free and not captured_size_only else SIZES[:1]:
        inputs = graph.example(height, width)
        try:
            with Watch() as watch:
                expected = model(*inputs)
        except (RuntimeError, ValueError):
            continue
        if height and min(height, width or 0) < smallest:
            continue  # torch refuses to crop more than there is
        verdict.sizes += 1
        actual = fused.module(*inputs)
        largest = max(watch.largest, *(float(x.abs().max()) for x in inputs))
        for a, b in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
            if a.shape != b.shape:
                return f"shape {tuple(a.shape)} for {tuple(b.shape)} at {inputs[0].shape}"
            error = float((a - b).abs().max())
            if not error <= LIMIT * largest:
                return f"error {error:.1e} of {largest:.1e} at {tuple(inputs[0].shape)}"
    return "" if verdict.sizes else "nothing was compared"


def _largest_crop(program: Program) -> int:
    pads = [node for node in program.graph.nodes if ops.name_of(program, node) == "pad"]
    amounts = [a for node in pads for a in node.kwargs["pad"] if isinstance(a, int)]
    return max((-amount for amount in amounts), default=0)


def _impulses(verdict: Verdict, model: nn.Module, fused: Program) -> str:
    """Compare matrices where one convolution, after one pad or none, is left of a graph."""
    nodes = [n for n in fused.graph.nodes if n.op not in ("placeholder", "output")]
    inputs = {a for n in nodes for a in n.all_input_nodes if a.op == "placeholder"}
    outputs = fused.outputs()
    if not verdict.collapsed or len(inputs) != 1 or outputs != [nodes[-1]]:
        return ""
    layer = fused.get(nodes[-1])
    assert isinstance(layer, nn.Conv2d)
    frame = nodes[0].kwargs["pad"] if len(nodes) == 2 else (0, 0, 0, 0)
    index = fused.inputs().index(inputs.pop())
    shapes = [list(x.shape) for x in fused.example_inputs]
    silence = [torch.zeros(1, *shape[1:], dtype=torch.float64) for shape in shapes]
    channels, height, width = shapes[index][1:]
    count = channels * height * width
    impulses = torch.eye(count, dtype=torch.float64).view(count, channels, height, width)
    batches = [
        impulses if i == index else x.expand(count, *x.shape[1:]) for i, x in enumerate(silence)
    ]
    offset = model(*silence)
    probed = model(*batches) - offset
    spelled = spelled_matrix(layer, (height, width), frame, offset.shape[2:])
    largest = max(float(probed.abs().max()), float(offset.abs().max()), 1e-30)
    bias = torch.zeros(len(offset[0]), dtype=torch.float64) if layer.bias is None else layer.bias
    errors = (probed.flatten(1).T - spelled.flatten(0, 2), offset[0] - bias.view(-1, 1, 1))
    verdict.probed = True
    error = max(float(e.abs().max()) for e in errors)
    return (
        ""
        if error <= 1e-10 * largest
        else f"impulses find another kernel, by {error / largest:.1e}"
    )


def spelled_matrix(
    layer: nn.Conv2d, size: tuple[int, int], frame: tuple[int, int, int, int], result: Any
) -> Tensor:
    """A convolution as a matrix, by its definition: entry by entry, without a convolution.

    Args:
        layer: zero padded.
        size: height and width of the map it is applied to.
        frame: what is padded (or cropped) before it: left, right, top, bottom.
        result: height and width of its result.

    Returns:
        `(out channels, rows, columns, in channels * height * width)`.
    """
    weight, (height, width), (left, right, top, bottom) = layer.weight, size, frame
    rows = range(max(0, -top), height + min(0, bottom))
    columns = range(max(0, -left), width + min(0, right))
    outputs, per_group = weight.shape[:2]
    matrix = torch.zeros(outputs, *result, layer.in_channels, height, width, dtype=torch.float64)
    taps = itertools.product(*(range(n) for n in (outputs, *weight.shape[2:], *result)))
    for o, u, v, i, j in taps:
        row = i * layer.stride[0] + u * layer.dilation[0] - int(layer.padding[0]) - top
        column = j * layer.stride[1] + v * layer.dilation[1] - int(layer.padding[1]) - left
        if row in rows and column in columns:
            first = o // (outputs // layer.groups) * per_group
            matrix[o, i, j, first : first + per_group, row, column] += weight[o, :, u, v]
    return matrix.flatten(3)
