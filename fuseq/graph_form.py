"""A graph as plain values: numbers, texts, lists and dicts, as JSON has them, and back.

What is called is named, never pickled: an op by its name in the vocabulary, one outside it by its
name in `torch.ops.aten` or in torch's own list of functions on tensors, a module by its class in
`torch.nn`. Reading a file can therefore call nothing but arithmetic.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from fuseq import ops
from fuseq.program import Program, SourceLocation

Plain: TypeAlias = Any
"""What JSON holds."""

_OPERATORS: Mapping[str, Callable[..., Any]] = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "getitem")
}


class NotPlain(ValueError):
    """Something that has no plain form: a function, a class or a value nobody else could read."""


def plain(value: Any) -> Plain:
    """A value of a node or a profile in plain form.

    Raises:
        NotPlain: for an object of another kind.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case fx.Node():
            return {"node": value.name}
        case torch.dtype():
            return {"dtype": str(value).removeprefix("torch.")}
        case tuple():
            return {"tuple": [plain(v) for v in value]}
        case list():
            return [plain(v) for v in value]
        case slice():
            return {"slice": [plain(v) for v in (value.start, value.stop, value.step)]}
        case frozenset():
            return {"set": sorted(value)}
        case Mapping():
            return {"dict": [[plain(k), plain(v)] for k, v in value.items()]}
    raise NotPlain(f"a {type(value).__name__}")


def value_of(form: Plain, nodes: Mapping[str, fx.Node]) -> Any:
    """The value of a plain form.

    Args:
        form: what `plain` gave.
        nodes: those that it may name.
    """
    match form:
        case list():
            return [value_of(v, nodes) for v in form]
        case {"node": name}:
            return nodes[name]
        case {"dtype": name}:
            found = getattr(torch, name)
            if not isinstance(found, torch.dtype):
                raise NotPlain(f"dtype {name}")
            return found
        case {"tuple": items}:
            return tuple(value_of(v, nodes) for v in items)
        case {"slice": items}:
            return slice(*(value_of(v, nodes) for v in items))
        case {"set": items}:
            return frozenset(items)
        case {"dict": pairs}:
            return {value_of(k, nodes): value_of(v, nodes) for k, v in pairs}
    return form


def node_form(program: Program, node: fx.Node) -> dict[str, Plain]:
    """One node in plain form, without the weights of a module.

    Raises:
        NotPlain: for a call that nobody else could repeat.
    """
    form: dict[str, Plain] = {"name": node.name, "op": node.op}
    if node.op == "call_function":
        form["target"] = _function_name(node.target)
    elif node.op == "call_method":
        raise NotPlain(f"method {node.target}")
    else:
        form["target"] = str(node.target)
    if node.op == "call_module":
        form["module"] = _module_form(program.get(node))
    if node.op == "get_attr":
        form["parameter"] = isinstance(program.constant(node), nn.Parameter)
    form |= {"args": plain(node.args), "kwargs": plain(dict(node.kwargs))}
    source, scope = node.meta.get("source"), node.meta.get("scope")
    if source:
        form["source"] = [source.file.rsplit("/", 1)[-1], source.line, source.code]
    if scope:
        form["scope"] = scope
    return form


def read_node(
    graph: fx.Graph, form: Mapping[str, Plain], nodes: Mapping[str, fx.Node]
) -> tuple[fx.Node, nn.Module | None]:
    """Append a node to a graph.

    Args:
        graph: to append to.
        form: what `node_form` gave.
        nodes: those before it, by name.

    Returns:
        The node, and the module it calls, without weights, on the meta device.
    """
    op, target = form["op"], form["target"]
    if op not in ("placeholder", "output", "get_attr", "call_module", "call_function"):
        raise NotPlain(f"op {op}")
    called = _function(target) if op == "call_function" else target
    args, kwargs = value_of(form["args"], nodes), value_of(form["kwargs"], nodes)
    node = graph.create_node(op, called, args, kwargs, name=form["name"])
    if node.name != form["name"]:
        raise NotPlain(f"two nodes named {form['name']}")
    if "source" in form:
        file, line, code = form["source"]
        node.meta["source"] = SourceLocation(str(file), int(line), str(code))
    if "scope" in form:
        node.meta["scope"] = str(form["scope"])
    return node, _module(form["module"]) if op == "call_module" else None


def _function_name(function: Any) -> str:
    if function in ops.FUNCTIONS:
        return ops.FUNCTIONS[function]
    if isinstance(function, torch._ops.OpOverload) and function.namespace == "aten":
        return str(function)
    name = getattr(function, "__name__", "")
    if _OPERATORS.get(name) is function:
        return f"operator.{name}"
    for prefix, functions in _tensor_functions().items():
        if functions.get(name) is function:
            return f"{prefix}{name}"
    raise NotPlain(f"function {name or function}")


def _function(name: str) -> Callable[..., Any]:
    by_name = {shown: function for function, shown in ops.FUNCTIONS.items()}
    if name in by_name:
        return by_name[name]
    prefix, _, last = name.rpartition(".")
    if prefix.startswith("aten."):
        found: Callable[..., Any] = getattr(
            getattr(torch.ops.aten, prefix.removeprefix("aten.")), last
        )
        return found
    if prefix == "operator" and last in _OPERATORS:
        return _OPERATORS[last]
    functions = _tensor_functions().get(f"{prefix}.", {})
    if last not in functions:
        raise NotPlain(f"function {name}")
    return functions[last]


@functools.cache
def _tensor_functions() -> Mapping[str, Mapping[str, Callable[..., Any]]]:
    """Functions that torch lists as functions on tensors; loading and saving are none of them."""
    listed = torch.overrides.get_overridable_functions()
    return {
        prefix: {f.__name__: f for f in listed[space] if getattr(space, f.__name__, None) is f}
        for prefix, space in (("torch.", torch), ("torch.nn.functional.", nn.functional))
    }


def _module_form(module: nn.Module) -> dict[str, Plain]:
    """Class and constructor arguments, as far as the module keeps them as attributes."""
    kind = type(module)
    composed = kind not in ops.MODULES and any(module.children())
    if getattr(nn, kind.__name__, None) is not kind or composed:
        raise NotPlain(f"module {kind.__name__}")
    arguments = {}
    for name in inspect.signature(kind).parameters:
        if name not in ("device", "dtype") and hasattr(module, name):
            value = getattr(module, name)
            is_state = name in module._parameters or name in module._buffers
            arguments[name] = value is not None if is_state else plain(value)
    return {"class": kind.__name__, "arguments": arguments}


def _module(form: Mapping[str, Plain]) -> nn.Module:
    kind = getattr(nn, form["class"])
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise NotPlain(f"module {form['class']}")
    arguments = {name: value_of(value, {}) for name, value in form["arguments"].items()}
    with torch.device("meta"):
        module: nn.Module = kind(**arguments)
    return module
