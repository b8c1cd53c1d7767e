"""`Program`: a model as one graph in the canonical vocabulary of `fuseq.ops`.

A program owns its `torch.fx.GraphModule`. A pass edits a clone of the program it is given;
nobody else edits one.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Never

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from fuseq.quant.table import QuantizationTable


def unused_name(module: nn.Module, name: str) -> str:
    """A name that is no attribute of a module yet: the one wished for, or it with a number."""
    unique, count = name, 1
    while hasattr(module, unique):
        unique, count = f"{name}_{count}", count + 1
    return unique


def copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy with its own weights, as `copy.deepcopy` makes one, but without copying empty hooks.

    Args:
        module: any; what is not torch's own is deep-copied.
        memo: of `copy.deepcopy`: what was copied, so that what is shared stays shared.
    """
    if id(module) in memo or not type(module).__module__.startswith("torch.nn.modules"):
        return copy.deepcopy(module, memo)
    memo[id(module)] = other = copy.copy(module)
    for name, value in vars(other).items():
        if isinstance(value, dict):
            vars(other)[name] = value.copy()
    for held in (other._parameters, other._buffers):
        held.update(copy.deepcopy(dict(held), memo))  # type: ignore[arg-type]
    other._modules.update({name: copied(m, memo) for name, m in other._modules.items() if m})
    return other


@dataclass(frozen=True)
class SourceLocation:
    """Line of the user's model that a node was traced from."""

    file: str
    line: int
    code: str = ""

    def __str__(self) -> str:
        return f"{self.file.rsplit('/', 1)[-1]}:{self.line}"


@dataclass(frozen=True)
class PassRecord:
    """What one pass did to a program.

    Attributes:
        name: the pass and its options, as it is spelled on the command line.
        rewrites: how many rewrites it reports.
        details: what the pass noted (fusion certificates, refusals), in its own types.
        error: measured distance from the program before, by the pass's promise.
    """

    name: str
    rewrites: int
    details: tuple[Any, ...] = ()
    error: float | None = None


@dataclass(frozen=True)
class Origin:
    """Where a program was captured from: the user's module, untouched, and the front end used.

    Attributes:
        module: the user's own module (weights shared, never edited).
        front_end: "export" or "fx".
        dynamic: (input index, dimension) pairs that may change from call to call.
        notes: what capture did that the user should know, one sentence each.
    """

    module: nn.Module
    front_end: str
    dynamic: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class Program:
    """A captured model.

    Attributes:
        module: the graph, in the canonical vocabulary; callable.
        example_inputs: float tensors the model was captured with, never edited.
        origin: the user's model and how it was captured.
        input_names: one name per graph input.
        output_names: one name per graph output tensor, in flattened order.
        history: one record per pass that ran.
        quantization: grids and integers, once `quantize` ran.
        report: numbers of the fusion, as `fuseq fuse --json` prints them, once `fuseq.fuse` ran.
        notes: details the running pass leaves for its record (see `note`).
    """

    module: fx.GraphModule
    example_inputs: tuple[Tensor, ...]
    origin: Origin
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    history: tuple[PassRecord, ...] = ()
    quantization: QuantizationTable | None = None
    report: Mapping[str, Any] | None = None
    notes: list[Any] = field(default_factory=list)

    @property
    def graph(self) -> fx.Graph:
        """The graph of `module`."""
        return self.module.graph

    def inputs(self) -> list[fx.Node]:
        """Input nodes, in the order of `input_names`."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    def outputs(self) -> list[fx.Node]:
        """Nodes whose values are the outputs, in the order of `output_names`."""
        last = next(node for node in reversed(self.graph.nodes) if node.op == "output")
        return [leaf for leaf in pytree.tree_leaves(last.args) if isinstance(leaf, fx.Node)]

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the program. A quantized one runs in integers, with its profile's arithmetic."""
        if self.quantization is None:
            return self.module(*inputs)
        from fuseq.quant.executor import execute

        return execute(self, inputs, intermediates=False).result

    def __repr__(self) -> str:
        """One line: the model's name, its operations, its form."""
        from fuseq.display import program_line

        return program_line(self)

    def _repr_html_(self) -> str:
        from fuseq.display import program_html

        return program_html(self)

    def clone(self) -> Program:
        """A program with its own graph, weights and metadata; the origin stays shared."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        """A clone that shares with what else is copied what it shared before."""
        for child in self.module.children():
            copied(child, memo)
        return Program(
            module=copy.deepcopy(self.module, memo),
            example_inputs=self.example_inputs,
            origin=self.origin,
            input_names=self.input_names,
            output_names=self.output_names,
            history=self.history,
            quantization=self.quantization,
            report=self.report,
        )

    def __reduce__(self) -> Never:
        """Refuse to be pickled: fx would trace the graph again, into another one.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "cannot pickle a Program: save the state_dict of its module, and make it anew"
        )

    def twin(self, dtype: torch.dtype) -> Program:
        """A clone with weights and example inputs of another floating dtype."""
        other = self.clone()
        own = next((x.dtype for x in self.example_inputs if x.is_floating_point()), None)
        other.module.to(dtype)
        other.example_inputs = tuple(
            x.to(dtype) if x.is_floating_point() else x for x in self.example_inputs
        )
        for node in other.graph.nodes:
            if "dtype" in node.meta and node.meta["dtype"].is_floating_point:
                node.meta["dtype"] = dtype
            if own is not None and node.kwargs.get("dtype") == own:
                node.kwargs = {**node.kwargs, "dtype": dtype}
        other.module.recompile()
        return other

    def in_dtype(self, dtype: torch.dtype) -> Program:
        """Itself if all its floating values have a dtype, else its twin; not to be edited."""
        state = (*self.module.parameters(), *self.module.buffers(), *self.example_inputs)
        same = all(x.dtype == dtype for x in state if x.is_floating_point())
        return self if same else self.twin(dtype)

    def note(self, detail: Any) -> None:
        """Leave a detail (a certificate, a refusal) for the record of the running pass."""
        self.notes.append(detail)

    def details(self, kind: type) -> Iterator[Any]:
        """Every detail of one type in the history, oldest first."""
        for record in self.history:
            yield from (detail for detail in record.details if isinstance(detail, kind))

    def get(self, node: fx.Node) -> nn.Module:
        """Module that a `call_module` node calls."""
        module: nn.Module = operator.attrgetter(str(node.target))(self.module)
        return module

    def constant(self, node: fx.Node) -> Tensor:
        """Tensor that a `get_attr` node names."""
        owner, _, name = str(node.target).rpartition(".")
        tensor: Tensor = getattr(self.module.get_submodule(owner), name)
        return tensor

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Shape of a node's value at the example inputs."""
        shape: tuple[int, ...] = node.meta["shape"]
        return shape

    def source(self, node: fx.Node) -> str:
        """`file:line` of a node, or the empty string."""
        location = node.meta.get("source")
        return str(location) if location else ""

    def where(self, node: fx.Node) -> str:
        """A node as errors name it: name, module path and source line."""
        scope, source = node.meta.get("scope"), self.source(node)
        return (
            f"`{node.name}`"
            + (f" in {scope}" if scope else "")
            + (f" ({source})" if source else "")
        )

    def insert_module(
        self, name: str, module: nn.Module, anchor: fx.Node, *inputs: fx.Node
    ) -> fx.Node:
        """Call a new module just before `anchor`, with the anchor's shape, source and scope.

        Args:
            name: wished path; made unique if it is taken.
            module: a module of the canonical vocabulary.
            anchor: the node whose place, source and shape the new one takes.
            *inputs: tensor arguments.

        Returns:
            The new node. The anchor is left for the caller to replace.
        """
        unique = unused_name(self.module, name.replace(".", "_"))
        self.module.add_submodule(unique, module)
        with self.graph.inserting_before(anchor):
            node = self.graph.call_module(unique, inputs)
        node.meta = dict(anchor.meta)
        return node

    def clean(self) -> None:
        """Drop dead nodes, unused modules and unused constants, lint and recompile."""
        self.graph.eliminate_dead_code(
            is_impure_node=lambda node: node.op in ("placeholder", "output")
        )
        self.module.delete_all_unused_submodules()
        called = tuple(f"{n.target}." for n in self.graph.nodes if n.op == "call_module")
        read = {n.target for n in self.graph.nodes if n.op == "get_attr"}
        for name in self.module.state_dict():
            if name not in read and not name.startswith(called):
                owner, _, attribute = name.rpartition(".")
                delattr(self.module.get_submodule(owner), attribute)
        self.graph.lint()
        self.module.recompile()
