"""A side of a comparison: anything that takes arrays and gives arrays.

Sides are a Python target (a module captured as a program), a program, a lowered file, and a
bundle (its int8 file, or its float one). Both sides of a check get the same float32 inputs; a
side with integer inputs quantizes them on the grid its manifest states.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fuseq import plugins
from fuseq.backend import Runner
from fuseq.bundle import MANIFEST, Bundle, read_bundle
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.arithmetic import ARITHMETICS
from fuseq.quant.executor import execute
from fuseq.quant.grid import LIMITS, Grid


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        name: for people.
        run: float32 arrays -> outputs.
        integers: float32 arrays -> integers by value name; None for a float side.
        shapes: shape of each input; None where a size is free or unknown.
        sources: value name -> `file:line`, where known.
        golden: inputs recorded with the side, or none.
        note: host remark of its runner.
        program: of a program side, float or quantized, else None.
    """

    name: str
    run: Callable[..., list[np.ndarray]]
    integers: Callable[..., Mapping[str, np.ndarray]] | None
    shapes: tuple[tuple[int | None, ...], ...]
    sources: Mapping[str, str]
    golden: tuple[np.ndarray, ...] = ()
    note: str = ""
    program: Program | None = None


def side_of(thing: object) -> Side:
    """A side from a module, a program, a prepared model, a bundle, a file or a directory.

    Raises:
        FuseqError: FQ013 for a path that is no file of a known kind.
    """
    if isinstance(thing, nn.Module):
        from fuseq.qat.model import shipped

        thing = shipped(thing)
    if isinstance(thing, Program):
        return _program_side(thing)
    if isinstance(thing, nn.Module):
        return _module_side(thing)
    if isinstance(thing, Bundle):
        return _bundle_side(thing)
    if isinstance(thing, str | Path):
        path = Path(thing)
        if os.path.isfile(path / MANIFEST):
            return _bundle_side(read_bundle(path))
        return _file_side(path)
    raise FuseqError(
        "FQ013", f"cannot compare a {type(thing).__name__}", fix="a module, program, file or bundle"
    )


def tensors(arrays: tuple[np.ndarray, ...]) -> tuple[Tensor, ...]:
    """Arrays as tensors with memory of their own."""
    return tuple(torch.from_numpy(np.array(a)) for a in arrays)


def _leaves(result: object) -> list[np.ndarray]:
    return [
        leaf.detach().numpy() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)
    ]


def _module_side(module: nn.Module) -> Side:
    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return _leaves(module(*tensors(arrays)))

    return Side(type(module).__name__, run, None, (), {})


def _program_side(program: Program) -> Side:
    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return _leaves(program(*tensors(arrays)))

    def integers(*arrays: np.ndarray) -> Mapping[str, np.ndarray]:
        values = execute(program, tensors(arrays)).integers
        return {name: value.numpy() for name, value in values.items()}

    quantized = program.quantization is not None
    free = set(program.origin.dynamic)
    shapes = tuple(
        tuple(None if (i, d) in free else size for d, size in enumerate(x.shape))
        for i, x in enumerate(program.example_inputs)
    )
    name = ("quantized" if quantized else "float") + f" {type(program.origin.module).__name__}"
    sources = {node.name: program.source(node) for node in program.graph.nodes}
    golden = tuple(x.numpy() for x in program.example_inputs)
    shown = integers if quantized else None
    return Side(name, run, shown, shapes, sources, golden, program=program)


def _file_side(
    path: Path,
    golden: tuple[np.ndarray, ...] = (),
    name: str = "",
    interface: Interface | None = None,
) -> Side:
    if not os.path.isfile(path):
        raise FuseqError("FQ013", f"'{path}' is no file and no bundle", fix="check the path")
    known = plugins.available("runners")
    kind = path.suffix.removeprefix(".")
    if kind not in known:
        endings = ", ".join(f".{k}" for k in known)
        raise FuseqError(
            "FQ013", f"nothing here runs '{path.name}'", fix=f"files that end in {endings}"
        )
    runner: Runner = plugins.load("runners", kind)(path)
    interface = interface or Interface(*runner.grids())

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        return interface.reals(runner(*interface.feeds(runner, arrays)))

    def integers(*arrays: np.ndarray) -> Mapping[str, np.ndarray]:
        return runner.integers(*interface.feeds(runner, arrays))

    shown = integers if runner.quantized else None
    return Side(name or path.name, run, shown, runner.shapes, {}, golden, runner.note)


def _bundle_side(bundle: Bundle) -> Side:
    bundle.require_intact()
    file = bundle.file("int8") or bundle.file("float")
    golden = bundle.file("golden")
    if file is None or golden is None:
        raise FuseqError("FQ013", f"bundle '{bundle.path}' lists no file to run", fix="lower again")
    name = f"{bundle.path.name}/{file.name}"
    return _file_side(file, golden_inputs(bundle, golden), name, bundle_interface(bundle))


def golden_inputs(bundle: Bundle, golden: Path) -> tuple[np.ndarray, ...]:
    """The inputs that a bundle records."""
    stored = np.load(golden)
    return tuple(stored[f"input.{entry['name']}"] for entry in bundle.manifest["inputs"])


def bundle_interface(bundle: Bundle) -> Interface:
    """How the int8 file of a bundle takes and gives floats."""
    profile = plugins.load("backends", bundle.manifest["backend"]).profile
    grids = [_grids(bundle.manifest[side]) for side in ("inputs", "outputs")]
    return Interface(grids[0], grids[1], profile.arithmetic)


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
        """Integers where the file has no quantizer of its own, floats as they are elsewhere."""
        grids = self.inputs or (None,) * len(arrays)
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
