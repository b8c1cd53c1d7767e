"""From a PyTorch module to a canonical `Program`.

Two front ends record what the model calls: `torch.export` (non-strict, made functional) and
`torch.fx` symbolic tracing. Both corrupt the module they trace, so both get a deep copy. Both
recordings go through the same spelling rules. A front end is believed only when its program
computes what the model computes, at the example inputs and at a second size.

The copy is traced in its *structural* form: containers in training mode, layers in eval, because
some re-parameterizable blocks fuse themselves inside `forward` when in eval.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fuseq.build import Builder, Value
from fuseq.errors import FuseqError
from fuseq.program import Origin, Program, SourceLocation
from fuseq.spelling import RULES

SAME_OUTPUT = 1e-4
"""Relative L2 distance below which float32 outputs are the same: wrong programs differ by > 1e-2,
a block that folds itself in eval by < 1e-5."""

_LEAVES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.InstanceNorm2d)


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
        FuseqError: FQ005 for inputs that are no tensors, FQ101 when no front end can record the
            model, FQ102 when the model raises on the inputs, FQ103 for weights that are not
            finite, FQ104 when a recording computes something else.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    if not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise FuseqError(
            "FQ005", "example inputs must be tensors", fix="pass a tensor or a tuple of tensors"
        )
    inputs = tuple(x.detach().clone() for x in inputs)
    _require_finite(model)
    expected = _reference(model, inputs)
    second = _second_inputs(model, inputs)

    failures: list[FuseqError] = []
    fixed: Program | None = None
    for name in ("fx", "export") if front_end == "auto" else (front_end,):
        for structural in (True, False):
            try:
                program = _FRONT_ENDS[name](_prepared(model, structural), inputs)
                program.origin = Origin(model, name)
                _require_same(program, inputs, expected)
            except FuseqError as error:
                failures.append(error)
                continue
            if second is None:
                return program
            try:
                _require_same(program, second, _reference(model, second))
            except FuseqError:
                fixed = fixed or program
                break
            program.origin = Origin(model, name, _changed(inputs, second))
            return program
    if fixed is not None:
        note = "the program is valid at the captured input size only"
        fixed.origin = Origin(model, fixed.origin.front_end, notes=(note,))
        return fixed
    raise failures[0]


def _prepared(model: nn.Module, structural: bool) -> nn.Module:
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    if structural:
        for module in copied.modules():
            module.training = any(True for _ in module.children())
    return copied


def _reference(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    copied = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            return copied(*inputs)
    except Exception as error:
        shapes = ", ".join("x".join(map(str, x.shape)) for x in inputs)
        location = user_frame(error)
        raise FuseqError(
            "FQ102",
            f"the model raised {type(error).__name__} on its example inputs ({shapes})",
            where=str(location) if location else None,
            why=str(error).splitlines()[0] if str(error) else None,
            fix="check the shape: --input 1x3x224x224, or example_inputs() in the model file",
        ) from error


def _second_inputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Inputs of another batch and, if the model takes it, another size; None if it takes neither."""
    images = {x.shape[2:] for x in inputs if x.dim() == 4}
    sizes: list[tuple[int, ...] | None] = [None]
    if len(images) == 1:
        height, width = next(iter(images))
        small = height * width <= 512 * 512
        sizes.insert(0, (height + 32, width + 64) if small else (96, 160))
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        shapes = [
            (x.shape[0] + 1, x.shape[1], *(size if size and x.dim() == 4 else x.shape[2:]))
            if x.dim() > 1
            else tuple(x.shape)
            for x in inputs
        ]
        candidate = tuple(
            torch.rand(shape, generator=generator).to(x.dtype)
            for shape, x in zip(shapes, inputs, strict=True)
        )
        try:
            _reference(model, candidate)
        except FuseqError:
            continue
        return candidate
    return None


def _changed(inputs: Sequence[Tensor], second: Sequence[Tensor]) -> tuple[tuple[int, int], ...]:
    return tuple(
        (index, dim)
        for index, (a, b) in enumerate(zip(inputs, second, strict=True))
        for dim in range(a.dim())
        if a.shape[dim] != b.shape[dim]
    )


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


def _require_same(program: Program, inputs: tuple[Tensor, ...], expected: Any) -> None:
    try:
        with torch.no_grad():
            actual = program.module(*inputs)
    except Exception as error:
        raise FuseqError("FQ104", f"the captured program raised: {error}") from error
    for index, (a, b) in enumerate(zip(_tensors(actual), _tensors(expected), strict=True)):
        distance = relative_l2(a, b)
        if a.shape != b.shape or not distance <= SAME_OUTPUT:
            raise FuseqError(
                "FQ104",
                f"output {index} of the captured program is {distance:.1e} away from the model's",
                why=f"the {program.origin.front_end} front end recorded another computation "
                "(randomness, control flow on values, or aliased in-place writes)",
                fix="write the in-place update out of place, or move the branch out of forward",
            )


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """`|actual - expected| / |expected|` in float64; infinite if shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    a, b = actual.double(), expected.double()
    return float((a - b).norm() / b.norm().clamp_min(1e-300)) if b.numel() else 0.0


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


# --- the two recordings -------------------------------------------------------------------------


def _from_export(model: nn.Module, inputs: tuple[Tensor, ...]) -> Program:
    exported = _run_export(model, inputs)
    signature, graph = exported.graph_signature, exported.graph_module.graph
    held: dict[str, Any] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    state = {**exported.constants, **exported.state_dict}
    build = Builder({id(tensor): name for name, tensor in state.items()}, RULES)
    names = _argument_names(model, len(inputs))
    waiting = list(zip(names, inputs, strict=True))

    def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        if node.op == "placeholder":
            return state[held[node.name]] if node.name in held else build.input(*waiting.pop(0))
        if node.op == "get_attr":
            return getattr(exported.graph_module, str(node.target))
        if "assert" in str(node.target) or "sym_constrain" in str(node.target):
            return None
        return build.call_target(node.target, args, kwargs)

    results = _replay(graph, build, visit)
    assert exported.call_spec.out_spec is not None
    return _finish(
        build, pytree.tree_unflatten(results, exported.call_spec.out_spec), names, inputs
    )


def _run_export(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    auto = torch.export.Dim.AUTO
    attempts: list[tuple[tuple[Tensor, ...], Any]] = [(inputs, None)]
    if all(x.dim() > 1 for x in inputs):
        # A size of one would be baked in, so the dynamic attempt records a batch of two.
        pairs = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in inputs)
        free = [{0: auto, 2: auto, 3: auto} if x.dim() == 4 else {0: auto} for x in inputs]
        attempts.insert(0, (pairs, tuple(free)))
    for attempt, (example, dynamic) in enumerate(attempts):
        last = attempt == len(attempts) - 1
        try:
            with warnings.catch_warnings(), torch.no_grad(), _quiet("torch"):
                warnings.simplefilter("ignore")
                traced = model if last else copy.deepcopy(model)
                shapes = {"dynamic_shapes": _per_argument(model, dynamic)} if dynamic else {}
                exported = torch.export.export(traced, example, strict=False, **shapes)
                return exported.run_decompositions({})
        except Exception as error:
            if last:
                raise _cannot_capture("torch.export", error) from error
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a library's log off the terminal: what it says comes back as the exception."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _per_argument(model: nn.Module, dynamic: tuple[Any, ...]) -> Any:
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    return (dynamic,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else dynamic


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__()
        self.record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _LEAVES


def _from_fx(model: nn.Module, inputs: tuple[Tensor, ...]) -> Program:
    parameters = list(inspect.signature(model.forward).parameters.values())
    extra = {p.name: p.default for p in parameters[len(inputs) :] if p.default is not p.empty}
    try:
        graph = _Tracer().trace(model, concrete_args=extra)
    except Exception as error:
        raise _cannot_capture("torch.fx", error) from error
    state = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    build = Builder({id(tensor): name for name, tensor in state.items()}, RULES)
    names = _argument_names(model, len(inputs))
    waiting = list(zip(names, inputs, strict=True))

    def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        if node.op == "placeholder":
            return build.input(*waiting.pop(0)) if waiting else extra.get(str(node.target))
        if node.op == "get_attr":
            value: Any = model
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_module":
            return _norm(build, model.get_submodule(str(node.target)), args[0])
        return build.call_target(node.target, args, kwargs)

    return _finish(build, _replay(graph, build, visit), names, inputs)


def _norm(build: Builder, norm: nn.Module, x: Value) -> Value:
    statistics = (norm.running_mean, norm.running_var)
    if isinstance(norm, nn.InstanceNorm2d):
        batch = norm.training or not norm.track_running_stats
        rule = RULES[torch.nn.functional.instance_norm]
        return rule(build, x, norm.weight, norm.bias, *statistics, batch, norm.momentum, norm.eps)
    rule = RULES[torch.nn.functional.batch_norm]
    return rule(build, x, *statistics, norm.weight, norm.bias, eps=norm.eps)


_FRONT_ENDS: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], Program]] = {
    "export": _from_export,
    "fx": _from_fx,
}


def _replay(
    graph: fx.Graph,
    build: Builder,
    visit: Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Value],
) -> Any:
    """Visit a recorded graph in order; returns the recorded output with canonical values."""
    values: dict[fx.Node, Value] = {}
    for node in graph.nodes:
        build.source, build.scope = _location(node), _scope(node)
        args, kwargs = (fx.node.map_arg(v, values.__getitem__) for v in (node.args, node.kwargs))
        if node.op == "output":
            return args[0]
        try:
            values[node] = visit(node, args, kwargs)
        except Exception as error:
            raise FuseqError(
                "FQ101",
                f"cannot take `{node.name}` into the graph: {error}",
                where=str(build.source or build.scope or node.name),
                fix="rewrite this line with plain tensor operations",
            ) from error
    raise AssertionError("a recorded graph has an output")


def _finish(
    build: Builder, result: Any, names: Sequence[str], inputs: tuple[Tensor, ...]
) -> Program:
    module = build.finish(result)
    outputs = len(pytree.tree_leaves(result))
    labels = ("output",) if outputs == 1 else tuple(f"output_{i}" for i in range(outputs))
    return Program(module, inputs, Origin(nn.Module(), ""), tuple(names), labels)


def _argument_names(model: nn.Module, count: int) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    return tuple(named[i] if i < len(named) else f"input_{i}" for i in range(count))


# --- source locations ---------------------------------------------------------------------------

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)[^\n]*\n\s*(?P<code>[^\n]*)')


def _location(node: fx.Node) -> SourceLocation | None:
    """Innermost frame outside torch of the stack a front end recorded."""
    frames = [
        SourceLocation(m["file"], int(m["line"]), m["code"].strip())
        for m in _FRAME.finditer(node.meta.get("stack_trace") or "")
    ]
    return next((frame for frame in reversed(frames) if _is_users(frame.file)), None)


def _scope(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry, tuple)]
    return re.sub(r"^L\['self'\]\.?", "", str(paths[-1])) if paths else ""


def user_frame(error: BaseException) -> SourceLocation | None:
    """Innermost frame of an exception that is the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    users: Iterator[traceback.FrameSummary] = (f for f in reversed(frames) if _is_users(f.filename))
    frame = next(users, None)
    return SourceLocation(frame.filename, frame.lineno or 0, frame.line or "") if frame else None


def _is_users(file: str) -> bool:
    return not re.search(r"[/\\](torch|fuseq|sympy|importlib)[/\\]|^<", file)


def _cannot_capture(front_end: str, error: Exception) -> FuseqError:
    location = user_frame(error)
    return FuseqError(
        "FQ101",
        f"{front_end} cannot record the model: {str(error).strip().splitlines()[0]}",
        where=f"{location}: {location.code}" if location else None,
        why="the graph must be the same for every input value",
        fix="compute the condition from shapes or attributes, not from tensor values",
    )
