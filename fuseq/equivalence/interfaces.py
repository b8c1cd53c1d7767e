"""What stands between float arrays and a file: grids of integer inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fuseq import plugins
from fuseq.backend import Runner
from fuseq.bundle import Bundle
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.arithmetic import ARITHMETICS
from fuseq.quant.grid import LIMITS, Grid


@dataclass(frozen=True)
class Interface:
    """How float arrays become what a file takes, and what it gives becomes float arrays.

    Attributes:
        inputs: grid of each input, None for a float one; empty if nothing is known.
        outputs: the same for outputs.
        arithmetic: quantizes inputs, so that a file with integer inputs gets what the executor has.
    """

    inputs: tuple[Grid | None, ...] = ()
    outputs: tuple[Grid | None, ...] = ()
    arithmetic: str = "ideal"

    def feeds(self, runner: Runner, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Integers where the file has no quantizer of its own, floats as they are elsewhere.

        Raises:
            FuseqError: FQ005 for an integer input without a grid.
        """
        grids = self.inputs or (None,) * len(arrays)
        for position, (grid, dtype) in enumerate(zip(grids, runner.dtypes, strict=True)):
            if grid is None and dtype in LIMITS:
                raise FuseqError(
                    "FQ005",
                    f"input {position} takes {dtype}, and nothing says what its integers mean",
                    fix="name the file inside its bundle, whose fuseq.json states the grid",
                )
        quantize = ARITHMETICS[self.arithmetic].quantize
        return [
            quantize(torch.from_numpy(x), grid.shifted_to(dtype)).numpy().astype(dtype)
            if grid and dtype in LIMITS
            else x
            for grid, dtype, x in zip(grids, runner.dtypes, arrays, strict=True)
        ]

    def reals(self, outputs: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """Reals of integer outputs."""
        grids = self.outputs or (None,) * len(outputs)
        return [
            grid.dequantize(torch.from_numpy(integers_of(y, grid).astype(np.int32))).numpy()
            if grid and str(y.dtype) in LIMITS
            else y
            for grid, y in zip(grids, outputs, strict=True)
        ]


def integers_of(output: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers, on a grid, of what a file gives: reals, or integers of as many bits."""
    if str(output.dtype) not in LIMITS:
        return grid.quantize(torch.from_numpy(output)).numpy()
    shift = grid.qmin - LIMITS[str(output.dtype)][0]
    return output.astype(np.int32) + shift if shift else output


def interface_of(program: Program, arithmetic: str | None = None) -> Interface:
    """The interface of what a quantized program is lowered to.

    Args:
        program: quantized.
        arithmetic: of the runtime; the profile's own by default.
    """
    assert program.quantization is not None
    grids = program.quantization.grids
    return Interface(
        tuple(grids.get(node.name) for node in program.inputs()),
        tuple(grids.get(node.name) for node in program.outputs()),
        arithmetic or program.quantization.profile.arithmetic,
    )


def bundle_interface(bundle: Bundle) -> Interface:
    """How the int8 file of a bundle takes and gives floats."""
    profile = plugins.load("backends", bundle.manifest["backend"]).profile
    inputs, outputs = (_grids(bundle.manifest[side]) for side in ("inputs", "outputs"))
    return Interface(inputs, outputs, profile.arithmetic)


def _grids(entries: Sequence[Mapping[str, Any]]) -> tuple[Grid | None, ...]:
    return tuple(
        Grid(
            torch.tensor(entry["grid"]["scale"], dtype=torch.float32),
            torch.tensor(entry["grid"]["zero_point"], dtype=torch.int32),
            entry["grid"]["dtype"],
        )
        if "grid" in entry
        else None
        for entry in entries
    )
