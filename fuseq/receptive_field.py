r"""Receptive field: which part of the image one position of an output reads.

One axis of the image at a time. `reading` says which positions of its operand a position of a
result reads; following that back from the output to the image over all paths, and taking the hull,
gives the window. For a single path of convolutions and pools its size is

    1 + sum over layers l of (k_l - 1) * product of the strides before l,

equation 2 of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
Networks", Distill 2019 (kernels k_l counted with their dilation). Behind a resize, neighbours have
windows of different sizes; the largest counts. Borders are left out of account. Behind a transposed
convolution whose kernel is smaller than its stride, a hull also holds some of the gaps it leaves.

What reads all of an axis (a global pool, attention, a reshape that merges rows and columns, an op
that is not known) has no window. It is named instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from torch import fx

from fuseq import ops
from fuseq.links import NEVER, WINDOWED, Edge, Link, Positions, link_of, tensors_read
from fuseq.program import Program

_MOST_PHASES = 4096


@dataclass(frozen=True)
class ReceptiveField:
    """What one position of an output reads of an image.

    Attributes:
        output: name of the output.
        input: name of the input.
        size: rows and columns of the largest window; None on an axis that is only read whole.
        stride: rows and columns from the window of one position to the next; None as above.
        whole_image: names of the nodes that read every position of an axis, in graph order; the
            window is what is left without them.
    """

    output: str
    input: str
    size: tuple[int | None, int | None]
    stride: tuple[Fraction | None, Fraction | None]
    whole_image: tuple[str, ...]


@dataclass(frozen=True)
class Reach:
    """How a value depends on the positions along an axis of the image.

    Attributes:
        dim: dimension of the value that runs along the axis; None if none does.
        step: image positions from one position of the value to the next; None as above.
        whole: nodes on the way that read every position.
    """

    dim: int | None
    step: Fraction | None
    whole: frozenset[fx.Node]


Reaches = Mapping[fx.Node, Reach]


def receptive_fields(program: Program) -> list[ReceptiveField]:
    """The field of each output in each image it depends on. An image is an input of rank 4."""
    found = []
    for input_name, image in zip(program.input_names, program.inputs(), strict=True):
        if len(program.shape(image)) != 4:
            continue
        rows, columns = (_reaches(program, image, d) for d in _rows_and_columns(program, image))
        for output_name, output in zip(program.output_names, program.outputs(), strict=True):
            if output not in rows:
                continue
            whole = rows[output].whole | columns[output].whole
            found.append(
                ReceptiveField(
                    output_name,
                    input_name,
                    (_size(program, output, image, rows), _size(program, output, image, columns)),
                    (rows[output].step, columns[output].step),
                    tuple(node.name for node in program.graph.nodes if node in whole),
                )
            )
    return found


def windows(
    program: Program, output: fx.Node, image: fx.Node, dim: int, positions: np.ndarray
) -> Positions | None:
    """First and last image positions that output positions read, borders left out of account.

    Args:
        program: that holds the nodes.
        output: any value.
        image: an input.
        dim: its dimension to look along.
        positions: int64, of the output along that axis.

    Returns:
        Two arrays like `positions`; None if nothing is read through a window.
    """
    reaches = _reaches(program, image, dim)
    if output not in reaches or reaches[output].dim is None:
        return None
    return _followed_back(program, output, image, reaches, positions)


def _size(program: Program, output: fx.Node, image: fx.Node, reaches: Reaches) -> int | None:
    own = reaches[output].step
    if own is None:
        return None
    # After this many positions, windows repeat.
    steps = [reach.step for reach in reaches.values() if reach.step is not None]
    phases = math.lcm(*((own / step).denominator for step in steps))
    positions = np.arange(min(phases, _MOST_PHASES))
    first, last = _followed_back(program, output, image, reaches, positions)
    return max(0, int((last - first + 1).max()))


def _rows_and_columns(program: Program, image: fx.Node) -> tuple[int, int]:
    """Dimensions of an input that run along rows and columns of the maps that are made of it."""
    found = {2: 2, 3: 3}
    for dim in (1, 2, 3):
        for node, reach in _reaches(program, image, dim).items():
            if any(ops.name_of(program, user) in WINDOWED for user in node.users):
                if reach.dim in found:
                    found[reach.dim] = dim
                break
    return found[2], found[3]


def _reaches(program: Program, image: fx.Node, dim: int) -> dict[fx.Node, Reach]:
    """Reach of every value that depends on an input, along one of its dimensions."""
    reaches = {image: Reach(dim, Fraction(1), frozenset())}
    for node in program.graph.nodes:
        read = [n for n in tensors_read(node) if n in reaches]
        if not read or node.op == "output" or ops.name_of(program, node) == "shape":
            continue
        links = _links(program, node, reaches)
        whole = frozenset[fx.Node]().union(*(reaches[n].whole for n in read))
        windowed = [(n, link) for n, link in links if link]
        meets = len({link.dim for _, link in windowed}) == 1
        if links and not (meets and len(windowed) == len(links)):
            whole |= {node}
        if not meets:
            reaches[node] = Reach(None, None, whole)
            continue
        operand, link = windowed[0]
        step = reaches[operand].step
        assert step is not None
        reaches[node] = Reach(link.dim, step * link.step, whole)
    return reaches


def _links(program: Program, node: fx.Node, reaches: Reaches) -> list[tuple[fx.Node, Link | None]]:
    """Operands along whose axis something can be read, and how."""
    return [
        (operand, link_of(Edge(program, node, index, operand, dim)))
        for index, operand in enumerate(tensors_read(node))
        if operand in reaches and (dim := reaches[operand].dim) is not None
    ]


def _followed_back(
    program: Program, output: fx.Node, image: fx.Node, reaches: Reaches, positions: np.ndarray
) -> Positions:
    nothing = np.full(positions.shape, NEVER), np.full(positions.shape, -NEVER)
    needed: dict[fx.Node, Positions] = {output: (positions, positions)}
    for node in reversed(program.graph.nodes):
        if node is image or node not in needed:
            continue
        for operand, link in _links(program, node, reaches):
            if link is None or link.dim != reaches[node].dim:
                continue
            first, last = link.read(needed[node])
            none = first > last
            known = needed.get(operand, nothing)
            needed[operand] = (
                np.minimum(known[0], np.where(none, NEVER, first)),
                np.maximum(known[1], np.where(none, -NEVER, last)),
            )
    return needed.get(image, nothing)
