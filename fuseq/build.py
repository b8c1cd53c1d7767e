"""`Builder`: grows a canonical graph node by node, knowing each value's shape as it goes.

Shapes come from running every node on fake tensors (no memory, no arithmetic), so a rule can ask
for the shape of its operands, and an op that cannot run is found at its own source line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fuseq import ops
from fuseq.program import SourceLocation

Value: TypeAlias = Any
"""A graph node, a constant tensor, a number, None, or a tuple of these."""

Rule: TypeAlias = Callable[..., Value]


class Builder:
    """Builds the canonical graph of one model.

    Attributes:
        graph: the graph so far.
        root: module tree that the graph's targets name.
        source: source line given to the nodes built next.
        scope: module path given to the nodes built next.
    """

    def __init__(self, names: Mapping[int, str], rules: Mapping[Any, Rule]) -> None:
        """Args:
        names: `id(tensor)` of each parameter and buffer -> its path in the model.
        rules: call target -> spelling rule.
        """
        self.graph, self.root = fx.Graph(), nn.Module()
        self.source: SourceLocation | None = None
        self.scope = ""
        self._names, self._rules = names, rules
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._examples: dict[fx.Node, Any] = {}
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

    def size(self, value: Value, dim: int) -> Value:
        """One size: a number where it is the model's (channels), a node where it is the input's."""
        shape = self.shape(value)
        dim %= len(shape)
        if not isinstance(value, fx.Node) or (dim == 1 and len(shape) == 4) or len(shape) == 1:
            return shape[dim]
        if (value, dim) not in self._sizes:
            self._sizes[value, dim] = self._node(ops.sym_size, (value, dim), {})
        return self._sizes[value, dim]

    # --- what rules build ---

    def input(self, name: str, example: Tensor) -> fx.Node:
        """A graph input."""
        node = self.graph.placeholder(name)
        return self._remember(node, self._fake.from_tensor(example, static_shapes=True))

    def tensor(self, value: Value) -> fx.Node:
        """A value as a node; a constant tensor becomes a `get_attr`."""
        if not isinstance(value, Tensor):
            node: fx.Node = value
            return node
        if id(value) not in self._constants:
            name = self._unique(self._names.get(id(value), "constant").replace(".", "_"))
            if isinstance(value, nn.Parameter):
                self.root.register_parameter(name, value)
            else:
                self.root.register_buffer(name, value.detach())
            node = self.graph.create_node("get_attr", name)
            self._constants[id(value)] = (value, self._remember(node, self._faked(value)))
        return self._constants[id(value)][1]

    def call(self, function: Callable[..., Any], *tensors: Value, **attributes: Any) -> fx.Node:
        """A call of a canonical function. Numbers among the operands become floats."""
        operands = tuple(self._operand(t) for t in tensors)
        return self._node(function, operands, attributes)

    def foreign(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call outside the vocabulary, as it is."""
        lift = lambda v: self.tensor(v) if isinstance(v, Tensor) else v  # noqa: E731
        args, kwargs = fx.node.map_aggregate(args, lift), fx.node.map_aggregate(kwargs, lift)
        return self._node(target, args, kwargs)

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
        with self._fake, torch.no_grad():
            example = module(self.example(self.tensor(x)))
        return self._remember(node, example)

    def call_target(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Value:
        """Any call the model makes: computed now if it depends on parameters only, else by rule."""
        if not _mentions_node((args, kwargs)):
            function = getattr(args[0], target) if isinstance(target, str) else target
            with torch.no_grad():
                return function(*(args[1:] if isinstance(target, str) else args), **kwargs)
        rule = self._rules.get(target)
        return rule(self, *args, **kwargs) if rule else self.foreign(target, *args, **kwargs)

    def finish(self, result: Any) -> fx.GraphModule:
        """Close the graph with its output (a node or nested containers of nodes)."""
        lift = lambda v: self.tensor(v) if isinstance(v, Tensor) else v  # noqa: E731
        self.graph.output(fx.node.map_aggregate(result, lift))
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

    def _node(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        op = "call_method" if isinstance(target, str) else "call_function"
        node = self.graph.create_node(op, target, args, kwargs, name=ops.FUNCTIONS.get(target))
        args, kwargs = (fx.node.map_arg(v, self.example) for v in (args, kwargs))
        function = getattr(args[0], target) if isinstance(target, str) else target
        with self._fake, torch.no_grad():
            return self._remember(
                node, function(*(args[1:] if op == "call_method" else args), **kwargs)
            )

    def _remember(self, node: fx.Node, example: Any) -> fx.Node:
        self._examples[node] = example
        if isinstance(example, Tensor):
            node.meta["shape"], node.meta["dtype"] = tuple(example.shape), example.dtype
        node.meta["source"], node.meta["scope"] = self.source, self.scope
        return node

    def _faked(self, tensor: Tensor) -> Any:
        return self._fake.from_tensor(tensor.detach(), static_shapes=True)

    def _unique(self, name: str) -> str:
        unique, count = name, 1
        while hasattr(self.root, unique):
            unique, count = f"{name}_{count}", count + 1
        return unique

    def _attach(self, path: str, module: nn.Module) -> str:
        owner, _, name = path.rpartition(".")
        parent = self.root
        for part in owner.split(".") if owner else ():
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        unique, count = name, 1
        while hasattr(parent, unique):
            unique, count = f"{name}_{count}", count + 1
        parent.add_module(unique, module)
        return f"{owner}.{unique}" if owner else unique


def _mentions_node(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(value, lambda node: found.append(node) or node)
    return bool(found)
