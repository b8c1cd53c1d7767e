"""What holds of a pass and of a backend alike: it is data, and it has a spelling."""

from __future__ import annotations

import dataclasses

from fuseq.backend import Backend
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_as, spelled
from fuseq.plugins import Kind
from fuseq.rewrite import Pass
from fuseq.testing.assertion import require


def require_described(plugin: Pass | Backend) -> None:
    """Assert that it is a frozen dataclass with a name and a docstring of its own."""
    kind = type(plugin)
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    require(frozen, f"{kind.__name__} is no @dataclass(frozen=True)")
    require(bool(getattr(plugin, "name", "")), f"{kind.__name__} has no name")
    words = kind.__doc__ or ""
    # Where there is none, dataclass writes the signature in its place.
    require(bool(words) and not words.startswith(f"{kind.__name__}("), f"{kind} has no docstring")


def require_spelling(kind: Kind, plugin: Pass | Backend) -> None:
    """Assert that the options can be spelled and read back; data fields have no spelling."""
    text = spelled(plugin)
    assert dataclasses.is_dataclass(plugin)
    fields = [field for field in dataclasses.fields(plugin) if field.init and not field.repr]
    data = {field.name: getattr(plugin, field.name) for field in fields}
    try:
        back = dataclasses.replace(parse_as(kind, type(plugin), text), **data)
    except FuseqError as error:
        raise AssertionError(f"{text} cannot be read back\n{error}") from error
    require(back == plugin, f"{text} gives {back}, not {plugin}")


def require_options_refused(kind: Kind, plugin: Pass | Backend) -> None:
    """Assert that an option which does not exist is refused with FQ012."""
    try:
        parse_as(kind, type(plugin), f"{plugin.name}{{no_such_option=1}}")
    except FuseqError as error:
        code = error.code
    else:
        code = "no error"
    require(code == "FQ012", f"an unknown option gives {code}, not FQ012")
