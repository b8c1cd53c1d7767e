"""From a PyTorch module to a canonical `Program`.

Two front ends record what the model calls (`fuseq.recording`). One is believed only when its
program computes what the model computes, at the example inputs, at a second size and, because a
forward may branch on it, at sizes of the other parity.

The copy is traced in its *structural* form: containers in training mode, layers in eval, because
some re-parameterizable blocks fuse themselves inside `forward` when in eval.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from fuseq import verify
from fuseq.errors import FuseqError, first_line
from fuseq.program import Origin, Program
from fuseq.recording import record
from fuseq.source_lines import raising_line

SAME_OUTPUT = 1e-4
"""Relative L2 distance below which float32 outputs are the same: wrong programs differ by > 1e-2,
a block that folds itself in eval by < 1e-5."""

Run: TypeAlias = tuple[tuple[Tensor, ...], list[Tensor]]
"""Inputs, and the outputs the model gives for them."""


def capture(
    model: nn.Module,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    front_end: str = "auto",
) -> Program:
    """Capture a model as a program.

    Args:
        model: any module; not edited, its training mode does not matter.
        example_inputs: one tensor, or one per argument of `forward`.
        front_end: "export", "fx", or "auto": the one whose program is right at most sizes.

    Returns:
        A program equal to `model.eval()`, in the canonical vocabulary, with source locations.

    Raises:
        FuseqError: FQ005 for inputs that are no tensors, FQ007 for an unknown front end, FQ101
            when no front end can record the model, FQ102 when the model raises on the inputs,
            FQ103 for weights that are not finite, FQ104 when a recording computes something else.
    """
    if front_end not in ("auto", "fx", "export"):
        raise FuseqError(
            "FQ007", f"unknown front end '{front_end}'", fix="use 'auto', 'fx' or 'export'"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise FuseqError(
            "FQ101",
            "a scripted module has no Python forward to record",
            fix="pass the module that torch.jit.script or torch.jit.trace was given",
        )
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise FuseqError(
            "FQ005", "example inputs must be tensors", fix="pass a tensor or a tuple of tensors"
        )
    inputs = tuple(x.detach().clone() for x in inputs)
    _require_finite(model)
    first = (inputs, _outputs(model, inputs))
    second = _second_run(model, inputs)
    third = _run_at(model, inputs, _of_other_parity(inputs)) if second else None

    failures: list[tuple[str, FuseqError]] = []
    fixed: Program | None = None
    for name in ("fx", "export") if front_end == "auto" else (front_end,):
        for structural in (True, False):
            try:
                program = record(name, _prepared(model, structural), *_sizes(first, second))
                _require_same(model, name, program, first)
            except FuseqError as error:
                failures.append((name, error))
                continue
            bounds = program.origin.notes
            program.origin = Origin(model, name, _free(first, second), bounds)
            if second is None:
                return program
            try:
                _require_same(model, name, program, second)
            except FuseqError:
                fixed = fixed or program
                break
            if bounds or (third and _computes_otherwise(program, third)):
                fixed = fixed or program
                break
            return program
    if fixed is not None:
        note = "the program is valid at the captured input size only"
        fixed.origin = Origin(model, fixed.origin.front_end, notes=(note, *fixed.origin.notes))
        return fixed
    # Export records more than fx does, so what stops it is the obstacle.
    last = failures[-1][0]
    raise next(error for name, error in failures if name == last)


def _prepared(model: nn.Module, structural: bool) -> nn.Module:
    copied = _copied(model)
    for module in list(copied.modules()):
        if parametrize.is_parametrized(module):
            _fold_parametrizations(module)
    copied.requires_grad_(False)
    if structural:
        for module in copied.modules():
            module.training = any(True for _ in module.children())
    return copied


def _copied(model: nn.Module) -> nn.Module:
    """A deep copy in eval. Tensors that hooks computed (weight norm) are copied by value."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, computed).eval()


def _fold_parametrizations(module: nn.Module) -> None:
    """Replace computed weights (weight norm, spectral norm) by their values.

    `parametrize.remove_parametrizations` edits the class, which the user's module shares.
    """
    folded = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in folded.items():
        module.register_parameter(name, nn.Parameter(value.detach()))


# --- what the model computes --------------------------------------------------------------------


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model's own: whoever runs it has seen them
            result = _copied(model)(*(x.clone() for x in inputs))
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
    return _tensors(result)


def _tensors(result: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(result)
    others = sorted({type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)})
    if others or not leaves:
        raise FuseqError(
            "FQ101",
            f"forward returns {', '.join(others) or 'nothing'} where a tensor is needed",
            fix="wrap the model in a module that returns its tensors only",
        )
    return leaves


def _second_run(model: nn.Module, inputs: tuple[Tensor, ...]) -> Run | None:
    """Inputs of another batch and size, as far as the model takes them, and their outputs."""
    runs = (_run_at(model, inputs, shapes) for shapes in _other_shapes(inputs))
    return next((run for run in runs if run), None)


def _run_at(
    model: nn.Module, inputs: tuple[Tensor, ...], shapes: Sequence[tuple[int, ...]]
) -> Run | None:
    """Random inputs of these shapes with their outputs; None if the model does not take them."""
    generator = torch.Generator().manual_seed(0)
    candidate = tuple(
        torch.rand(shape, generator=generator).to(x.dtype)
        for shape, x in zip(shapes, inputs, strict=True)
    )
    try:
        return candidate, _outputs(model, candidate)
    except FuseqError:
        return None


def _of_other_parity(inputs: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [
        (*x.shape[:2], x.shape[2] + 1, x.shape[3] + 3) if x.dim() == 4 else tuple(x.shape)
        for x in inputs
    ]


def _other_shapes(inputs: tuple[Tensor, ...]) -> list[list[tuple[int, ...]]]:
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


def _free(first: Run, second: Run | None) -> tuple[tuple[int, int], ...]:
    """(input, dimension) pairs whose size the second run changed."""
    return (
        tuple(
            (index, dim)
            for index, (a, b) in enumerate(zip(first[0], second[0], strict=True))
            for dim in range(a.dim())
            if a.shape[dim] != b.shape[dim]
        )
        if second
        else ()
    )


def _sizes(first: Run, second: Run | None) -> tuple[tuple[Tensor, ...], list[tuple[int, ...]]]:
    """Example inputs, and shapes far from theirs along the line to the second run's.

    Far, so that no two different sizes inside the model meet by chance.
    """
    others = second[0] if second else first[0]
    far = [
        tuple(m + 32 * abs(n - m) for m, n in zip(a.shape, b.shape, strict=True))
        for a, b in zip(first[0], others, strict=True)
    ]
    return first[0], far


# --- refusals -----------------------------------------------------------------------------------


def _require_finite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise FuseqError(
                "FQ103",
                f"{bad} of {tensor.numel()} values of `{name}` are not finite",
                where=f"parameter `{name}`",
                fix="load a checkpoint from before training diverged",
            )


def _computes_otherwise(program: Program, run: Run) -> bool:
    """Whether a program gives other outputs than the model did; one that raises gives none."""
    inputs, expected = run
    try:
        actual = [y for y in verify.outputs(program, inputs) if isinstance(y, Tensor)]
    except Exception:
        return False
    pairs = zip(actual, expected, strict=True)
    return any(_relative_l2(a, b) > SAME_OUTPUT for a, b in pairs)


def _require_same(model: nn.Module, front_end: str, program: Program, run: Run) -> None:
    inputs, expected = run
    try:
        actual = [y for y in verify.outputs(program, inputs) if isinstance(y, Tensor)]
    except Exception as error:
        raise FuseqError("FQ104", f"the captured program raised: {first_line(error)}") from error
    if len(actual) != len(expected):
        raise FuseqError(
            "FQ104",
            f"the captured program has {len(actual)} outputs, the model {len(expected)}",
            why="forward returns something else in training mode than in eval",
            fix="return the same outputs in both",
        )
    distances = [_relative_l2(a, b) for a, b in zip(actual, expected, strict=True)]
    worst = max(distances, default=0.0)
    if worst <= SAME_OUTPUT:
        return
    again = [_relative_l2(a, b) for a, b in zip(_outputs(model, inputs), expected, strict=True)]
    if max(again) > SAME_OUTPUT:
        raise FuseqError(
            "FQ104",
            "the model is random in eval mode: the same input gives another output each time",
            why=f"two runs differ by {max(again):.1e} (relative L2)",
            fix="call dropout and noise with training=self.training",
        )
    raise FuseqError(
        "FQ104",
        f"output {distances.index(worst)} of the captured program is {worst:.1e} away from the "
        "model's",
        why=f"the {front_end} front end recorded another computation "
        "(control flow on values, or state that forward keeps)",
        fix="move the branch out of forward",
    )


def _relative_l2(actual: Tensor, expected: Tensor) -> float:
    """`|actual - expected| / |expected|` in float64; infinite for other shapes and for NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    a, b = actual.double(), expected.double()
    distance = float((a - b).norm() / b.norm().clamp_min(1e-300))
    return distance if distance == distance else float("inf")
