"""Where a lowered graph came from: the graph as captured, what became one layer, and what did not.

A bundle keeps it as `lineage.json`, for `fuseq report`. Nothing measured is in it, no path but file
names, and no weight: the same model gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fuseq.affine.prove import Certificate
from fuseq.affine.refusal import Refusal
from fuseq.errors import FuseqError
from fuseq.outline import OutlineNode, outline
from fuseq.program import Program

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class Region:
    """What became one layer.

    Attributes:
        module: path of the layer.
        op: its canonical name.
        nodes: names of the nodes it replaces, in graph order.
        source: `file:line` of the value it computes, or the empty string.
        scopes: paths of the modules of the user's that it replaces.
        rules: exactness rules that it rests on.
        validity: sizes for which it holds.
        macs_before: multiply-accumulates at the captured size.
        macs_after: the same, fused.
        parameters_before: trainable numbers.
        parameters_after: the same, fused.
    """

    module: str
    op: str
    nodes: tuple[str, ...]
    source: str
    scopes: tuple[str, ...]
    rules: tuple[str, ...]
    validity: str
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True)
class Lineage:
    """Where a lowered graph came from.

    Attributes:
        captured: the graph before any pass.
        lowered: the graph that was lowered.
        regions: what became one layer.
        refusals: what did not.
    """

    captured: tuple[OutlineNode, ...]
    lowered: tuple[OutlineNode, ...]
    regions: tuple[Region, ...]
    refusals: tuple[Refusal, ...]


def lineage_of(captured: Program, lowered: Program) -> Lineage:
    """The lineage of a program.

    Args:
        captured: what it was before any pass.
        lowered: the program, with its history.
    """
    return Lineage(
        outline(captured),
        outline(lowered),
        tuple(_region(certificate) for certificate in lowered.details(Certificate)),
        tuple(lowered.details(Refusal)),
    )


def _region(certificate: Certificate) -> Region:
    values = {
        field.name: getattr(certificate, field.name)
        for field in dataclasses.fields(Region)
        if field.name not in ("nodes", "scopes")
    }
    scopes = sorted({node.scope for node in certificate.nodes if node.scope})
    return Region(**values, nodes=tuple(n.name for n in certificate.nodes), scopes=tuple(scopes))


def write_lineage(lineage: Lineage, file: Path) -> None:
    """Write a lineage as JSON."""
    text = json.dumps(dataclasses.asdict(lineage), indent=1, sort_keys=True)
    file.write_text(text + "\n", encoding="utf-8")


def read_lineage(file: Path) -> Lineage:
    """A lineage from a file.

    Raises:
        FuseqError: FQ013 for a file that is none.
    """
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return Lineage(
            _graph(stored["captured"]),
            _graph(stored["lowered"]),
            _entries(Region, stored["regions"]),
            _entries(Refusal, stored["refusals"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FuseqError(
            "FQ013", f"'{file}' is no lineage: {error}", fix="lower the model again"
        ) from error


def _graph(stored: list[Mapping[str, Any]]) -> tuple[OutlineNode, ...]:
    nodes = _entries(OutlineNode, stored)
    seen: set[str] = set()
    for node in nodes:
        if node.name in seen or not seen.issuperset(node.operands):
            raise ValueError(f"the node {node.name!r} is out of order")
        seen.add(node.name)
    return nodes


def _entries(kind: type[Entry], stored: list[Mapping[str, Any]]) -> tuple[Entry, ...]:
    types = typing.get_type_hints(kind)
    return tuple(
        kind(**{name: _of_type(types[name], value) for name, value in entry.items()})
        for entry in stored
    )


def _of_type(wanted: Any, value: Any) -> Any:
    """A value as a field of an entry has it: a string, a number, or a tuple of either."""
    if typing.get_origin(wanted) is tuple and isinstance(value, list):
        return tuple(_of_type(typing.get_args(wanted)[0], item) for item in value)
    if not isinstance(wanted, type) or not isinstance(value, wanted):
        raise TypeError(f"{value!r} where {wanted} belongs")
    return value
