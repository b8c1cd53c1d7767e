r"""`fold-bn`: batch norms go, branches stay.

With running statistics a norm is one scale and one shift a channel,

    y = g (x - mean) / sqrt(var + eps) + b = s x + t,    s = g / sqrt(var + eps),  t = b - s mean

so a convolution or linear layer right before it takes it over, `W' = s W`, `b' = s b + t`; one that
follows nothing of the kind (an identity branch) is a depthwise 1x1 convolution with weight s and
bias t. Computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

import fuseq
from fuseq import ops
from fuseq.affine.commute import Channelwise, Fold, channelwise
from fuseq.program import Program


@dataclass(frozen=True)
class FoldBatchNorm(fuseq.Pass):
    """Fold each batch norm into the layer before it, and leave branches alone.

    `fuse-affine` does this and more. This pass is for training a multi-branch graph as it is:
    every branch keeps its own convolution.
    """

    name: ClassVar[str] = "fold-bn"
    promise: ClassVar[fuseq.Promise] = fuseq.SameFunction()

    def run(self, program: Program) -> int:
        """Edit the program; returns the number of norms that are gone."""
        return sum(_fold(program, node) for node in list(program.graph.nodes))


def _fold(program: Program, norm: fx.Node) -> bool:
    if not ops.name_of(program, norm).startswith("batch_norm"):
        return False
    taken, operand = channelwise(program, norm), norm.all_input_nodes[0]
    assert taken is not None  # capture refuses a norm without running statistics
    if _gives_channels(program, operand, taken.dim) and len(operand.users) == 1:
        fold = Fold(norm, operand, ((operand, taken),), (), up=True)
        layer, dtype = fold.folded(program)[operand], _dtype(program.get(operand))
        program.module.set_submodule(str(operand.target), layer.to(dtype))
        norm.replace_all_uses_with(operand)
    elif isinstance(program.get(norm), nn.BatchNorm2d):
        layer = _depthwise(taken).to(norm.meta["dtype"])
        norm.replace_all_uses_with(program.insert_module(norm.name, layer, norm, operand))
    else:
        return False
    program.graph.erase_node(norm)
    return True


def _gives_channels(program: Program, node: fx.Node, dim: int) -> bool:
    """Whether a node is a layer with one output channel for each index of a dimension."""
    match ops.name_of(program, node):
        case "conv2d" | "conv_transpose2d":
            return dim == 1
        case "linear":
            return dim == len(program.shape(node)) - 1
    return False


def _dtype(layer: nn.Module) -> torch.dtype:
    return next(layer.parameters()).dtype


def _depthwise(taken: Channelwise) -> nn.Conv2d:
    channels = len(taken.scale)
    layer = nn.Conv2d(channels, channels, 1, groups=channels, dtype=torch.float64)
    assert layer.bias is not None
    with torch.no_grad():
        layer.weight.copy_(taken.scale.view(-1, 1, 1, 1))
        layer.bias.copy_(taken.shift)
    return layer.requires_grad_(False).eval()
