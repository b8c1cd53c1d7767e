"""What is held for every chip before a bundle is handed out.

On 64x64 pixels, because the emulator is slow: every op from the HTP's own operands, once for each
family of processors, because families round differently; a context that is loaded against a file
that is compiled afresh; and, only reported, the outputs from end to end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fuseq.backends.qnn.chips import Chip
from fuseq.backends.qnn.emulator import GRAPH, compile_context
from fuseq.backends.qnn.families import of_each_family
from fuseq.backends.qnn.htp_graph import read_htp_graph
from fuseq.backends.qnn.htp_runner import HtpRunner
from fuseq.backends.qnn.op_steps import op_check
from fuseq.backends.qnn.patch import at_patch
from fuseq.backends.qnn.worker import CONTEXT
from fuseq.equivalence.compare import fidelity, parity
from fuseq.equivalence.interfaces import integers_of, interface_of
from fuseq.equivalence.result import Check, Divergence
from fuseq.program import Program

Found = tuple[Check, Divergence | None]


def chip_checks(
    program: Program, folder: Path, chips: Sequence[Chip], write: Callable[[Program, Path], Path]
) -> list[Found]:
    """Every check of every chip.

    Args:
        program: quantized, at a fixed size.
        folder: where the contexts of the chips are.
        chips: that the program was compiled for.
        write: writes the QDQ file of a program into a directory, and says where it is.

    Raises:
        FuseqError: as compiling and running raise.
    """
    patch = at_patch(program)
    with tempfile.TemporaryDirectory(prefix="fuseq.patch.") as place:
        model = write(patch, Path(place))
        found: list[Found] = [(_compiled(chip, folder / chip.name / GRAPH), None) for chip in chips]
        fresh: dict[Chip, tuple[np.ndarray, ...]] = {}
        for chip in of_each_family(program, chips):
            fresh[chip] = _run(patch, model, chip)
            found.append(_ops(patch, model, chip, fresh[chip]))
        for chip in chips:
            context = folder / chip.name / CONTEXT
            if patch is not program:
                context = compile_context(model, chip, Path(place) / chip.name).context
            outputs = fresh[chip] if chip in fresh else _run(patch, model, chip)
            found += [(check, None) for check in _outputs(patch, model, chip, context, outputs)]
    return found


def _run(program: Program, model: Path, chip: Chip) -> tuple[np.ndarray, ...]:
    """Outputs of the file as it is, compiled afresh."""
    runner = HtpRunner(model, chip)
    return runner(*_feeds(program, runner))


def _compiled(chip: Chip, file: Path) -> Check:
    """What `compile_context` required already, for the record."""
    graph = read_htp_graph(file)
    metrics = {
        "ops": sum(graph.ops.values()),
        "transposes": graph.transposes,
        "float_ops": len(graph.floats),
    }
    pair = f"QDQ file <-> graph given to HTP v{chip.htp}"
    gate = {"float_ops": 0}
    return Check(f"graph-{chip.name}", pair, "parity", metrics, gate, not graph.floats)


def shown_integers(program: Program, runner: HtpRunner) -> dict[str, np.ndarray]:
    """Integers of every value that the HTP computes from the example inputs, by name.

    Args:
        program: quantized.
        runner: of its QDQ file.
    """
    # All of one run: what the file gives that shows nothing may have been fused otherwise.
    shown, outputs = runner.shown(*_feeds(program, runner))
    grids = interface_of(program).outputs
    for node, grid, output in zip(program.outputs(), grids, outputs, strict=True):
        if grid is not None:
            shown[node.name] = integers_of(output, grid)
    return shown


def _ops(program: Program, model: Path, chip: Chip, fresh: tuple[np.ndarray, ...]) -> Found:
    runner, inputs = HtpRunner(model, chip), program.example_inputs
    size = "x".join(map(str, inputs[0].shape))
    pair = f"exact arithmetic <-> {runner.runtime}, op by op"
    shown = shown_integers(program, runner)
    check, first = op_check(f"ops-{chip.name}-{size}", pair, program, shown, inputs, runner.note)
    outputs = zip(program.outputs(), interface_of(program).outputs, strict=True)
    values = zip(outputs, fresh, strict=True)
    unshown = sum(
        int(np.count_nonzero(integers_of(y, grid) != shown[node.name]))
        for (node, grid), y in values
        if grid is not None
    )
    return replace(check, metrics={**check.metrics, "differing_unshown": unshown}), first


def _outputs(
    program: Program, model: Path, chip: Chip, context: Path, fresh: tuple[np.ndarray, ...]
) -> list[Check]:
    runner = HtpRunner(model, chip)
    loaded = runner.run(context, *_feeds(program, runner))
    with torch.no_grad():
        leaves = pytree.tree_leaves(program(*program.example_inputs))
    ours, theirs = [y.numpy() for y in leaves], interface_of(program).reals(fresh)
    return [
        parity(
            f"reload-{chip.name}",
            f"compiled afresh <-> loaded context ({chip.name})",
            fresh,
            loaded,
        ),
        fidelity(
            f"end-to-end-{chip.name}",
            f"program <-> {runner.runtime}, end to end",
            ours,
            theirs,
            note=runner.note,
        ),
    ]


def _feeds(program: Program, runner: HtpRunner) -> list[np.ndarray]:
    inputs = tuple(x.numpy() for x in program.example_inputs)
    return interface_of(program).feeds(runner, inputs)
