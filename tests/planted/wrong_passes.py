"""Passes with the bugs people write. Each is short, plausible, and must be rejected.

Most pass a float32 `allclose` on freshly initialized weights, which is why they get written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.program import Program
from fuseq.rewrite import Approximates, Pass, Promise, SameFunction


@dataclass(frozen=True)
class Wrong(Pass):
    """A pass that promises the same function, and is wrong."""

    name: ClassVar[str] = "wrong"
    promise: ClassVar[Promise] = SameFunction()


def nodes(program: Program, name: str) -> list[fx.Node]:
    return [node for node in program.graph.nodes if ops.name_of(program, node) == name]


def bypass(node: fx.Node) -> int:
    node.replace_all_uses_with(node.all_input_nodes[0])
    return 1


def conv_norms(program: Program) -> Iterator[tuple[fx.Node, nn.Conv2d, fx.Node, nn.BatchNorm2d]]:
    for norm in nodes(program, "batch_norm"):
        conv = norm.all_input_nodes[0]
        if ops.name_of(program, conv) == "conv2d":
            layer, statistics = program.get(conv), program.get(norm)
            assert isinstance(layer, nn.Conv2d)
            assert isinstance(statistics, nn.BatchNorm2d)
            yield conv, layer, norm, statistics


def branches(program: Program) -> tuple[fx.Node, nn.Conv2d, nn.Conv2d]:
    """The one addition of two convolutions: the addition, and the two layers."""
    (total,) = nodes(program, "add")
    first, second = (program.get(node) for node in total.all_input_nodes)
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    return total, first, second


def merged(program: Program, total: fx.Node, layer: nn.Conv2d, weight: Tensor) -> int:
    """Put the sum of the branches' kernels into one branch's layer."""
    conv = next(node for node in total.all_input_nodes if program.get(node) is layer)
    layer.weight = nn.Parameter(weight)
    total.replace_all_uses_with(conv)
    return 1


@dataclass(frozen=True)
class DropBatchNorm(Wrong):
    def run(self, program: Program) -> int:
        return sum(bypass(norm) for norm in nodes(program, "batch_norm"))


@dataclass(frozen=True)
class DropDefaultBatchNorm(Wrong):
    """Drops norms that look new: gamma one and beta zero. It forgets the statistics."""

    def run(self, program: Program) -> int:
        dropped = 0
        for norm in nodes(program, "batch_norm"):
            layer: Any = program.get(norm)
            if (layer.weight == 1).all() and (layer.bias == 0).all():
                dropped += bypass(norm)
        return dropped


@dataclass(frozen=True)
class FoldBatchNorm(Wrong):
    """Folds a norm into the convolution before it, with one thing forgotten.

    Attributes:
        forgets: "eps", "gamma", "mean", "bias", "users" or nothing: then only in-place writes.
    """

    forgets: str = ""

    def run(self, program: Program) -> int:
        folded = 0
        for conv, layer, norm, statistics in conv_norms(program):
            if self.forgets != "users" and len(conv.users) > 1:
                continue
            mean, var = statistics.running_mean, statistics.running_var
            assert mean is not None
            assert var is not None
            eps = 0.0 if self.forgets == "eps" else statistics.eps
            gamma = 1.0 if self.forgets == "gamma" else statistics.weight
            scale = gamma / torch.sqrt(var + eps)
            mean = torch.zeros_like(mean) if self.forgets == "mean" else mean
            bias = torch.zeros_like(mean)
            if layer.bias is not None and self.forgets != "bias":
                bias = layer.bias
            # In place: where a model calls one layer twice, both calls share the parameter.
            layer.weight.data.mul_(scale.view(-1, 1, 1, 1))
            layer.bias = nn.Parameter((bias - mean) * scale + statistics.bias)
            folded += bypass(norm)
        return folded


@dataclass(frozen=True)
class MergePaddedSequence(Wrong):
    """1x1 then a padded kxk as one padded kxk: at the border the 1x1's bias is padded too."""

    def run(self, program: Program) -> int:
        first, second = nodes(program, "conv2d")
        a, b = program.get(first), program.get(second)
        assert isinstance(a, nn.Conv2d)
        assert isinstance(b, nn.Conv2d)
        assert a.bias is not None
        assert b.bias is not None
        bias = b.bias + (b.weight.sum((2, 3)) @ a.bias)
        b.weight = nn.Parameter(torch.einsum("omhw,mi->oihw", b.weight, a.weight[:, :, 0, 0]))
        b.bias = nn.Parameter(bias)
        b.in_channels = a.in_channels
        return bypass(first)


@dataclass(frozen=True)
class MergeTwoPadded(Wrong):
    """Two padded 3x3 as one 5x5 with padding 2: right inside, wrong on the ring."""

    def run(self, program: Program) -> int:
        first, second = nodes(program, "conv2d")
        a, b = program.get(first), program.get(second)
        assert isinstance(a, nn.Conv2d)
        assert isinstance(b, nn.Conv2d)
        kernel = F.conv_transpose2d(b.weight, a.weight)
        b.weight = nn.Parameter(kernel)
        b.kernel_size, b.padding = (5, 5), (2, 2)
        b.in_channels = a.in_channels
        return bypass(first)


@dataclass(frozen=True)
class MergeGroups(Wrong):
    """Adds a grouped kernel to a dense one by repeating it over the groups."""

    def run(self, program: Program) -> int:
        total, dense, grouped = branches(program)
        spread = grouped.weight.repeat(1, grouped.groups, 1, 1)
        return merged(program, total, dense, dense.weight + spread)


@dataclass(frozen=True)
class MergeDilated(Wrong):
    """Adds a dilated kernel as if its taps were neighbours."""

    def run(self, program: Program) -> int:
        total, plain, dilated = branches(program)
        return merged(program, total, plain, plain.weight + dilated.weight)


@dataclass(frozen=True)
class MergeAtCorner(Wrong):
    """Adds a 1x1 kernel to the first tap instead of the middle one."""

    def run(self, program: Program) -> int:
        total, large, small = branches(program)
        return merged(program, total, large, large.weight + F.pad(small.weight, (0, 2, 0, 2)))


@dataclass(frozen=True)
class MergeShifted(Wrong):
    """Crops a full-size branch to the strided one's size and merges it: off by one position."""

    def run(self, program: Program) -> int:
        (total,) = nodes(program, "add")
        strided = next(n for n in total.all_input_nodes if ops.name_of(program, n) == "conv2d")
        small = next(n for n in nodes(program, "conv2d") if n is not strided)
        large, one = program.get(strided), program.get(small)
        assert isinstance(large, nn.Conv2d)
        assert isinstance(one, nn.Conv2d)
        return merged(program, total, large, large.weight + F.pad(one.weight, (1, 1, 1, 1)))


@dataclass(frozen=True)
class ForgetIdentity(Wrong):
    def run(self, program: Program) -> int:
        (total,) = nodes(program, "add")
        return bypass(total)


@dataclass(frozen=True)
class DropRelu(Wrong):
    def run(self, program: Program) -> int:
        return sum(bypass(relu) for relu in nodes(program, "relu"))


@dataclass(frozen=True)
class SwapConcat(Wrong):
    def run(self, program: Program) -> int:
        (concat,) = nodes(program, "concat")
        concat.args = (concat.args[0][::-1],)  # type: ignore[index]
        return 1


@dataclass(frozen=True)
class PadBefore(Wrong):
    """Pads an even kernel before the image instead of after it."""

    def run(self, program: Program) -> int:
        (pad,) = nodes(program, "pad")
        amounts: Any = pad.kwargs["pad"]
        left, right, top, bottom = amounts
        pad.update_kwarg("pad", (right, left, bottom, top))
        return 1


@dataclass(frozen=True)
class PoolAsConv(Wrong):
    """An average pool as a depthwise convolution, whose border divides by the whole window."""

    def run(self, program: Program) -> int:
        (pool,) = nodes(program, "avg_pool")
        channels = program.shape(pool)[1]
        conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        with torch.no_grad():
            conv.weight.fill_(1 / 9)
        dtype = program.example_inputs[0].dtype
        anchor = program.insert_module("pool", conv.to(dtype).eval(), pool, pool.all_input_nodes[0])
        pool.replace_all_uses_with(anchor)
        return 1


@dataclass(frozen=True)
class SlopeLost(Wrong):
    """Takes every leaky ReLU for one with the default slope."""

    def run(self, program: Program) -> int:
        (leaky,) = nodes(program, "leaky_relu")
        leaky.update_kwarg("negative_slope", 0.01)
        return 1


@dataclass(frozen=True)
class ScaleTransposedRows(Wrong):
    """Folds a norm into a transposed convolution along its input channels."""

    def run(self, program: Program) -> int:
        (norm,) = nodes(program, "batch_norm")
        statistics: Any = program.get(norm)
        layer: Any = program.get(norm.all_input_nodes[0])
        scale = statistics.weight / torch.sqrt(statistics.running_var + statistics.eps)
        layer.weight = nn.Parameter(layer.weight * scale.view(-1, 1, 1, 1))
        layer.bias = nn.Parameter((layer.bias - statistics.running_mean) * scale + statistics.bias)
        return bypass(norm)


@dataclass(frozen=True)
class DropPool(Wrong):
    """Changes the size of the output."""

    def run(self, program: Program) -> int:
        return sum(bypass(pool) for pool in nodes(program, "avg_pool"))


@dataclass(frozen=True)
class TrainingMode(Wrong):
    def run(self, program: Program) -> int:
        for norm in nodes(program, "batch_norm"):
            program.get(norm).train()
        return 1


@dataclass(frozen=True)
class DeleteInput(Wrong):
    def run(self, program: Program) -> int:
        (total,) = nodes(program, "add")
        gone = program.inputs()[1]
        bypass(total)
        program.graph.erase_node(total)
        program.graph.erase_node(gone)
        return 1


@dataclass(frozen=True)
class RenameInput(Wrong):
    def run(self, program: Program) -> int:
        program.inputs()[0].name = "image"
        return 1


@dataclass(frozen=True)
class ShareModule(Wrong):
    """Calls one layer twice instead of inserting its copy."""

    def run(self, program: Program) -> int:
        first, second = nodes(program, "conv2d")
        second.target = first.target
        return 1


@dataclass(frozen=True)
class UseBeforeDefinition(Wrong):
    def run(self, program: Program) -> int:
        (relu,) = nodes(program, "relu")
        relu.args = (nodes(program, "conv2d")[-1],)
        return 1


@dataclass(frozen=True)
class DanglingTarget(Wrong):
    def run(self, program: Program) -> int:
        nodes(program, "conv2d")[0].target = "nowhere"
        return 1


@dataclass(frozen=True)
class AttributeLost(Wrong):
    def run(self, program: Program) -> int:
        (pad,) = nodes(program, "pad")
        pad.kwargs = {key: value for key, value in pad.kwargs.items() if key != "value"}
        return 1


@dataclass(frozen=True)
class Raises(Wrong):
    def run(self, program: Program) -> int:
        return len(program.graph.nodes[0])  # type: ignore[index]


@dataclass(frozen=True)
class MergeGate(Wrong):
    """One wide convolution for the two factors of a product, with one thing wrong.

    Attributes:
        wrong: "half" (the factors change places), "corner" (the smaller kernel is not centred),
            "bias" (the second one's is forgotten) or "readers" (what else reads a factor now reads
            the wide value's first half).
    """

    wrong: str

    def run(self, program: Program) -> int:
        (product,) = nodes(program, "mul")
        convs = nodes(program, "conv2d")[:2]
        first, second = (program.get(node) for node in convs)
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        spare = first.kernel_size[0] - second.kernel_size[0]
        sides = (0, spare) if self.wrong == "corner" else (spare // 2, spare // 2)
        weights = [first.weight.data, F.pad(second.weight.data, sides * 2)]
        assert first.bias is not None
        assert second.bias is not None
        biases = [first.bias.data, second.bias.data * (self.wrong != "bias")]
        options: Any = {"kernel_size": first.kernel_size, "padding": first.padding}
        wide = nn.Conv2d(4, 8, **options)
        wide.weight, wide.bias = nn.Parameter(torch.cat(weights)), nn.Parameter(torch.cat(biases))
        value = program.insert_module("wide", wide.eval(), convs[0], *convs[0].all_input_nodes)
        halves = []
        for start in (0, 4):
            attributes: Any = {"dim": 1, "start": start, "end": start + 4, "step": 1}
            with program.graph.inserting_before(convs[0]):
                halves.append(program.graph.call_function(ops.slice_tensor, (value,), attributes))
        if self.wrong == "half":
            halves.reverse()
        for conv, half in zip(convs, halves, strict=True):
            if self.wrong == "readers":
                conv.replace_all_uses_with(halves[0], lambda user: user is not product)
            conv.replace_all_uses_with(half)
        return 1


@dataclass(frozen=True)
class EqualizeWrongly(Wrong):
    """Scales the rows of the first convolution and the columns of the next, with one thing wrong.

    Attributes:
        wrong: "inverse" (nothing takes it), "twice" (both are multiplied), "bias" (it stays),
            "columns" (the rows of the next layer are scaled instead), "half" (the other half of a
            split takes it), "negative" (a sign goes through a rectifier) or "path" (whatever stands
            between, it is taken to pass a scale on).
    """

    wrong: str

    def run(self, program: Program) -> int:
        convs = [program.get(node) for node in nodes(program, "conv2d")]
        first, second = convs[0], convs[-1]
        assert isinstance(first, nn.Conv2d)
        assert isinstance(second, nn.Conv2d)
        assert first.bias is not None
        scale = torch.tensor([0.5, 2.0, 4.0, 0.25], dtype=first.weight.dtype)
        scale = -scale if self.wrong == "negative" else scale
        rows = slice(4, 8) if self.wrong == "half" else slice(0, 4)
        first.weight.data[rows] *= scale.reshape(-1, 1, 1, 1)
        if self.wrong != "bias":
            first.bias.data[rows] *= scale
        shape = (-1, 1, 1, 1) if self.wrong == "columns" else (1, -1, 1, 1)
        inverse = scale if self.wrong == "twice" else 1 / scale
        if self.wrong != "inverse":
            second.weight.data *= inverse.reshape(shape)
        return 1


@dataclass(frozen=True)
class ClipTooSoon(Pass):
    """Cuts what goes into tanh where it is not flat yet, and promises what a right cut would."""

    name: ClassVar[str] = "clip-too-soon"
    promise: ClassVar[Promise] = Approximates(max_rel=0.02)

    def run(self, program: Program) -> int:
        (saturating,) = nodes(program, "tanh")
        bounds: Any = {"min": -0.5, "max": 0.5}
        with program.graph.inserting_before(saturating):
            cut = program.graph.call_function(torch.clamp, (saturating.args[0],), bounds)
        saturating.args = (cut,)
        return 1
