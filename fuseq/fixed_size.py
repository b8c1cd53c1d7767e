"""Programs for one size: what is computed from sizes becomes numbers and constants.

Many deployed files take one size only. There a reshape to `(n, h // 2, 2, w)` needs no arithmetic,
and a grid of positions is a constant.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from fuseq.errors import FuseqError
from fuseq.program import Program, unused_name
from fuseq.quiet import quiet_torch
from fuseq.shapes import FakeRun, propagate

FIXED = "sizes are fixed to those of the example inputs"


def at_size(program: Program, example_inputs: tuple[Tensor, ...] | None = None) -> Program:
    """A copy of a program that takes inputs of one size only.

    Args:
        program: float or quantized.
        example_inputs: of that size; those it was captured with by default.

    Raises:
        FuseqError: FQ005 for inputs that the program does not take.
    """
    fixed = program.clone()
    if example_inputs is not None:
        fixed.example_inputs = example_inputs
        _require_fit(fixed, len(program.example_inputs))
    origin = program.origin
    fixed.origin = replace(origin, dynamic=(), notes=(*dict.fromkeys((*origin.notes, FIXED)),))
    fold_sizes(fixed)
    propagate(fixed)
    return fixed


def _require_fit(program: Program, count: int) -> None:
    """Raise FQ005 where a program does not run at its example inputs, of which it takes `count`."""
    try:
        if len(program.example_inputs) == count:
            propagate(program)
            return
        cause = None
    except FuseqError as error:
        cause = error
    sizes = ", ".join("x".join(map(str, x.shape)) for x in program.example_inputs)
    raise FuseqError(
        "FQ005",
        f"the program does not take inputs of {sizes}",
        why=cause.what if cause else None,
        fix="capture or prepare the model at this size",
    ) from cause


def fold_sizes(program: Program) -> None:
    """Make numbers of the sizes that do not follow the inputs', and constants of what they make.

    Does nothing where the size of an image is free.

    Args:
        program: edited in place; `origin.dynamic` says which sizes are free.
    """
    free = set(program.origin.dynamic)
    if any(dim >= 2 for _, dim in free):
        return
    shapes = [list(x.shape) for x in program.example_inputs]
    larger = [[n + ((i, d) in free) for d, n in enumerate(s)] for i, s in enumerate(shapes)]
    numbers, others = (_numbers(program, sizes) for sizes in (shapes, larger))
    for node, number in numbers.items():
        if others[node] == number:
            _replace_by_number(node, number)
    if program.quantization is None:  # a constant with a grid is known by its node's name
        _fold_constants(program)
    program.clean()


def _numbers(program: Program, shapes: list[list[int]]) -> dict[fx.Node, Any]:
    """Value of each node that is a number, for inputs of some shapes."""
    found: dict[fx.Node, Any] = {}

    class Recorder(FakeRun):
        def run_node(self, node: fx.Node) -> Any:
            result = super().run_node(node)
            if isinstance(result, bool | int | float):
                found[node] = result
            return result

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), quiet_torch():
        examples = zip(shapes, program.example_inputs, strict=True)
        Recorder(program).run(*(torch.empty(shape, dtype=x.dtype) for shape, x in examples))
    return found


def _replace_by_number(node: fx.Node, number: Any) -> None:
    for user in list(node.users):
        args: Any = fx.node.map_arg(user.args, lambda n: number if n is node else n)
        kwargs: Any = fx.node.map_arg(user.kwargs, lambda n: number if n is node else n)
        user.args, user.kwargs = args, kwargs


def _fold_constants(program: Program) -> None:
    """Compute what depends on no input and on no parameter."""
    values: dict[fx.Node, Any] = {}
    for node in list(program.graph.nodes):
        if node.op != "call_function" or not all(n in values for n in node.all_input_nodes):
            continue
        args: Any = fx.node.map_arg(node.args, values.__getitem__)
        kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
        if isinstance(values[node], Tensor):
            name = unused_name(program.module, node.name)
            program.module.register_buffer(name, values[node])
            with program.graph.inserting_before(node):
                constant = program.graph.create_node("get_attr", name)
            constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant)
            values[constant] = values[node]
