"""Windows that run over an image: torch's padding where the format has it, else a PAD; pools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from fuseq.backends.tflite.file import File
from fuseq.backends.tflite.site import Site


def padded(
    file: File,
    name: str,
    source: int,
    output: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1, 1),
    fill: float | None = None,
    same: bool = True,
) -> tuple[int, int]:
    """A window's input with torch's padding: the tensor to read and the padding to name.

    SAME where it means the same for every size, else PAD and VALID: with a stride, SAME pads less
    at the top than at the bottom, and torch equally.

    Args:
        file: to write to.
        name: of the op, for a padded tensor.
        source: tensor `(N, H, W, C)`.
        output: tensor `(N, H', W', C')`.
        kernel: height and width of the window.
        stride: of the window.
        padding: of torch, at each side.
        dilation: of the window.
        fill: what to pad with, instead of real zero: "lowest" values of a maximum.
        same: whether SAME may be named.
    """
    span = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    needed, sizes = _reach(file, output, span, stride), file.shapes[source][1:3]
    if not any(padding) and all(n <= m for n, m in zip(needed, sizes, strict=True)):
        return source, schema.Padding.VALID
    if same and tuple(stride) == (1, 1) and span == [2 * p for p in padding]:
        return source, schema.Padding.SAME
    after = list(padding)
    if not file.is_open:  # what windows of this size reach
        after = [max(0, n - m - p) for n, m, p in zip(needed, sizes, padding, strict=True)]
    amounts = [(0, 0), *zip(padding, after, strict=True), (0, 0)]
    key = (source, tuple(amounts), fill)
    if key in file.pads:  # of another window on the same input
        return file.pads[key], schema.Padding.VALID
    shape = [n + sum(a) for n, a in zip(file.shapes[source], amounts, strict=True)]
    wide = file.pads[key] = file.like(source, f"{name}.padded", shape)
    corners = file.integers(*amounts)
    if fill is None:
        file.op("PAD", [source, corners], wide, "Pad")
    else:
        dtype, grid = file.dtypes[source], file.grids[source]
        lowest = np.full((1,), fill, dtype)
        value = file.constant(f"{name}.fill", lowest, grid)
        file.op("PADV2", [source, corners, value], wide, "PadV2")
    return wide, schema.Padding.VALID


def _reach(file: File, output: int, span: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Rows and columns that the windows of a result cover."""
    sizes = file.shapes[output][1:3]
    return tuple((n - 1) * s + k + 1 for n, s, k in zip(sizes, stride, span, strict=True))


def max_pool(site: Site) -> None:
    """MAX_POOL_2D, padded with the lowest value there is."""
    grid = site.file.grids[site.output]
    lowest = float(np.finfo(np.float32).min) if grid is None else grid.qmin
    _pool(site, "MAX_POOL_2D", site.node.kwargs["padding"], lowest)


def avg_pool(site: Site) -> None:
    """Never SAME, which does not count what it pads."""
    _pool(site, "AVERAGE_POOL_2D", site.node.kwargs["padding"], None, same=False)


def _pool(site: Site, code: str, padding: Any, fill: float | None, *, same: bool = True) -> None:
    k: dict[str, Any] = dict(site.node.kwargs)
    kernel, stride, file, name = k["kernel_size"], k["stride"], site.file, site.node.name
    source, mode = padded(
        file, name, site.inputs[0], site.output, kernel, stride, padding, fill=fill, same=same
    )
    _window(file, code, source, site.output, kernel, stride, mode)


def _window(
    file: File, code: str, source: int, output: int, kernel: Any, stride: Any, mode: int
) -> None:
    file.op(
        code,
        [source],
        output,
        "Pool2D",
        padding=mode,
        filterHeight=kernel[0],
        filterWidth=kernel[1],
        strideH=stride[0],
        strideW=stride[1],
    )


def adaptive_avg_pool(site: Site) -> None:
    """AVERAGE_POOL_2D, its windows as many as wished."""
    sizes = site.file.shapes[site.inputs[0]][1:3]
    outputs = site.file.shapes[site.output][1:3]
    kernel = [n // m for n, m in zip(sizes, outputs, strict=True)]
    mode = schema.Padding.VALID
    _window(site.file, "AVERAGE_POOL_2D", site.inputs[0], site.output, kernel, kernel, mode)
