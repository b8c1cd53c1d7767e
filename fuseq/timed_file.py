"""A file that is ready to be timed: its runtime is loaded, and its inputs lie where it reads them.

No model code is imported: inputs are those that a bundle records, or seeded ones.
"""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuseq import plugins
from fuseq.backend import Runner
from fuseq.bundle import MANIFEST, read_bundle
from fuseq.equivalence.interfaces import Interface, bundle_interface
from fuseq.equivalence.sides import golden_inputs
from fuseq.errors import FuseqError, first_line
from fuseq.quant.grid import LIMITS

Shape = tuple[int, ...]


@dataclass(frozen=True)
class TimedFile:
    """A file on its runtime.

    Attributes:
        name: for people.
        call: runs it once.
        runtime: runtime and version.
        note: what a reader must know about this host, or the empty string.
        threads: of the runtime, or None if it takes no number.
        inputs: shape and dtype of each input.
        load_seconds: to load the file.
        device: what the file is for, in words; None where nothing says it.
    """

    name: str
    call: Callable[[], object]
    runtime: str
    note: str
    threads: int | None
    inputs: tuple[tuple[Shape, str], ...]
    load_seconds: float
    device: str | None


def timed_files(path: Path, shapes: Sequence[Shape], threads: int | None) -> list[TimedFile]:
    """A file, or the float and the int8 file of a bundle.

    Args:
        path: a file of a kind that has a runner, or a bundle.
        shapes: of the inputs, images with their channels first; by default those of a bundle's
            recorded inputs, or what the file says.
        threads: of the runtime; 1 by default where the runtime takes a number.

    Raises:
        FuseqError: FQ013 for what no runner here reads, FQ005 for shapes that are missing or do
            not fit, FQ012 for threads that a runtime does not take, FQ503 where the runtime is an
            emulator, FQ502 where it is missing.
    """
    if not os.path.isfile(path / MANIFEST):
        return [_timed(path, path.name, None, shapes, (), Interface(), threads)]
    bundle = read_bundle(path)
    bundle.require_intact()
    device = plugins.load("backends", bundle.manifest["backend"]).device
    files = [file for kind in ("float", "int8") if (file := bundle.file(kind))]
    golden = bundle.file("golden")
    if not files or golden is None:
        raise FuseqError("FQ013", f"bundle '{path}' lists no file to run", fix="lower again")
    recorded, interface = golden_inputs(bundle, golden), bundle_interface(bundle)
    return [
        _timed(file, f"{path.name}/{file.name}", device, shapes, recorded, interface, threads)
        for file in files
    ]


def _timed(
    file: Path,
    name: str,
    device: str | None,
    shapes: Sequence[Shape],
    recorded: tuple[np.ndarray, ...],
    interface: Interface,
    threads: int | None,
) -> TimedFile:
    kind = _runner_of(file)
    given = _threads(kind, file, threads)
    start = time.perf_counter()
    runner: Runner = kind(file) if given is None else kind(file, threads=given)
    seconds = time.perf_counter() - start
    chosen = tuple(shapes) or tuple(x.shape for x in recorded) or _fixed(runner, name)
    _require_fit(runner, name, chosen)
    try:
        if recorded and not shapes:
            feeds = interface.feeds(runner, recorded)
        else:
            feeds = _seeded(chosen, runner.dtypes)
        call = runner.ready(*feeds)
        call()
    except FuseqError:
        raise
    except Exception as error:
        shown = ", ".join("x".join(map(str, shape)) for shape in chosen)
        raise FuseqError(
            "FQ005",
            f"{name} cannot run on inputs of {shown}",
            why=first_line(error),
            fix="--input with a shape that the file takes",
        ) from error
    inputs = tuple((x.shape, str(x.dtype)) for x in feeds)
    return TimedFile(name, call, runner.runtime, runner.note, given, inputs, seconds, device)


def _runner_of(file: Path) -> Callable[..., Runner]:
    if not os.path.isfile(file):
        raise FuseqError("FQ013", f"'{file}' is no file and no bundle", fix="check the path")
    known = plugins.available("runners")
    ending = file.suffix.removeprefix(".")
    if ending not in known:
        raise FuseqError(
            "FQ013",
            f"nothing here runs '{file.name}'",
            fix=f"a bundle, or files that end in {', '.join(f'.{k}' for k in known)}",
        )
    kind: type[Runner] = plugins.load("runners", ending)
    if kind.emulates:
        raise FuseqError(
            "FQ503",
            f"'{file.name}' cannot be timed on this machine",
            why=f"its runner emulates {kind.emulates}, and what an emulator takes is no latency",
            fix="time it on the device",
        )
    return kind


def _threads(kind: Callable[..., Runner], file: Path, threads: int | None) -> int | None:
    if "threads" in inspect.signature(kind).parameters:
        return threads or 1
    if threads is not None:
        raise FuseqError(
            "FQ012", f"the runtime of '{file.name}' takes no number of threads", fix="no --threads"
        )
    return None


def _fixed(runner: Runner, name: str) -> tuple[Shape, ...]:
    sizes = [tuple(n for n in shape if n is not None) for shape in runner.shapes]
    if any(len(fixed) < len(shape) for fixed, shape in zip(sizes, runner.shapes, strict=True)):
        raise FuseqError(
            "FQ005",
            f"{name} does not say how large its inputs are",
            why=f"it takes {_spelled(runner.shapes)}",
            fix="--input 1x3x224x224, once for each input, in order; or give the bundle",
        )
    return tuple(sizes)


def _require_fit(runner: Runner, name: str, shapes: Sequence[Shape]) -> None:
    fits = len(shapes) == len(runner.shapes) and all(
        len(shape) == len(wanted)
        and all(n in (None, m) for n, m in zip(wanted, shape, strict=True))
        for wanted, shape in zip(runner.shapes, shapes, strict=True)
    )
    if not fits:
        raise FuseqError(
            "FQ005",
            f"{name} does not take inputs of {_spelled(shapes)}",
            why=f"it takes {_spelled(runner.shapes)}",
            fix="--input with such a shape, once for each input, in order",
        )


def _spelled(shapes: Sequence[Sequence[int | None]]) -> str:
    return ", ".join("x".join("?" if n is None else str(n) for n in shape) for shape in shapes)


def _seeded(shapes: Sequence[Shape], dtypes: Sequence[str]) -> list[np.ndarray]:
    """Uniform values: reals in 0..1, 8 and 16 bits in their whole range, others 0 or 1."""
    random = np.random.default_rng(0)
    values = []
    for shape, dtype in zip(shapes, dtypes, strict=True):
        if np.issubdtype(np.dtype(dtype), np.floating):
            values.append(random.random(shape).astype(dtype))
        else:
            low, high = LIMITS[dtype] if dtype in LIMITS and dtype != "int32" else (0, 1)
            values.append(random.integers(low, high + 1, shape).astype(dtype))
    return values
