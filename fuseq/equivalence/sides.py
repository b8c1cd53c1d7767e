"""A side of a comparison: anything that takes arrays and gives arrays.

Sides are a Python target (a module captured as a program), a program, a lowered file, and a
bundle (its int8 file, or its float one). Both sides of a check get the same float32 inputs; a
side with integer inputs quantizes them on the grid that its bundle or the file itself states. No
artifact's side imports or runs the user's code.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fuseq import plugins
from fuseq.backend import Runner
from fuseq.bundle import MANIFEST, Bundle, read_bundle
from fuseq.equivalence.interfaces import Interface, bundle_interface
from fuseq.errors import FuseqError, first_line
from fuseq.program import Program
from fuseq.quant.executor import execute
from fuseq.quant.grid import Grid

Values: TypeAlias = Mapping[str, np.ndarray]
REFERENCES = ("golden", "program")
"""Kinds of files of a bundle that its other files are compared with."""


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        name: for people.
        run: float32 arrays -> outputs as reals.
        integers: float32 arrays -> integers by value name; None for a float side.
        reals: float32 arrays -> reals of every value it can show, by name.
        shapes: shape of each input; None where a size is free or unknown.
        outputs: names of the outputs; empty where unknown.
        grids: of the outputs, None for a float one; empty where unknown.
        ranges: grid of each input, None for a float one; empty where unknown.
        golden: inputs recorded with the side, or none.
        note: host remark of its runner.
        program: what runs, of a side that is a program.
        lowered: what a file was lowered from, where its bundle has that.
        layout: "nhwc" or "nchw" if a file takes its images as they lie and a manifest says how, "?"
            if nothing says how; else empty: it takes them channels first.
    """

    name: str
    run: Callable[..., list[np.ndarray]]
    integers: Callable[..., Values] | None
    reals: Callable[..., Values]
    shapes: tuple[tuple[int | None, ...], ...]
    outputs: tuple[str, ...] = ()
    grids: tuple[Grid | None, ...] = ()
    ranges: tuple[Grid | None, ...] = ()
    golden: tuple[np.ndarray, ...] = ()
    note: str = ""
    program: Program | None = None
    lowered: Program | None = None
    layout: str = ""

    @property
    def knowledge(self) -> Program | None:
        """The program whose values these are, where one is known."""
        return self.program or self.lowered


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


def float_form(program: Program) -> Program:
    """A program as it was before it was quantized; shares everything, so not to be edited."""
    return replace(program, quantization=None)


def _leaves(result: object) -> list[np.ndarray]:
    return [
        leaf.detach().numpy() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)
    ]


def _module_side(module: nn.Module) -> Side:
    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return _leaves(module(*tensors(arrays)))

    return Side(type(module).__name__, run, None, lambda *arrays: {}, ())


def _program_side(program: Program) -> Side:
    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return _leaves(program(*tensors(arrays)))

    def integers(*arrays: np.ndarray) -> Values:
        values = execute(program, tensors(arrays)).integers
        return {name: value.numpy() for name, value in values.items()}

    def reals(*arrays: np.ndarray) -> Values:
        if table is not None:
            execution = execute(program, tensors(arrays))
            names = [*execution.integers, *execution.reals]
            return {name: execution.real(program, name).numpy() for name in names}
        return float_values(program, tensors(arrays))

    table = program.quantization
    free = set(program.origin.dynamic)
    shapes = tuple(
        tuple(None if (i, d) in free else size for d, size in enumerate(x.shape))
        for i, x in enumerate(program.example_inputs)
    )
    name = ("quantized" if table else "float") + f" {type(program.origin.module).__name__}"
    grids = table.grids if table else {}
    return Side(
        name,
        run,
        integers if table else None,
        reals,
        shapes,
        program.output_names,
        tuple(grids.get(node.name) for node in program.outputs()),
        tuple(grids.get(node.name) for node in program.inputs()),
        tuple(x.numpy() for x in program.example_inputs),
        program=program,
    )


def float_values(program: Program, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """Every tensor that the float form of a program computes, by node name."""
    interpreter = fx.Interpreter(program.module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*inputs)
    env: Mapping[fx.Node, object] = interpreter.env
    return {
        node.name: value.numpy()
        for node, value in env.items()
        if isinstance(value, Tensor) and node.op != "get_attr"
    }


def _file_side(path: Path) -> Side:
    """A file by itself, with what its bundle says of it where it lies in one."""
    if not os.path.isfile(path):
        raise FuseqError("FQ013", f"'{path}' is no file and no bundle", fix="check the path")
    for folder in path.absolute().parents[:2]:
        if os.path.isfile(folder / MANIFEST):
            bundle = read_bundle(folder)
            name = path.absolute().relative_to(folder).as_posix()
            if any(entry["path"] == name for entry in bundle.manifest["files"]):
                return _side_in_bundle(bundle, path)
    return _running(_runner(path), path.name)


def _runner(path: Path) -> Runner:
    known = plugins.available("runners")
    kind = path.suffix.removeprefix(".")
    if kind not in known:
        endings = ", ".join(f".{k}" for k in known)
        raise FuseqError(
            "FQ013", f"nothing here runs '{path.name}'", fix=f"files that end in {endings}"
        )
    runner: Runner = plugins.load("runners", kind)(path)
    return runner


def _bundle_side(bundle: Bundle) -> Side:
    bundle.require_intact()
    file = bundle.file("int8") or bundle.file("float")
    if file is None or bundle.file("golden") is None:
        raise FuseqError("FQ013", f"bundle '{bundle.path}' lists no file to run", fix="lower again")
    return _side_in_bundle(bundle, file)


def _side_in_bundle(bundle: Bundle, file: Path) -> Side:
    """A file of a bundle; a note says so if it is not the one that was written."""
    bundle.require_intact(REFERENCES)
    manifest, golden = bundle.manifest, bundle.file("golden")
    runner = _runner_of(bundle, file)
    inputs = golden_inputs(bundle, golden) if golden else ()
    interface = bundle_interface(bundle)
    if not runner.quantized:
        interface = Interface((None,) * len(interface.inputs), (None,) * len(interface.outputs))
    names = tuple(entry["name"] for entry in manifest["outputs"])
    name = file.absolute().relative_to(bundle.path.absolute()).as_posix()
    changed = "not the file that the bundle was written with" * (name in bundle.changed_files())
    note = "; ".join(text for text in (changed, runner.note) if text)
    side = _running(runner, f"{bundle.path.name}/{name}", interface)
    lowered = bundle.lowered_program()
    if lowered and not runner.quantized:
        lowered = float_form(lowered)
    images = {entry["layout"].lower() for entry in manifest["inputs"] if entry.get("layout")}
    layout = images.pop() if side.layout and images else ""
    return replace(side, outputs=names, golden=inputs, note=note, lowered=lowered, layout=layout)


def _runner_of(bundle: Bundle, file: Path) -> Runner:
    """The backend's own runner of the files it lowers to, else the one of the file's ending."""
    lowered = [bundle.file(kind) for kind in ("int8", "float")]
    if file.absolute() in [other.absolute() for other in lowered if other]:
        runner: Runner = plugins.load("backends", bundle.manifest["backend"])().runner(file)
        return runner
    return _runner(file)


def golden_inputs(bundle: Bundle, golden: Path) -> tuple[np.ndarray, ...]:
    """The inputs that a bundle records."""
    stored = np.load(golden)
    return tuple(stored[f"input.{entry['name']}"] for entry in bundle.manifest["inputs"])


def _running(runner: Runner, name: str, interface: Interface | None = None) -> Side:
    interface = interface or Interface(*runner.grids())

    def run(*arrays: np.ndarray) -> list[np.ndarray]:
        return interface.reals(runner(*interface.feeds(runner, arrays)))

    def integers(*arrays: np.ndarray) -> Values:
        return runner.integers(*interface.feeds(runner, arrays))

    def reals(*arrays: np.ndarray) -> Values:
        feeds = interface.feeds(runner, arrays)
        shown = {**runner.reals(*feeds)}
        parameters = stored_parameters()
        for value, q in (runner.integers(*feeds) if runner.quantized else {}).items():
            key = f"{value}.scale" if f"{value}.scale" in parameters else f"{value}.quantizer.scale"
            if key in parameters:
                zero_point = parameters[key.removesuffix("scale") + "zero_point"]
                steps = (q.astype(np.int32) - zero_point).astype(np.float32)
                shown[value] = steps * parameters[key]
        return shown

    @cache
    def stored_parameters() -> Values:
        return runner.parameters()

    images = any(len(shape) == 4 for shape in runner.shapes)
    return Side(
        name,
        run,
        integers if runner.quantized else None,
        reals,
        runner.shapes,
        runner.output_names,
        interface.outputs,
        interface.inputs,
        note=runner.note,
        layout="?" if images and not runner.says_layout else "",
    )


def ran(side: Side, run: Callable[..., Any], batch: tuple[np.ndarray, ...]) -> Any:
    """What a side gives.

    Raises:
        FuseqError: FQ005 if it cannot run on these inputs.
    """
    try:
        return run(*batch)
    except FuseqError:
        raise
    except Exception as error:
        shown = ", ".join("x".join(map(str, x.shape)) for x in batch)
        raise FuseqError(
            "FQ005",
            f"{side.name} cannot run on inputs of {shown}",
            why=first_line(error),
            fix="inputs of sizes that both sides take",
        ) from error
