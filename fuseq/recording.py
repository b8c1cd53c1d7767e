"""The two front ends: `torch.fx` symbolic tracing and `torch.export`, each replayed by rule.

A front end records what a model calls. The recording is visited node by node, and each call is
handed to the spelling rules, so that both end in the same vocabulary. Both corrupt the module they
trace: give them a copy.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.fx.proxy import TraceError
from torch.utils import _pytree as pytree
from torch.utils._sympy.numbers import int_oo

from fuseq.aliasing import stale_read
from fuseq.build import Builder, Value
from fuseq.errors import FuseqError, first_line
from fuseq.model_runs import SAME_OUTPUT
from fuseq.program import Origin, Program
from fuseq.quiet import quiet_torch
from fuseq.source_lines import raising_line, recorded_line
from fuseq.spelling import RULES

LONGEST_SIZE = 100
"""Arithmetic operations in one size beyond which export takes minutes to reason about it.

Padding to "same" at each stride triples them: a network that does so five times has 1000.
"""

Exported: TypeAlias = tuple[torch.export.ExportedProgram, set[torch.dtype]]
"""A functional export, and the precisions below the model's that it asks for."""

_NORMS = (
    nn.modules.batchnorm._BatchNorm.forward,
    nn.SyncBatchNorm.forward,
    nn.modules.instancenorm._InstanceNorm.forward,
)
"""What fx cannot look into: they branch on the shape. Subclasses with the same forward count."""


@dataclass(frozen=True)
class Recording:
    """What a front end made of a model.

    Attributes:
        program: in the canonical vocabulary, with an empty origin.
        notes: what the recording leaves out, one sentence each.
        tolerance: relative L2 distance its outputs may have from the model's.
        largest: sizes above which the model branches.
        smallest: (input, dimension) -> size below which the model branches or raises.
    """

    program: Program
    notes: tuple[str, ...] = ()
    tolerance: float = SAME_OUTPUT
    largest: tuple[int, ...] = ()
    smallest: Mapping[tuple[int, int], int] = field(default_factory=dict)


def record(
    front_end: str, model: nn.Module, inputs: tuple[Tensor, ...], probes: Sequence[tuple[int, ...]]
) -> Recording:
    """Record a model and spell the recording canonically.

    Args:
        front_end: "fx" or "export".
        model: a copy that may be corrupted.
        inputs: example inputs.
        probes: other shapes of the inputs that the model takes; sizes that differ there are free.

    Raises:
        FuseqError: FQ101 if the front end cannot record the model, FQ104 if its recording would
            compute something else.
    """
    with quiet_torch():
        if front_end == "fx":
            return _from_fx(model, inputs, probes)
        return _from_export(model, inputs, probes)


# --- torch.fx -----------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        # torch's own looks through all parameters of the model each time one is read.
        name = self.names.get(id(attr_val)) if isinstance(attr_val, nn.Parameter) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).forward in _NORMS


def _from_fx(
    model: nn.Module, inputs: tuple[Tensor, ...], probes: Sequence[tuple[int, ...]]
) -> Recording:
    parameters = list(inspect.signature(model.forward).parameters.values())
    extra = {p.name: p.default for p in parameters[len(inputs) :] if p.default is not p.empty}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer(model).trace(model, concrete_args=extra)
    except Exception as error:
        raise _cannot_capture("torch.fx", error) from error
    stale = stale_read(graph)
    if stale:
        raise _stale_read(*stale)
    state = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    build = Builder({id(tensor): name for name, tensor in state.items()}, RULES)
    names = _argument_names(model, len(inputs))
    waiting = list(zip(names, inputs, probes, strict=True))
    defaults = pytree.tree_leaves(list(extra.values()))

    def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        if node.op == "placeholder":
            return build.input(*waiting.pop(0)) if waiting else defaults.pop(0)
        if node.op == "get_attr":
            value: Any = model
            for part in str(node.target).split("."):
                value = getattr(value, part)
            return value
        if node.op == "call_module":
            return _norm(build, model.get_submodule(str(node.target)), *args, **kwargs)
        if isinstance(node.target, type) and issubclass(node.target, tuple):
            return node.target(*args)  # of a named tuple
        return build.call_target(node.target, args, kwargs)

    return _finish(build, _replay(graph, build, visit), names, inputs)


def _norm(build: Builder, norm: Any, input: Value) -> Value:
    """A leaf, as its functional call in eval."""
    statistics = (norm.running_mean, norm.running_var)
    if isinstance(norm, nn.modules.instancenorm._InstanceNorm):
        rule, own = RULES[F.instance_norm], statistics[0] is None
    else:
        rule, own = RULES[F.batch_norm], False
    return rule(build, input, *statistics, norm.weight, norm.bias, own, eps=norm.eps)


# --- torch.export -------------------------------------------------------------------------------


def _from_export(
    model: nn.Module, inputs: tuple[Tensor, ...], probes: Sequence[tuple[int, ...]]
) -> Recording:
    exported, narrowed = _run_export(model, inputs, probes)
    signature, graph = exported.graph_signature, exported.graph_module.graph
    held: dict[str, Any] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    state = {**exported.constants, **exported.state_dict}
    build = Builder({id(tensor): name for name, tensor in state.items()}, RULES)
    build.narrowed |= narrowed
    names = _argument_names(model, len(inputs))
    waiting = list(zip(names, inputs, probes, strict=True))

    def visit(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        if node.op == "placeholder":
            return state[held[node.name]] if node.name in held else build.input(*waiting.pop(0))
        if node.op == "get_attr":
            return getattr(exported.graph_module, str(node.target))
        if "assert" in str(node.target) or "sym_constrain" in str(node.target):
            return None
        return build.call_target(node.target, args, kwargs)

    results = _replay(graph, build, visit)
    # What the model wrote into its inputs and buffers comes first; only what it returns counts.
    returned = [
        value
        for spec, value in zip(signature.output_specs, results, strict=True)
        if spec.kind is OutputKind.USER_OUTPUT
    ]
    assert exported.call_spec.out_spec is not None
    result = pytree.tree_unflatten(returned, exported.call_spec.out_spec)
    largest, smallest = _branches(exported, graph, held)
    recording = _finish(build, result, names, inputs)
    notes = tuple(f"the model branches on a size above {n}" for n in largest)
    return replace(recording, notes=(*notes, *recording.notes), largest=largest, smallest=smallest)


def _branches(
    exported: torch.export.ExportedProgram, graph: fx.Graph, held: Mapping[str, Any]
) -> tuple[tuple[int, ...], dict[tuple[int, int], int]]:
    """Sizes at which a branch was recorded as the example inputs take it.

    Returns:
        The largest sizes it holds for, and the smallest by (input, dimension).
    """
    ranges = {str(symbol): r for symbol, r in exported.range_constraints.items()}
    largest = sorted({int(r.upper) for r in ranges.values() if r.upper != int_oo})
    inputs = [n for n in graph.nodes if n.op == "placeholder" and n.name not in held]
    smallest = {
        (index, dim): int(ranges[str(size)].lower)
        for index, node in enumerate(inputs)
        for dim, size in enumerate(node.meta["val"].shape)
        if dim >= 2 and str(size) in ranges and int(ranges[str(size)].lower) > 2
    }
    return tuple(largest), smallest


def _run_export(
    model: nn.Module, inputs: tuple[Tensor, ...], probes: Sequence[tuple[int, ...]]
) -> Exported:
    """Export with the sizes free that differ in the probes; else the batch, else none."""
    pairs = list(zip(inputs, probes, strict=True))
    differing = [{d for d, n in enumerate(x.shape) if n != probe[d]} for x, probe in pairs]
    for free in (differing, [dims & {0} for dims in differing]):
        if any(free):
            with contextlib.suppress(Exception):
                return _free_export(copy.deepcopy(model), inputs, free)
    try:
        return _exported(model, inputs, None)
    except Exception as error:
        raise _cannot_capture("torch.export", error) from error


def _free_export(
    model: nn.Module, inputs: tuple[Tensor, ...], free: Sequence[Collection[int]]
) -> Exported:
    for module in model.modules():
        module.register_forward_hook(_require_short_sizes)
    # A size of one would be baked in, so a batch of two is recorded.
    larger = tuple(
        torch.cat([x, x]) if 0 in dims and x.shape[0] == 1 else x
        for x, dims in zip(inputs, free, strict=True)
    )
    dynamic = tuple(dict.fromkeys(sorted(dims), torch.export.Dim.AUTO) for dims in free)
    return _exported(model, larger, _per_argument(model, dynamic))


def _require_short_sizes(module: nn.Module, inputs: Any, output: Any) -> None:
    sizes = output.shape if isinstance(output, Tensor) else ()
    for size in sizes:
        if isinstance(size, torch.SymInt) and size.node.expr.count_ops() > LONGEST_SIZE:
            raise ValueError("sizes are long expressions of the input's")


def _exported(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_shapes: Any) -> Exported:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes, strict=False)
        narrowed = _leave_autocast(exported)
        return exported.run_decompositions({}), narrowed


def _leave_autocast(exported: torch.export.ExportedProgram) -> set[torch.dtype]:
    """Precisions that regions under `torch.autocast` ask for; what checks them is erased.

    Making the graph functional forgets such regions at some ops, and fails at the checks.
    """
    asked: set[torch.dtype] = set()
    for graph in (m for m in exported.graph_module.modules() if isinstance(m, fx.GraphModule)):
        for node in list(graph.graph.nodes):
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                graph.graph.erase_node(node)
            elif node.target is torch.ops.higher_order.wrap_with_autocast:
                _, dtype, enabled, *_ = node.args
                asked |= {dtype} if enabled else set()
        graph.recompile()
    return asked


def _per_argument(model: nn.Module, dynamic: tuple[Any, ...]) -> Any:
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    return (dynamic,) if kinds[:1] == [inspect.Parameter.VAR_POSITIONAL] else dynamic


# --- both ---------------------------------------------------------------------------------------


def _replay(
    graph: fx.Graph,
    build: Builder,
    visit: Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Value],
) -> Any:
    """Visit a recorded graph in order; returns the recorded output with canonical values."""
    values: dict[fx.Node, Value] = {}
    for node in graph.nodes:
        build.source, build.scope = recorded_line(node), _scope(node)
        args, kwargs = (fx.node.map_arg(v, values.__getitem__) for v in (node.args, node.kwargs))
        if node.op == "output":
            return args[0]
        try:
            values[node] = visit(node, args, kwargs)
        except Exception as error:
            raise FuseqError(
                "FQ101",
                f"cannot take `{node.name}` into the graph: {first_line(error)}",
                where=_where(build, node),
                fix="write this line with plain tensor operations",
            ) from error
    raise AssertionError("a recorded graph has an output")


def _where(build: Builder, node: fx.Node) -> str:
    if build.source is None:
        return build.scope or node.name
    return f"{build.source}: {build.source.code}"


def _scope(node: fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] for entry in stack.values() if isinstance(entry, tuple)]
    return re.sub(r"^L\['self'\]\.?", "", str(paths[-1])) if paths else ""


def _finish(
    build: Builder, result: Any, names: Sequence[str], inputs: tuple[Tensor, ...]
) -> Recording:
    graph = build.finish(_parts(build, result))
    program = Program(graph, inputs, Origin(nn.Module(), ""), tuple(names), ())
    count = len(program.outputs())
    program.output_names = ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))
    narrowed = sorted(str(dtype).removeprefix("torch.") for dtype in build.narrowed)
    notes = (f"casts to {', '.join(narrowed)} are left out: the program keeps its precision",)
    coarsest = max((torch.finfo(dtype).eps for dtype in build.narrowed), default=0.0)
    return Recording(program, notes if narrowed else (), max(SAME_OUTPUT, 4 * coarsest))


def _parts(build: Builder, result: Any) -> Any:
    """A result whose nodes are tensors each: calls that return several are taken apart."""
    return pytree.tree_map(
        lambda value: tuple(build.foreign(operator.getitem, value, i)
                            for i in range(len(build.example(value))))
        if isinstance(build.example(value), tuple | list) else value,
        result,
    )  # fmt: skip


def _argument_names(model: nn.Module, count: int) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters.values()
    named = [p.name for p in parameters if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    return tuple(named[i] if i < len(named) else f"input_{i}" for i in range(count))


def _cannot_capture(front_end: str, error: Exception) -> FuseqError:
    location = raising_line(error)
    where = f"{location}: {location.code}" if location else None
    if isinstance(error, TraceError | GuardOnDataDependentSymNode):
        return FuseqError(
            "FQ101",
            f"{front_end} cannot record the model: it branches on a value known only at run time",
            where=where,
            why="the graph must be the same for every input value",
            fix="compute the condition from shapes or attributes, or use torch.where",
        )
    return FuseqError(
        "FQ101",
        f"{front_end} cannot record the model: {first_line(error)}",
        where=where,
        fix="write this line with plain tensor operations",
    )


def _stale_read(write: fx.Node, read: fx.Node) -> FuseqError:
    at, later = recorded_line(write), recorded_line(read)
    return FuseqError(
        "FQ104",
        "a value is written in place and read again afterwards",
        where=f"{at}: {at.code}" if at else f"`{write.name}`",
        why=f"torch.fx records the old value for the read at {later or read.name}",
        fix="write it out of place, or use the export front end",
    )
