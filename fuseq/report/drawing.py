"""The graph of a program as SVG: boxes in layers, coloured by how much signal is left.

Every text of the user's goes through `Markup.format`, which escapes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import pairwise

from markupsafe import Markup

from fuseq.outline import OutlineNode, outline
from fuseq.program import Program
from fuseq.report.layout import layered

LEVELS = (15.0, 20.0, 25.0, 30.0, 40.0)
"""SQNR in dB at which the colour changes."""

_HEIGHT, _PITCH, _MARGIN = 36.0, 62.0, 10.0
_TITLE_WIDTH, _DETAIL_WIDTH = 7.6, 6.5  # of a letter in pixels, at the sizes in graph.css
_SHORT = {
    "conv2d": "conv",
    "conv_transpose2d": "transposed conv",
    "batch_norm": "batch norm",
    "batch_norm1d": "batch norm",
    "adaptive_avg_pool": "avg pool",
    "interpolate_nearest": "nearest resize",
}


@dataclass(frozen=True)
class Shade:
    """What a drawing shows of a node beside its outline.

    Attributes:
        sqnr_db: of its value, or None where none is known.
        of: name of the value that `sqnr_db` is of, where it is another that it ends in.
        group: nodes with the same word light up together.
        lines: more lines for its tooltip.
        anchor: id of the element with its details, or the empty string.
        wrong: whether it is marked as wrong.
    """

    sqnr_db: float | None = None
    of: str = ""
    group: str = ""
    lines: tuple[str, ...] = ()
    anchor: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Drawing:
    """An SVG with the size at which it is as large as it was meant.

    Attributes:
        svg: the element.
        width: in pixels.
        height: in pixels.
        nodes: how many boxes it has.
    """

    svg: Markup
    width: int
    height: int
    nodes: int


def program_svg(program: Program) -> str:
    """A program as one SVG element with its own style: for notebooks.

    Args:
        program: any; nodes on a grid say so when the pointer rests on them.

    Returns:
        Text that begins with `<svg`; names and sources are escaped.
    """
    grids = program.quantization.grids if program.quantization else {}
    shades = {name: Shade(lines=(str(grid),)) for name, grid in grids.items()}
    return str(draw(outline(program), shades, style=style()).svg)


def style() -> str:
    """The style sheet of drawings, for light and dark."""
    return files("fuseq.report").joinpath("graph.css").read_text(encoding="utf-8")


def level(sqnr_db: float | None) -> str:
    """Class of a colour: `level-0` for the lowest SQNR, or `level-none`."""
    if sqnr_db is None:
        return "level-none"
    return f"level-{sum(sqnr_db >= step for step in LEVELS)}"


def draw(
    nodes: Sequence[OutlineNode],
    shades: Mapping[str, Shade] | None = None,
    *,
    label: str = "graph",
    style: str = "",
) -> Drawing:
    """Draw an outline.

    Args:
        nodes: in graph order.
        shades: by node name.
        label: what a screen reader calls it.
        style: put into the SVG.
    """
    boxes = {node.name: _Box(node, (shades or {}).get(node.name, Shade())) for node in nodes}
    edges = [
        (operand, node.name) for node in nodes for operand in node.operands if operand in boxes
    ]
    places = layered({name: box.width for name, box in boxes.items()}, edges, _PITCH)
    width, height = int(places.width + 2 * _MARGIN) + 1, int(places.height + 2 * _MARGIN) + 1
    parts = [
        Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" class="fuseq-graph" role="img" '
            'aria-label="{}" width="{}" height="{}" viewBox="{} {} {} {}">'
        ).format(label, width, height, -_MARGIN, -_MARGIN, width, height)
    ]
    if style:
        parts.append(Markup("<style>{}</style>").format(Markup(style)))
    parts += [_edge(points) for points in places.routes.values()]
    parts += [box.svg(*places.centers[name]) for name, box in boxes.items()]
    parts.append(Markup("</svg>"))
    return Drawing(Markup("").join(parts), width, height, len(boxes))


def _edge(points: Sequence[tuple[float, float]]) -> Markup:
    (x, y), (last_x, last_y) = points[0], points[-1]
    bends = [(x, y + end) for x, y in points[1:-1] for end in (-_HEIGHT / 2, _HEIGHT / 2)]
    ends = [(x, y + _HEIGHT / 2), *bends, (last_x, last_y - _HEIGHT / 2)]
    path = f"M{_number(x)} {_number(ends[0][1])}"
    for (x0, y0), (x1, y1) in pairwise(ends):
        if abs(x0 - x1) < 0.5:
            path += f"V{_number(y1)}H{_number(x1)}"
        else:
            middle = _number((y0 + y1) / 2)
            path += f"C{_number(x0)} {middle} {_number(x1)} {middle} {_number(x1)} {_number(y1)}"
    return Markup('<path class="edge" d="{}"/>').format(path)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@dataclass(frozen=True)
class _Box:
    node: OutlineNode
    shade: Shade
    title: str = field(init=False)
    detail: str = field(init=False)
    value: str = field(init=False)

    def __post_init__(self) -> None:
        node, decibel = self.node, self.shade.sqnr_db
        shown = dict(pair.split("=", 1) for pair in node.attributes.split(" ") if "=" in pair)
        title = _SHORT.get(node.op, node.op.removeprefix("foreign:").replace("_", " "))
        if "kernel" in shown:
            title += f" {shown['kernel'].replace('x', '×')}"
        if node.op == "input":
            title = node.name
        object.__setattr__(self, "title", _cut(title))
        object.__setattr__(self, "detail", _cut("×".join(map(str, node.shape)) or "a number"))
        object.__setattr__(self, "value", "" if decibel is None else f"{decibel:.0f} dB")

    @property
    def width(self) -> float:
        second = len(self.detail) + len(self.value) + 2 * bool(self.value)
        return max(len(self.title) * _TITLE_WIDTH, second * _DETAIL_WIDTH) + 18

    def svg(self, x: float, y: float) -> Markup:
        left, top, width = x - self.width / 2, y - _HEIGHT / 2, self.width
        value = Markup('<text class="value" x="{}" y="{}">{}</text>').format(
            _number(left + width - 9), _number(top + 28), self.value
        )
        return Markup(
            '<g class="node {}" data-node="{}" data-group="{}" data-anchor="{}"><title>{}</title>'
            '<rect x="{}" y="{}" width="{}" height="{}" rx="5"/>'
            '<text class="op" x="{}" y="{}">{}</text>'
            '<text class="detail" x="{}" y="{}">{}</text>{}</g>'
        ).format(
            level(self.shade.sqnr_db) + " wrong" * self.shade.wrong,
            self.node.name,
            self.shade.group,
            self.shade.anchor,
            "\n".join(self._tooltip()),
            *map(_number, (left, top, width, _HEIGHT)),
            *(_number(left + 9), _number(top + 15), self.title),
            *(_number(left + 9), _number(top + 28), self.detail),
            value if self.value else "",
        )

    def _tooltip(self) -> list[str]:
        node, decibel = self.node, self.shade.sqnr_db
        lines = [node.name, f"{node.op} {node.attributes}".strip()]
        lines.append(f"{node.dtype} {'×'.join(map(str, node.shape))}")
        if decibel is not None:
            of = f" of {self.shade.of}" if self.shade.of else ""
            lines.append(f"SQNR {decibel:.1f} dB{of}")
        lines += self.shade.lines
        if node.source or node.scope:
            lines.append(" in ".join(word for word in (node.source, node.scope) if word))
        return lines


def _cut(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"
