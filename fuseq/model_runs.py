"""What a model computes, at the example inputs and at other sizes; how far apart outputs are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseq.errors import FuseqError
from fuseq.model_copy import copied, plain
from fuseq.source_lines import raising_line

SAME_OUTPUT = 1e-4
"""Relative L2 distance below which float32 outputs are the same: wrong programs differ by > 1e-2,
a block that folds itself in eval by < 1e-5."""

Run: TypeAlias = tuple[tuple[Tensor, ...], list[Tensor]]
"""Inputs, and the outputs the model gives for them."""

Shapes: TypeAlias = list[tuple[int, ...]]
"""One shape per input."""


def first_run(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], Any]:
    """Outputs at the example inputs, as tensors and as the model returns them.

    Raises:
        FuseqError: FQ101 for outputs that are no tensors, FQ102 if the model raises, FQ103 for
            outputs that are not finite, FQ104 if a second call gives other outputs: the model is
            random, or keeps state.
    """
    ran = copied(model)
    before = _scalars(ran)
    result = call(ran, inputs)
    found = [y.clone() for y in tensors(result)]
    for index, y in enumerate(found):
        broken = ~y.isfinite() if y.is_floating_point() else torch.zeros(1)
        if bool(broken.any()):
            raise FuseqError(
                "FQ103",
                f"{int(broken.sum())} of {y.numel()} values of output {index} are not finite",
                why="forward overflows or divides by zero on the example inputs",
                fix="look for weights that diverged, a variance of zero with eps=0, and inputs out "
                "of range",
            )
    again = tensors(call(ran, inputs))
    if distance(again, found) <= SAME_OUTPUT:
        return found, result
    apart = distance(tensors(call(copied(model), inputs)), found)
    if apart > SAME_OUTPUT:
        raise FuseqError(
            "FQ104",
            "the model is random in eval mode: the same input gives another output each time",
            why=f"two runs differ by {apart:.1e} (relative L2)",
            fix="call dropout and noise with training=self.training",
        )
    changed = [name for name, value in _scalars(ran).items() if before.get(name) != value]
    raise FuseqError(
        "FQ104",
        "the model keeps state: the same input gives another output at the second call",
        why=f"forward changes {', '.join(f'`{name}`' for name in changed)}" if changed else None,
        fix="return what forward must remember, and take it as an input",
    )


def run_at(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Shapes) -> Run | None:
    """Random inputs of these shapes with their outputs; None if the model does not take them."""
    generator = torch.Generator().manual_seed(0)
    candidate = tuple(
        torch.rand(shape, generator=generator).to(x.dtype)
        for shape, x in zip(shapes, inputs, strict=True)
    )
    try:
        return candidate, tensors(call(copied(model), candidate))
    except FuseqError:
        return None


def of_other_parity(inputs: tuple[Tensor, ...]) -> Shapes:
    """Shapes of images that are one row higher and three columns wider."""
    return [
        (*x.shape[:2], x.shape[2] + 1, x.shape[3] + 3) if x.dim() == 4 else tuple(x.shape)
        for x in inputs
    ]


def changed_sizes(first: Run, second: Run) -> tuple[tuple[int, int], ...]:
    """(input, dimension) pairs whose size differs between two runs."""
    return tuple(
        (index, dim)
        for index, (a, b) in enumerate(zip(first[0], second[0], strict=True))
        for dim in range(a.dim())
        if a.shape[dim] != b.shape[dim]
    )


def tensors(result: Any) -> list[Tensor]:
    """Tensors that a forward returned, flattened.

    Raises:
        FuseqError: FQ101 if it returned something else, or nothing.
    """
    leaves = pytree.tree_leaves(plain(result))
    others = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})
    if others or not leaves:
        raise FuseqError(
            "FQ101",
            f"forward returns {', '.join(others) or 'nothing'} where a tensor is needed",
            fix="wrap the model in a module that returns its tensors only",
        )
    sparse = next((leaf for leaf in leaves if leaf.layout != torch.strided), None)
    if sparse is not None:
        raise FuseqError(
            "FQ101",
            f"forward returns a tensor of layout {sparse.layout}",
            fix="return a dense one: y.to_dense()",
        )
    return leaves


def distance(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest `|actual - expected| / |expected|` over outputs, in float64.

    Infinite for another number of outputs, other shapes and NaN.
    """
    if len(actual) != len(expected):
        return float("inf")
    return max(relative_l2(a, b) for a, b in zip(actual, expected, strict=True))


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """`|actual - expected| / |expected|` in float64; infinite for other shapes and for NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = actual.double(), expected.double()
    apart = float((a - b).norm() / b.norm().clamp_min(1e-300))
    return apart if apart == apart else float("inf")


def call(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """What a copy returns; the call may change the copy, not the inputs.

    Raises:
        FuseqError: FQ102 if it raises.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model's own: whoever runs it has seen them
            return model(*(x.clone() for x in inputs))
    except Exception as error:
        shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
        location = raising_line(error)
        raise FuseqError(
            "FQ102",
            f"the model raised {type(error).__name__} on its example inputs ({shapes})",
            where=f"{location}: {location.code}" if location else None,
            why=str(error).splitlines()[0] if str(error) else None,
            fix="check the shape: --input 1x3x224x224, or example_inputs() in the model file",
        ) from error


def _scalars(model: nn.Module) -> dict[str, Any]:
    """Numbers and one-element buffers that modules hold, by path."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, int | float):
                found[f"{path}.{name}".lstrip(".")] = value
    return found


def other_shapes(inputs: tuple[Tensor, ...]) -> list[Shapes]:
    """Shapes to try: another batch and size; another size; another batch."""
    images = {tuple(x.shape[2:]) for x in inputs if x.dim() == 4}

    def resized(size: tuple[int, ...]) -> tuple[int, ...]:
        if len(images) > 1:  # images of several sizes keep their ratios
            return tuple(2 * n for n in size)
        return (size[0] + 32, size[1] + 64) if size[0] * size[1] <= 512 * 512 else (96, 160)

    def shape(x: Tensor, batch: int, resize: bool) -> tuple[int, ...]:
        if x.dim() < 2:
            return tuple(x.shape)
        size = tuple(x.shape[2:])
        size = resized(size) if resize and x.dim() == 4 else size
        return (x.shape[0] + batch, x.shape[1], *size)

    changes = [(1, True), (0, True), (1, False)] if images else [(1, False)]
    return [[shape(x, *change) for x in inputs] for change in changes]
