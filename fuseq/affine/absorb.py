"""Layers take over the channelwise ops that `commute` finds, each proved in float64 first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.affine.commute import Fold, folds
from fuseq.affine.operands import is_data
from fuseq.affine.prove import LIMIT, Certificate, certified, step_of
from fuseq.program import Program


def absorb(program: Program, certificates: dict[str, Certificate]) -> int:
    """Fold every channelwise op that layers can take over, in place.

    Args:
        program: edited; node shapes are those at the captured size.
        certificates: by path of the layer; extended.

    Returns:
        Number of ops that are gone.
    """
    gone = 0
    for fold in folds(program):
        layers = fold.folded(program)
        error = _residual(program, fold, layers)
        if error <= LIMIT:
            _replace(program, fold, layers, error, certificates)
            gone += 1
    return gone


def _replace(
    program: Program,
    fold: Fold,
    layers: dict[fx.Node, nn.Module],
    error: float,
    certificates: dict[str, Certificate],
) -> None:
    taken = certified(program, fold.node, {})
    for node, layer in layers.items():
        before = certified(program, node, certificates)
        dtype = next(program.get(node).parameters()).dtype
        program.module.set_submodule(str(node.target), layer.to(dtype))
        certificates[str(node.target)] = replace(
            before,
            nodes=(*before.nodes, *taken.nodes) if fold.up else (*taken.nodes, *before.nodes),
            root=node.all_input_nodes[0].name,
            source=before.source or program.source(node),
            residual=max(error, before.residual),
            macs_before=before.macs_before + taken.macs_before,
            parameters_before=before.parameters_before + taken.parameters_before,
            parameters_after=sum(p.numel() for p in layer.parameters()),
        )
    fold.node.replace_all_uses_with(fold.operand)
    program.graph.erase_node(fold.node)


def _residual(program: Program, fold: Fold, layers: dict[fx.Node, nn.Module]) -> float:
    """`max |after - before| / max |before|` over what is read behind the fold, in float64."""
    inside = {fold.node, *layers, *fold.between}
    order = sorted(inside)  # nodes compare by their place in the graph
    results = [n for n in order if any(u not in inside and is_data(u) for u in n.users)]
    before = _run(program, order, {})
    after = _run(program, order, {**layers, fold.node: nn.Identity()})
    worst = 0.0
    for node in results:
        error = float((after[node] - before[node]).abs().max())
        worst = max(worst, error / max(float(before[node].abs().max()), 1e-300))
    return worst


def _run(
    program: Program, order: list[fx.Node], replaced: dict[fx.Node, nn.Module]
) -> dict[fx.Node, Tensor]:
    """Values of some nodes at the captured size, from random operands."""
    values: dict[fx.Node, Any] = {}
    generator = torch.Generator().manual_seed(0)

    def value(node: fx.Node) -> Any:
        if node in values:
            return values[node]
        if node.target is ops.sym_size:
            source, dim = node.args
            assert isinstance(source, fx.Node)
            assert isinstance(dim, int)
            values[node] = program.shape(source)[dim]
        elif node.target in ops.SHAPE_ARITHMETIC:
            assert callable(node.target)
            values[node] = node.target(*fx.node.map_arg(node.args, value))
        elif is_data(node):
            shape = program.shape(node)
            values[node] = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values.get(node, node)

    with torch.no_grad():
        for node in order:
            step = replaced.get(node) or step_of(program, node)
            attributes = fx.node.map_arg(node.kwargs, value)
            args = [a for a in fx.node.map_arg(node.args, value)]
            if node in replaced:
                args, attributes = [a for a in args if isinstance(a, Tensor)], {}
            values[node] = step(*args, **attributes)
    return values
