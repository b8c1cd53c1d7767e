"""`Builder`: grows a canonical graph node by node, knowing each value's shape as it goes.

Shapes come from running every node on fake tensors (no memory, no arithmetic), so a rule can ask
for the shape of its operands, and an op that cannot run is found at its own source line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fuseq import ops
from fuseq.program import SourceLocation, unused_name

Value: TypeAlias = Any
"""A graph node, a constant tensor, a number, None, or a tuple of these."""

Rule: TypeAlias = Callable[..., Value]

NARROW = (torch.float16, torch.bfloat16)
"""What programs do not compute in: casts to these are left out."""


class Builder:
    """Builds the canonical graph of one model.

    Attributes:
        graph: the graph so far.
        root: module tree that the graph's targets name.
        source: source line given to the nodes built next.
        scope: module path given to the nodes built next.
        narrowed: precisions below the program's that casts asked for, and did not get.
    """

    def __init__(self, names: Mapping[int, str], rules: Mapping[Any, Rule]) -> None:
        """Start an empty graph.

        Args:
            names: `id(tensor)` of each parameter and buffer -> its path in the model.
            rules: call target -> spelling rule.
        """
        self.graph, self.root = fx.Graph(), nn.Module()
        self.source: SourceLocation | None = None
        self.scope = ""
        self.narrowed: set[torch.dtype] = set()
        self._names, self._rules = names, rules
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._examples: dict[fx.Node, Any] = {}
        self._probes: dict[fx.Node, Any] = {}
        self._constants: dict[int, tuple[Tensor, fx.Node]] = {}
        self._sizes: dict[tuple[fx.Node, int], fx.Node] = {}

    # --- what rules ask ---

    def example(self, value: Value) -> Any:
        """Fake tensor (or int) a value has at the example inputs."""
        return self._examples[value] if isinstance(value, fx.Node) else value

    def is_tensor(self, value: Value) -> bool:
        """Whether a value is a tensor, as a node or as a constant."""
        return isinstance(self.example(value), Tensor)

    def shape(self, value: Value) -> tuple[int, ...]:
        """Shape at the example inputs."""
        return tuple(self.example(value).shape)

    def fixed_size(self, value: Value, dim: int) -> int | None:
        """One size, or None where it follows the size of the inputs."""
        size, probe = self.shape(value)[dim], self._probe(value).shape[dim]
        return size if size == probe else None

    def size(self, value: Value, dim: int) -> Value:
        """One size: a number where it is the model's (channels), a node where it is the input's."""
        dim %= len(self.shape(value))
        fixed = self.fixed_size(value, dim)
        if fixed is not None:
            return fixed
        if (value, dim) not in self._sizes:
            self._sizes[value, dim] = self._node(ops.sym_size, (value, dim), {})
        return self._sizes[value, dim]

    def sizes(self, value: Value) -> tuple[Value, ...]:
        """All sizes, each as `size` gives it."""
        return tuple(self.size(value, dim) for dim in range(len(self.shape(value))))

    # --- what rules build ---

    def input(self, name: str, example: Tensor, probe_shape: Sequence[int]) -> fx.Node:
        """A graph input.

        Args:
            name: of the input.
            example: its value at capture.
            probe_shape: another shape the model takes; a size is the input's if it differs here.
        """
        node = self.graph.placeholder(name)
        with self._fake:
            probe = torch.empty(tuple(probe_shape), dtype=example.dtype)
        return self._remember(node, self._faked(example), probe)

    def tensor(self, value: Value) -> fx.Node:
        """A value as a node; a constant tensor becomes a `get_attr`."""
        if not isinstance(value, Tensor):
            node: fx.Node = value
            return node
        if id(value) not in self._constants:
            name = self._names.get(id(value), "constant").replace(".", "_")
            name = unused_name(self.root, name)
            if isinstance(value, nn.Parameter):
                self.root.register_parameter(name, value)
            else:
                self.root.register_buffer(name, value.detach())
            node = self.graph.create_node("get_attr", name)
            fake = self._faked(value)
            self._constants[id(value)] = (value, self._remember(node, fake, fake))
        return self._constants[id(value)][1]

    def call(self, function: Callable[..., Any], *tensors: Value, **attributes: Any) -> fx.Node:
        """A call of a canonical function. Numbers among the operands become floats."""
        operands = tuple(self._operand(t) for t in tensors)
        return self._node(function, operands, attributes)

    def foreign(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call outside the vocabulary, as it is, except that it writes to a new tensor."""
        kwargs.pop("inplace", None)
        return self._node(_functional(target), self._lifted(args), self._lifted(kwargs))

    def shape_arithmetic(self, function: Callable[..., Any], a: Value, b: Value) -> Value:
        """Integer arithmetic on sizes: computed now if it can be, else a node."""
        if not isinstance(a, fx.Node) and not isinstance(b, fx.Node):
            return function(a, b)
        return self._node(function, (a, b), {})

    def module(self, module: nn.Module, state: Mapping[str, Tensor | None], x: Value) -> fx.Node:
        """A call of a canonical module whose parameters are the given tensors.

        Args:
            module: on the meta device; its parameters are replaced.
            state: attribute name -> tensor; a `Parameter` is shared, not copied.
            x: the input.
        """
        for name, tensor in state.items():
            if tensor is None:
                setattr(module, name, None)
            elif name in module._buffers:
                setattr(module, name, tensor.detach())
            else:
                shared = isinstance(tensor, nn.Parameter)
                setattr(module, name, tensor if shared else nn.Parameter(tensor.detach().clone()))
        known = (self._names[id(t)] for t in state.values() if id(t) in self._names)
        path = next(known, "").rpartition(".")[0] or self.scope or ops.MODULES[type(module)]
        path = self._attach(path, module.eval())
        node = self.graph.create_node(
            "call_module", path, (self.tensor(x),), {}, name=path.replace(".", "_")
        )
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            return self._run(node, module, (self.tensor(x),), {})
        # Norms and PReLU keep the shape; running them on fake tensors costs more than all the rest.
        return self._remember(node, self.example(self.tensor(x)), self._probe(self.tensor(x)))

    def call_target(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Any call the model makes: computed now if it depends on parameters only, else by rule."""
        if not mentions_node((args, kwargs)):
            function = getattr(args[0], target) if isinstance(target, str) else target
            with torch.no_grad():
                result = function(*(args[1:] if isinstance(target, str) else args), **kwargs)
            if isinstance(result, Tensor) and result.dtype in NARROW:
                self.narrowed.add(result.dtype)
                return args[0] if isinstance(args[0], Tensor) else result.float()
            return result
        rule = self._rules.get(target)
        if rule is None:
            return self.foreign(target, *args, **kwargs)
        kwargs = {_TORCH_NAMES.get(name, name): value for name, value in kwargs.items()}
        first = (kwargs.pop("input"),) if "input" in kwargs else ()
        return rule(self, *first, *args, **kwargs)

    def finish(self, result: Any) -> fx.GraphModule:
        """Close the graph with its output (a node or nested containers of nodes)."""
        self.graph.output(self._lifted(result))
        self.graph.eliminate_dead_code(is_impure_node=lambda n: n.op in ("placeholder", "output"))
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)

    # --- bookkeeping ---

    def _operand(self, value: Value) -> Value:
        if isinstance(value, tuple | list):
            return tuple(self._operand(v) for v in value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        return self.tensor(value)

    def _lifted(self, values: Any) -> Any:
        """Nested containers of values, with constant tensors as nodes."""
        return fx.node.map_aggregate(
            values, lambda v: self.tensor(v) if isinstance(v, Tensor) else v
        )

    def _node(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        op = "call_method" if isinstance(target, str) else "call_function"
        node = self.graph.create_node(op, target, args, kwargs, name=ops.FUNCTIONS.get(target))
        if not isinstance(target, str):
            return self._run(node, target, args, kwargs)
        return self._run(
            node, lambda x, *rest, **named: getattr(x, target)(*rest, **named), args, kwargs
        )

    def _run(self, node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> fx.Node:
        """Give a node its example and its probe, by running it on fake tensors."""
        with self._fake, torch.no_grad():
            example = function(
                *fx.node.map_arg(args, self.example), **fx.node.map_arg(kwargs, self.example)
            )
            try:
                probe = function(
                    *fx.node.map_arg(args, self._probe), **fx.node.map_arg(kwargs, self._probe)
                )
            except Exception:  # the recording holds at the captured size only
                probe = example
        return self._remember(node, example, probe)

    def _remember(self, node: fx.Node, example: Any, probe: Any) -> fx.Node:
        self._examples[node], self._probes[node] = example, probe
        if isinstance(example, Tensor):
            node.meta["shape"], node.meta["dtype"] = tuple(example.shape), example.dtype
        node.meta["source"], node.meta["scope"] = self.source, self.scope
        return node

    def _probe(self, value: Value) -> Any:
        return self._probes[value] if isinstance(value, fx.Node) else value

    def _faked(self, tensor: Tensor) -> Any:
        return self._fake.from_tensor(tensor.detach(), static_shapes=True)

    def _attach(self, path: str, module: nn.Module) -> str:
        owner, _, name = path.rpartition(".")
        parent = self.root
        for part in owner.split(".") if owner else ():
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        unique = unused_name(parent, name)
        parent.add_module(unique, module)
        return f"{owner}.{unique}" if owner else unique


_TORCH_NAMES = {"axis": "dim", "keepdims": "keepdim"}
"""NumPy's names of arguments, which torch takes too."""


def mentions_node(value: Any) -> bool:
    """Whether nested containers of values hold a graph node."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return bool(found)


def _functional(target: Any) -> Any:
    """The call that returns what an in-place call writes.

    Raises:
        ValueError: if there is none.
    """
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    if isinstance(target, torch._ops.OpOverload):
        in_place = target._schema.is_mutable
    if not in_place:
        return target
    home = Tensor if isinstance(target, str) else F if hasattr(F, name) else torch
    if isinstance(target, torch._ops.OpOverload) or not hasattr(home, name[:-1]):
        raise ValueError(f"`{name}` writes in place")
    return name[:-1] if isinstance(target, str) else getattr(home, name[:-1])
