r"""Distillation at the bottleneck: the quantized network follows itself in float, encoder only.

QDR (arXiv 2603.09624) names two ideas. The teacher is the same network in float32, so there is no
gap of capacity. The loss acts at the bottleneck only, never behind it: an error that a decoder
spreads over the image is no target. With z the student's bottleneck and z' the teacher's,

    L_dis = mean (z - z')^2

which is the hint of FitNets (Romero et al., ICLR 2015, eq. 3) without its regressor: both values
have the same channels.

A fused program has other modules and names than the model it came from, but each of its nodes
keeps the path of the user's module that it came from. So one path names the bottleneck in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fuseq import ops
from fuseq.affine.prove import Certificate
from fuseq.errors import FuseqError
from fuseq.plugins import did_you_mean
from fuseq.program import Program
from fuseq.qat.model import QatModel


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`mean (student - teacher)^2`, in float32; the teacher receives no gradient.

    Args:
        student: value of the bottleneck, any shape.
        teacher: the same shape.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(f"shapes differ: {tuple(student.shape)} and {tuple(teacher.shape)}")
    return (student.float() - teacher.detach().float()).square().mean()


class Features(nn.Module):
    """A model that gives the value of one of its submodules beside its output.

    Wrap it before `DistributedDataParallel`, which has to see every call.

    Attributes:
        model: the wrapped model; its parameters are shared.
        path: of the submodule.
    """

    def __init__(self, model: nn.Module, path: str) -> None:
        """Find the submodule.

        Args:
            model: any module, or a prepared model (`QatModel`).
            path: as `get_submodule` of the original model takes it; the module returns one tensor.
                In a prepared model, a node's name will do too.

        Raises:
            FuseqError: FQ007 if there is no such module, or as `value_of`, or if the target
                computes its value together with the activation behind it.
        """
        super().__init__()
        self.model, self.path = model, path
        if isinstance(model, QatModel):
            self.node = _node_of(model, path)
            model.wanted |= {self.node}
            return
        paths = [name for name, _ in model.named_modules() if name]
        if path not in paths:
            raise _unknown(path, paths)

    def forward(self, *inputs: Tensor) -> tuple[Any, Tensor]:
        """Output of the model and value of the submodule, both with gradients.

        Of a prepared model it is the real value of the target's integers.

        Raises:
            FuseqError: FQ007 if the submodule did not run exactly once, or gave no tensor.
        """
        if isinstance(self.model, QatModel):
            output, value = self.model(*inputs), self.model.features[self.node]
            self.model.features = {}  # a model that holds a graph cannot be copied
            return output, value
        seen: list[Any] = []
        module = self.model.get_submodule(self.path)
        hook = module.register_forward_hook(lambda _module, _inputs, value: seen.append(value))
        try:
            output = self.model(*inputs)
        finally:
            hook.remove()
        if len(seen) != 1 or not isinstance(seen[0], Tensor):
            kinds = ", ".join(type(value).__name__ for value in seen) or "nothing"
            raise FuseqError(
                "FQ007",
                f"'{self.path}' has no value of its own: it gave {kinds}",
                fix="name a module that runs once and returns one tensor",
            )
        return output, seen[0]


class SelfTeacher(nn.Module):
    """The float network up to its bottleneck, frozen: what it computes is what the student should.

    The decoder is left out, so it costs the encoder's forward pass and no more.

    Attributes:
        encoder: frozen copy of the part that is needed.
        node: name of the node whose value it gives.
    """

    def __init__(self, model: QatModel | Program, path: str) -> None:
        """Copy the network as it is now: make the teacher before you train the student.

        Args:
            model: a prepared model, whose float network is taken, or a program. With the prepared
                model, channels have the scales that equalization gave both.
            path: of the bottleneck in the model that was captured, or name of a node.

        Raises:
            FuseqError: FQ007 as `value_of`.
        """
        super().__init__()
        copy = (model.program if isinstance(model, QatModel) else model).clone()
        node, result = value_of(copy, path), copy.graph.output_node()
        result.args = (node,)
        copy.clean()
        self.node, self.encoder = node.name, copy.module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> SelfTeacher:
        """Stay in eval: a teacher does not learn, its batch norms neither."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """Value of the bottleneck in float32, without a gradient, also under autocast."""
        inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        with torch.autocast(inputs[0].device.type, enabled=False):
            value: Tensor = self.encoder(*inputs)
        return value


def value_of(program: Program, path: str) -> fx.Node:
    """The node of a program that holds what a module of the original model returned.

    Passes may have rescaled its channels (`equalize`) or recomputed its statistics.

    Args:
        program: in any state of the pipeline.
        path: of a module, or name of a node.

    Raises:
        FuseqError: FQ007 if nothing has that path or name, if the end of the module was fused into
            what follows, or if several values leave it.
    """
    nodes: list[fx.Node] = list(program.graph.nodes)
    inside = [node for node in nodes if _within(node.meta.get("scope"), path)]
    for layer in _layers_with_parts_of(program, path):
        if layer not in inside and not (inside and layer < inside[-1]):
            raise FuseqError(
                "FQ007",
                f"'{path}' has no value any more: its end was fused into `{layer.target}`",
                where=program.where(layer),
                fix="name a module that ends with a non-linearity, or a node of the graph",
            )
    leaving = [node for node in inside if _is_value(program, node) and _leaves(node, inside)]
    found = leaving or [node for node in nodes if node.name == path and node.op != "output"]
    if not found:
        scopes = [(node.meta.get("scope") or "").split(".") for node in nodes]
        raise _unknown(path, {".".join(s[:n]) for s in scopes for n in range(1, len(s) + 1)})
    if len(found) > 1:
        several = ", ".join(f"`{node.name}`" for node in found)
        raise FuseqError("FQ007", f"'{path}' gives {several}", fix="name the node that you mean")
    return found[0]


def _node_of(model: QatModel, path: str) -> str:
    """Name of the node of a prepared model; its value has to exist on the target."""
    node = value_of(model.program, path)
    activation = model.structure.absorbed.get(node.name)
    if activation is None:
        return node.name
    (reader,) = node.users
    if reader.target is ops.requantize:  # the same value, on the grid of a concat
        return activation
    raise FuseqError(
        "FQ007",
        f"'{path}' has no value on the target, which computes it together with `{activation}`",
        where=model.program.where(node),
        fix=f"name `{activation}`, or the module that runs it",
    )


def _within(scope: str | None, path: str) -> bool:
    return scope is not None and (scope == path or scope.startswith(f"{path}."))


def _layers_with_parts_of(program: Program, path: str) -> list[fx.Node]:
    """Layers that took over operations of a module."""
    modules = {
        certificate.module
        for certificate in program.details(Certificate)
        if any(_within(fused.scope, path) for fused in certificate.nodes)
    }
    return [n for n in program.graph.nodes if n.op == "call_module" and n.target in modules]


def _is_value(program: Program, node: fx.Node) -> bool:
    kind = ops.name_of(program, node)
    return "shape" in node.meta and kind not in ("input", "constant", "requantize")


def _leaves(node: fx.Node, inside: list[fx.Node]) -> bool:
    return any(reader not in inside for reader in _readers(node))


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a value and not only its size, be it requantized on the way."""
    for user in node.users:
        if user.target is ops.requantize:
            yield from _readers(user)
        elif user.target is not ops.sym_size:
            yield user


def _unknown(path: str, known: Iterable[str]) -> FuseqError:
    fix = did_you_mean(path, sorted(known)) or "the paths are those of `named_modules`"
    return FuseqError("FQ007", f"'{path}' is no module of the model", fix=fix)
