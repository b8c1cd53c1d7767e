"""Plugins and their options as text: `fuse-affine,my-pass{level=2,name="x"}`, `onnx{opset=21}`.

The options of a pass or backend are the fields of its dataclass. A field that holds data
(calibration images, a target's profile) is declared with `repr=False`; it has no spelling and is
filled by the caller.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from fuseq import plugins
from fuseq.errors import FuseqError

if TYPE_CHECKING:
    from fuseq.backend import Backend
    from fuseq.rewrite import Pass

_SPELLING = 'spell it name{option=value,option="text"}'
_WORDS = {"true": True, "false": False, "none": None}


def parse_passes(text: str, **data: Any) -> list[Pass]:
    """Passes from their spelling.

    Args:
        text: `name,name{option=value,...}`.
        **data: values for the data fields of these names, in the passes that have them.

    Raises:
        FuseqError: FQ007 for an unknown pass; FQ012 for options that a pass does not have or take;
            FQ010 and FQ011 from the registry.
    """
    return [_parse("passes", part.strip(), data) for part in _split(text)]


def with_options(steps: Sequence[Pass], name: str, **options: Any) -> list[Pass]:
    """The same passes, those of one name with some fields replaced."""
    return [
        dataclasses.replace(step, **options) if step.name == name else step  # type: ignore[type-var]
        for step in steps
    ]


def parse_backend(text: str) -> Backend:
    """A backend from its spelling, `name{option=value,...}`; errors as for passes."""
    backend: Backend = _parse("backends", text.strip(), {})
    return backend


def spelled(plugin: Pass | Backend) -> str:
    """Name and the options that differ from their defaults: `fuse-affine{cost=macs}`."""
    fields: tuple[dataclasses.Field[Any], ...] = ()
    if dataclasses.is_dataclass(plugin):
        fields = dataclasses.fields(plugin)
    options = [(f, getattr(plugin, f.name)) for f in fields if f.init and f.repr]
    changed = [f"{f.name}={_bare(value)}" for f, value in options if value != f.default]
    return plugin.name + (f"{{{','.join(changed)}}}" if changed else "")


def _bare(value: Any) -> str:
    """A value as it is spelled; a word needs no quotes."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", value)
    return str(value) if is_word and str(value).lower() not in _WORDS else repr(value)


def _parse(kind: plugins.Kind, text: str, data: dict[str, Any]) -> Any:
    name, spelling = _parted(text)
    return _made(kind, plugins.load(kind, name), spelling, data)


def parse_as(kind: plugins.Kind, loaded: type, text: str) -> Any:
    """A plugin from its spelling, of a class that need not be registered.

    Raises:
        FuseqError: FQ012 for options that it does not have or take.
    """
    return _made(kind, loaded, _parted(text)[1], {})


def _parted(text: str) -> tuple[str, str]:
    """The name and what stands between the braces."""
    match = re.fullmatch(r"(?P<name>[^{}]+?)\s*(\{(?P<options>.*)\})?", text, re.DOTALL)
    if not match:
        raise FuseqError("FQ012", f"cannot read '{text}'", fix=_SPELLING)
    return match["name"], match["options"] or ""


def _made(kind: plugins.Kind, loaded: Any, spelling: str, data: dict[str, Any]) -> Any:
    name, expected = loaded.name, option_types(loaded)
    options: dict[str, Any] = {}
    for part in _split(spelling):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise FuseqError("FQ012", f"cannot read the option '{part}' of '{name}'", fix=_SPELLING)
        if key not in expected:
            raise FuseqError(
                "FQ012",
                f"'{name}' has no option '{key}'",
                why=f"its options are: {', '.join(expected) or 'none'}",
                fix=plugins.did_you_mean(key, expected) or f"`fuseq {kind} {name}` describes them",
            )
        options[key] = _typed(f"option '{key}' of '{name}'", value, expected[key])
    fields = dataclasses.fields(loaded) if dataclasses.is_dataclass(loaded) else ()
    given = {f.name: data[f.name] for f in fields if not f.repr and f.name in data}
    try:
        return loaded(**options, **given)
    except (TypeError, ValueError) as error:
        raise FuseqError(
            "FQ012", f"'{name}' does not take these options: {error}", fix=_SPELLING
        ) from error


def option_types(kind: type) -> dict[str, Any]:
    """Options of a plugin class: the declared type of each field that is no data field."""
    if not dataclasses.is_dataclass(kind):
        return {}
    declared = {f.name: f.type for f in dataclasses.fields(kind) if f.init and f.repr}
    holder = types.SimpleNamespace(__annotations__=declared)
    return typing.get_type_hints(holder, vars(sys.modules[kind.__module__]))


def _split(text: str) -> Iterator[str]:
    """Parts between the commas that are in no bracket and no quotes."""
    part, depth, quote = "", 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "," and depth == 0:
            yield part
            part = ""
            continue
        else:
            depth += (char in "([{") - (char in ")]}")
        part += char
    if quote or depth:
        raise FuseqError("FQ012", f"a bracket or quote is left open in '{text}'", fix=_SPELLING)
    if part.strip():
        yield part


def _typed(option: str, text: str, wanted: Any) -> Any:
    try:
        value = _WORDS[text.lower()] if text.lower() in _WORDS else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text  # a bare word is a string
    if type(value) is int and not _accepts(wanted, value) and _accepts(wanted, 0.0):
        value = float(value)
    if not _accepts(wanted, value):
        shown = wanted.__name__ if isinstance(wanted, type) else wanted
        raise FuseqError("FQ012", f"{option} takes {shown}, not {text}", fix=_SPELLING)
    return value


def _accepts(wanted: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(choice, value) for choice in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple and isinstance(value, tuple):
        if arguments[1:] == (Ellipsis,):
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(map(_accepts, arguments, value))
    return type(value) is wanted
