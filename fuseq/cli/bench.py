"""`fuseq bench`: how long files take on this machine, beside each other."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from fuseq.cli.progress import progress
from fuseq.cli.streams import Result
from fuseq.cli.tables import table
from fuseq.errors import FuseqError
from fuseq.latency import interleaved, median_interval, percentile
from fuseq.target import parse_shape
from fuseq.timed_file import TimedFile, timed_files

PERCENTS = (50, 90, 99)


def bench(
    paths: Sequence[Path],
    inputs: Sequence[str],
    *,
    runs: int,
    warmup: int,
    threads: int | None,
    quiet: bool,
) -> Result:
    """Time files in turn, and compare each with the first.

    Args:
        paths: files and bundles.
        inputs: shapes of the inputs, in order, as `--input` spells them.
        runs: timed runs of each file.
        warmup: runs of each file before those.
        threads: of the runtimes; 1 by default.
        quiet: show no progress.

    Raises:
        FuseqError: as `timed_files` raises.
    """
    shapes = [_shape(text) for text in inputs]
    with progress(quiet, {"load": len(paths), "warm-up": warmup, "time": runs}) as report:
        files: list[TimedFile] = []
        for number, path in enumerate(paths):
            report("load", number)
            files += timed_files(path, shapes, threads)
        calls = [file.call for file in files]
        seconds = interleaved(calls, warmup=warmup, runs=runs, report=report)
    rows = [_row(file, own, seconds[0]) for file, own in zip(files, seconds, strict=True)]
    machine, remark = _machine(), _remark(files)
    document = {
        "files": rows,
        "runs": runs,
        "warmup": warmup,
        "machine": machine,
        "remark": remark,
    }
    return Result(document, Group(*_shown(rows, machine, remark)))


def _shape(text: str) -> tuple[int, ...]:
    name, shape = parse_shape(text, 0)
    if name != "0":
        raise FuseqError(
            "FQ005", f"cannot read --input {text}", fix="shapes alone, in the order of the inputs"
        )
    return shape


def _row(file: TimedFile, seconds: Sequence[float], first: Sequence[float]) -> dict[str, Any]:
    """One file of the document; times in milliseconds."""
    ratios = [own / other for own, other in zip(seconds, first, strict=True)]
    low, high = median_interval(ratios)
    return {
        "file": file.name,
        "runtime": file.runtime,
        "note": file.note,
        "threads": file.threads,
        "inputs": [{"shape": list(shape), "dtype": dtype} for shape, dtype in file.inputs],
        "load_ms": 1000 * file.load_seconds,
        **{f"p{percent}_ms": 1000 * percentile(seconds, percent) for percent in PERCENTS},
        "ratio": statistics.median(ratios),
        "ratio_interval": [low, high],
    }


def _machine() -> dict[str, Any]:
    """What the times are of."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
    }


def _remark(files: Sequence[TimedFile]) -> str:
    """What these times do not say, or the empty string."""
    devices = list(dict.fromkeys(file.device for file in files if file.device))
    if devices:
        named = " or ".join(devices)
        return f"This machine is not {named}: there times differ, and so may their order."
    if any(file.device is None for file in files):
        return "On another kind of machine, such as a phone or an NPU, even their order may differ."
    return ""


def _shown(rows: Sequence[Any], machine: Any, remark: str) -> list[RenderableType]:
    shown = table("file", "load ms", *(f"p{p} ms" for p in PERCENTS), "ratio", "95 %")
    for row in rows:
        low, high = row["ratio_interval"]
        times = [row["load_ms"], *(row[f"p{percent}_ms"] for percent in PERCENTS)]
        interval = "" if row is rows[0] else f"{low:.2f} to {high:.2f}"
        shown.add_row(
            row["file"], *(f"{time:.3g}" for time in times), f"{row['ratio']:.2f}", interval
        )
    lines = [f"{machine['cpu']} ({machine['architecture']}), {machine['cores']} cores"]
    for row in rows:
        threads = "" if row["threads"] is None else f", threads: {row['threads']}"
        inputs = ", ".join(
            f"{i['dtype']} {'x'.join(map(str, i['shape'])) or 'a number'}" for i in row["inputs"]
        )
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"{row['file']}: {row['runtime']}{threads}, {inputs}{note}")
    return [shown, *lines, *([remark] if remark else [])]
