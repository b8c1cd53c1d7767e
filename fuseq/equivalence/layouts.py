"""Files that do not say how their images lie: it follows from the shapes, or the caller says it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fuseq.equivalence.sides import Side
from fuseq.errors import FuseqError
from fuseq.qdq.layout import Layout

LAYOUTS = {"nchw": Layout(channels_last=False), "nhwc": Layout(channels_last=True)}


def parse_layouts(texts: Sequence[str]) -> dict[str, str]:
    """Layouts by file name, from `nhwc` (of every file) and `FILE=nhwc`.

    Raises:
        FuseqError: FQ012 for another word.
    """
    found = {}
    for text in texts:
        file, _, layout = text.rpartition("=")
        if layout not in LAYOUTS:
            raise FuseqError(
                "FQ012", f"unknown layout '{layout}'", fix="nhwc, nchw, or FILE=nhwc for one file"
            )
        found[file] = layout
    return found


def arranged(side: Side, batch: Sequence[np.ndarray], layouts: Mapping[str, str]) -> Side:
    """A side that takes and gives images with their channels first.

    Args:
        side: whatever it is; only a file that does not state its layout is changed.
        batch: inputs as the check has them, channels first.
        layouts: layout by file name; "" is every file's.

    Raises:
        FuseqError: FQ012 where the shapes fit both ways and nobody says which is meant.
    """
    if not side.layout:
        return side
    said = side.layout if side.layout in LAYOUTS else layouts.get(side.name, layouts.get(""))
    if said is None:
        ways = [name for name, layout in LAYOUTS.items() if _fits(side, batch, layout)]
        if len(ways) > 1:
            shown = "x".join(map(str, batch[0].shape))
            raise FuseqError(
                "FQ012",
                f"'{side.name}' does not say how its images lie, and {shown} fits both ways",
                fix=f"--layout {side.name}=nhwc, or nchw; in a thresholds file: layout",
            )
        said = ways[0] if ways else "nchw"  # what does not fit at all is refused with its shapes
    layout = LAYOUTS[said]
    if not layout.channels_last:
        return replace(side, layout="")

    def turned(run: Callable[..., Any]) -> Callable[..., Any]:
        def inner(*arrays: np.ndarray) -> Any:
            given = run(*map(layout.inward, arrays))
            if isinstance(given, Mapping):
                return {name: layout.outward(y) for name, y in given.items()}
            return [layout.outward(y) for y in given]

        return inner

    note = "images are given to it channels last"
    return replace(
        side,
        run=turned(side.run),
        integers=turned(side.integers) if side.integers else None,
        reals=turned(side.reals),
        shapes=tuple(layout.shape(shape) for shape in side.shapes),
        note="; ".join(text for text in (note, side.note) if text),
        layout="",
    )


def _fits(side: Side, batch: Sequence[np.ndarray], layout: Layout) -> bool:
    shapes = [layout.inward(x).shape for x in batch]
    return len(shapes) == len(side.shapes) and all(
        len(shape) == len(wanted)
        and all(n in (None, m) for n, m in zip(wanted, shape, strict=True))
        for wanted, shape in zip(side.shapes, shapes, strict=True)
    )
