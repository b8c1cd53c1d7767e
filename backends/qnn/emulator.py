"""Compiling for a chip and running on its emulator, one process for each.

Nothing but files goes between the processes. What comes back was proved first: the context names
the chip that was asked for, and its graph has no float tensor inside.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fuseq.backends.qnn import worker
from fuseq.backends.qnn.chips import Chip
from fuseq.backends.qnn.host import require_emulator
from fuseq.backends.qnn.htp_graph import (
    HtpGraph,
    only_graph,
    require_integer_graph,
    require_made_for,
)
from fuseq.backends.qnn.refused_nodes import refused_nodes
from fuseq.errors import FuseqError

BINARY = "model_ctx_qnn.bin"
GRAPH = "graph.json"
TIMEOUT = 600.0
"""Seconds. The slowest compile measured, 1920x1080, took 17."""

_TIMESTAMP = re.compile(rb'(?<="timestamp": ")\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?= UTC")')
_NO_TIME = b"1980-01-01 00:00:00"
_ROOM = 2**20
"""Bytes. With less left on the disk, that is why the tool failed."""


@dataclass(frozen=True)
class Compiled:
    """A context for one chip.

    Attributes:
        context: an ONNX file whose one node names the binary.
        binary: the context binary, beside it.
        graph: what the HTP was given.
        peak_rss_mb: largest memory of the compiling process.
    """

    context: Path
    binary: Path
    graph: HtpGraph
    peak_rss_mb: float


def compile_context(model: Path, chip: Chip, out: Path, *, timeout: float = TIMEOUT) -> Compiled:
    """Compile a QDQ file for a chip.

    Args:
        model: ONNX with fixed sizes.
        chip: what for.
        out: directory to make, with `model_ctx.onnx`, `model_ctx_qnn.bin` and `graph.json`. It is
            not made unless everything went well.
        timeout: seconds.

    Raises:
        FuseqError: FQ008 if `out` exists; FQ303, FQ304 if the result is not what was asked for;
            FQ502 to FQ506.
        OSError: if the disk is full.
    """
    if out.exists():
        raise FuseqError("FQ008", f"'{out}' exists", fix="choose another place")
    with tempfile.TemporaryDirectory(prefix=".htp.", dir=out.parent) as folder:
        answer = _work("compile", model, chip, Path(folder), timeout)
        require_made_for(chip, Path(folder) / worker.CONTEXT)
        graph_file = only_graph(Path(folder) / "graphs")
        graph = require_integer_graph(graph_file)
        stage = Path(folder) / "finished"
        stage.mkdir()
        for name in (worker.CONTEXT, BINARY):
            (Path(folder) / name).rename(stage / name)
        graph_file.rename(stage / GRAPH)
        stage.rename(out)
    return Compiled(out / worker.CONTEXT, out / BINARY, graph, answer["peak_rss_mb"])


def write_dlc(model: Path, chip: Chip, out: Path, *, timeout: float = TIMEOUT) -> None:
    """Write a QDQ file as a DLC, which the vendor's tools read.

    The tool notes the time of day in it. That is replaced by the date that its archive's entries
    have, so that the same model gives the same bytes.

    Args:
        model: ONNX with fixed sizes.
        chip: what for.
        out: file to write, whose directory exists.
        timeout: seconds.

    Raises:
        FuseqError: FQ008 if `out` exists; FQ502 to FQ506.
    """
    if out.exists():
        raise FuseqError("FQ008", f"'{out}' exists", fix="choose another place")
    with tempfile.TemporaryDirectory(prefix=".htp.", dir=out.parent) as folder:
        _work("dlc", model, chip, Path(folder), timeout)
        [written] = Path(folder, "dlc").glob("*.dlc")
        written.write_bytes(_TIMESTAMP.sub(_NO_TIME, written.read_bytes()))
        written.rename(out)


def run(
    model: Path, chip: Chip, inputs: Mapping[str, np.ndarray], *, timeout: float = TIMEOUT
) -> dict[str, np.ndarray]:
    """Outputs of a QDQ file or of a compiled context on the emulator of a chip.

    Args:
        model: ONNX with fixed sizes, or the `model_ctx.onnx` of a context.
        chip: whose emulator; a context runs on any, so it must be the one it was compiled for.
        inputs: by name, in the file's own dtypes.
        timeout: seconds.

    Returns:
        Outputs by name, in the file's own dtypes.

    Raises:
        FuseqError: FQ013 for a context that cannot be loaded; FQ502 to FQ506.
    """
    with tempfile.TemporaryDirectory(prefix="fuseq.htp.") as folder:
        np.savez(Path(folder) / "inputs.npz", *inputs.values())
        answer = _work("run", model, chip, Path(folder), timeout, names=list(inputs))
        with np.load(Path(folder) / "outputs.npz") as outputs:
            return dict(zip(answer["names"], outputs.values(), strict=True))


def _work(
    action: str, model: Path, chip: Chip, folder: Path, timeout: float, **request: Any
) -> dict[str, Any]:
    """The answer to a request, by a process of its own that leaves its files in `folder`."""
    require_emulator()
    document = {"action": action, "model": str(model.absolute()), "soc_model": chip.soc_model}
    log = folder / "log.txt"
    with log.open("wb") as said:
        try:
            done = subprocess.run(
                [sys.executable, "-P", worker.__file__],
                input=json.dumps({**document, **request}).encode(),
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=folder,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise FuseqError(
                "FQ506",
                f"the HTP tool did not finish to {action} {model.name} for {chip.name} "
                f"within {timeout:g} s",
                why="it was stopped, and what it had written is gone",
                fix="a smaller frame shows whether it is the size; then allow more time",
            ) from error
    result = folder / "result.json"
    answer: dict[str, Any] = json.loads(result.read_text() or "{}") if result.exists() else {}
    failed = done.returncode or not answer or answer["error"]
    if failed and shutil.disk_usage(folder).free < _ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
    if done.returncode or not answer:
        raise _crash(action, model, chip, _ended(done.returncode))
    if answer["error"]:
        if answer["ready"]:
            raise _crash(action, model, chip, answer["error"])
        raise _failure(model, chip, answer["error"], log.read_text(errors="replace"))
    return answer


def _ended(status: int) -> str:
    if status >= 0:
        return f"it ended with status {status}"
    memory = " (most often that means that memory ran out)" if status == -signal.SIGKILL else ""
    return f"it was ended by {signal.Signals(-status).name}{memory}"


def _crash(action: str, model: Path, chip: Chip, why: str) -> FuseqError:
    context = model.name == worker.CONTEXT
    return FuseqError(
        "FQ505",
        f"the HTP tool crashed or failed when asked to {action} {model.name} for {chip.name}",
        why=why,
        fix="compare the sha256 of the context with the one in fuseq.json: a damaged one crashes"
        if context
        else "try a smaller frame, or another chip, and leave out layers until it holds",
    )


def _failure(model: Path, chip: Chip, error: str, log: str) -> FuseqError:
    if model.name == worker.CONTEXT:
        return FuseqError(
            "FQ013",
            f"{model.name} cannot be loaded for {chip.name}",
            why=error,
            fix="compare its sha256 with the one in fuseq.json, or lower again",
        )
    refused = refused_nodes(log)
    return FuseqError(
        "FQ504",
        f"the HTP compiler refuses {model.name} for {chip.name}"
        + (f": {len(refused)} of its nodes" if refused else ""),
        where=f"`{refused[0].name}`" if refused else None,
        why="\n       ".join(f"`{n.name}` ({n.op}): {n.reason}" for n in refused) or error,
        fix="rewrite these operations, or keep them out of the integer part",
    )
