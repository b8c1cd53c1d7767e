"""Which inputs a pair is run on, and whether its sides take them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fuseq.equivalence.input_sets import Batch, input_set
from fuseq.equivalence.sides import Side
from fuseq.errors import FuseqError
from fuseq.quant.grid import Grid


def require_fit(side: Side, batch: Batch) -> None:
    """Refuse inputs a side does not take (FQ005), or that hold nothing to compare (FQ009)."""
    shown = ", ".join("x".join(map(str, x.shape)) or "a number" for x in batch) or "nothing"
    if any(not x.size for x in batch):
        raise FuseqError("FQ009", f"the inputs hold no values: {shown}", fix="give a batch of one")
    if not all(np.isfinite(x).all() for x in batch):
        raise FuseqError("FQ005", "the inputs hold values that are not finite", fix="look for NaN")
    fits = len(batch) == len(side.shapes) and all(
        len(shape) == x.ndim and all(n in (None, m) for n, m in zip(shape, x.shape, strict=True))
        for shape, x in zip(side.shapes, batch, strict=False)
    )
    if side.shapes and not fits:
        wanted = ["x".join("?" if n is None else str(n) for n in shape) for shape in side.shapes]
        raise FuseqError(
            "FQ005",
            f"{side.name} does not take inputs of {shown}",
            why=f"it takes {', '.join(wanted)}",
            fix="one array for each input, in order; --inputs FILE.npz",
        )


def batches_for(
    sides: Sequence[Side],
    inputs: Iterable[Sequence[np.ndarray]] | str | None,
    samples: int,
    seed: int,
) -> list[Batch]:
    """Batches to compare sides on.

    Args:
        sides: all of them.
        inputs: batches, or the name of a set, as `check` takes them.
        samples: number of generated batches, or of images read.
        seed: of generated sets.

    Returns:
        Those given, or of the named set, or those recorded with a side, or seeded ones in 0..1.

    Raises:
        FuseqError: FQ006 for a set that cannot be read, FQ009 where there is none.
    """
    if inputs is not None and not isinstance(inputs, str):
        found = [tuple(batch) for batch in inputs]
        if not found:
            raise FuseqError("FQ009", "there are no inputs", fix="give at least one batch")
        return found
    recorded = next((side.golden for side in sides if side.golden), ())
    if inputs is None and recorded:
        return [recorded]
    stated = [side for side in sides if side.shapes]
    shapes = next((s.shapes for s in stated if not s.layout), stated[0].shapes if stated else ())
    if not shapes:
        raise FuseqError("FQ009", "neither side says what its inputs are", fix="--inputs FILE.npz")
    sizes = [x.shape for x in recorded] or [
        tuple((1, 3, 64, 96)[d] if n is None else n for d, n in enumerate(s)) for s in shapes
    ]
    if inputs is None:
        random = np.random.default_rng(0)
        return [tuple(random.random(size, dtype=np.float32) for size in sizes)]
    grids = next((side.ranges for side in sides if any(side.ranges)), (None,) * len(sizes))
    arrays: Sequence[np.ndarray | None] = recorded or [None] * len(sizes)
    ranges = [_range_of(grid, x) for grid, x in zip(grids, arrays, strict=True)]
    return input_set(inputs, sizes, ranges, samples=samples, seed=seed)


def _range_of(grid: Grid | None, recorded: np.ndarray | None) -> tuple[float, float]:
    """Of an input: what its grid holds, else what was recorded, else 0..1."""
    if grid is not None:
        low, high = (float(grid.scale) * (q - int(grid.zero_point)) for q in (grid.qmin, grid.qmax))
        return low, high
    if recorded is not None:
        return float(recorded.min()), float(recorded.max())
    return 0.0, 1.0
