"""The page of figures: markdown from what was measured."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import sr_student
from benchmarks.intervals import mean_half_width
from benchmarks.peers.bed import FREEZE_ACTIVATIONS, FREEZE_ALL
from benchmarks.peers.install import LISTS
from benchmarks.peers.measure import NETWORKS, Bench
from benchmarks.peers.toolkits import TOOLKITS
from fuseq.latency import median_interval

Results = dict[str, Any]
LABELS = {toolkit.module: toolkit.label for toolkit in TOOLKITS}
RUNTIMES = {"onnx": "ONNX Runtime", "tflite": "LiteRT"}

HEADER = """# Beside other toolkits

Written by `python -m benchmarks.peers`, which says how to repeat it. Each toolkit was given the
same network, the x3 super-resolution student of [sr_student.py](../sr_student.py) (RepConv blocks,
{float_steps} float steps, already fused: {float:.3f} dB; bicubic {bicubic:.3f}), the same
{calibration} images to calibrate with, the same {steps} batches to train with, and {held_out}
images to be measured on. It ran in [an environment of its own](environments/), by
[a module each](.) that uses it as its documentation says: weights per channel, activations of 8
bits. What ships is judged by one program: an ONNX file in ONNX Runtime, a TFLite file in LiteRT;
where a toolkit writes no file for these runtimes, its own converted model or simulation. It is one
network: the intervals say nothing about others.

{machine}. {versions}.
"""


def page(results: Results, bench: Bench) -> str:
    """All tables."""
    kept = {module: figures for module, figures in results.items() if module in LABELS}
    header = HEADER.format(
        float_steps=sr_student.FLOAT_STEPS,
        float=sr_student.module_psnr(bench.bed.student()),
        bicubic=sr_student.bicubic_psnr(),
        calibration=len(bench.bed.calibration()),
        held_out=len(bench.bed.held_out()),
        steps=bench.steps,
        machine=machine(),
        versions=versions(),
    )
    sections = (
        header,
        quality(kept, bench),
        training(kept, bench),
        structure(kept),
        conversion(kept),
        growth(kept),
        *(latencies(results["latency"][runtime], runtime) for runtime in RUNTIMES),
    )
    return "\n".join(sections)


def machine() -> str:
    """Cores and instructions of this machine."""
    known = Path("/proc/cpuinfo")
    flags = known.read_text() if known.exists() else ""
    names = {"avx512_vnni": "AVX512-VNNI", "avx_vnni": "AVX-VNNI", "amx_int8": "AMX"}
    found = [name for flag, name in names.items() if f" {flag} " in flags]
    return f"{platform.machine()} with {', '.join(found) or 'no int8 instructions'}, one thread"


def versions() -> str:
    """Ours, and of each environment the package that it is named after."""
    ours = ("fuseq", "torch", "onnxruntime", "ai-edge-litert")
    pinned = {
        line.replace("==", " ")
        for file in LISTS.glob("*.txt")
        for line in file.read_text().splitlines()
        if file.stem.replace("_", "-") in line.partition("==")[0]
    }
    return ", ".join(
        dict.fromkeys([*(f"{name} {version(name)}" for name in ours), *sorted(pinned)])
    )


def quality(kept: Results, bench: Bench) -> str:
    """PSNR of what ships, and what training had promised."""
    lines = [
        "## Quality and exactness\n",
        f"PSNR in dB of what ships; QAT over {bench.seeds} seeds of the data, mean and 95 % "
        "interval. *Trained* is the network as it was trained, in evaluation. *fuseq - it* is the "
        "mean of the differences of what ships, seed by seed. Pixels that differ are 8-bit values "
        "of the images of the trained network that are another one in those of what ships.\n",
        *_head("toolkit", "PTQ", "QAT, trained", "QAT, ships", "fuseq - it", "pixels that differ"),
    ]
    ours = _column(kept["ours"], "psnr") if "ours" in kept else []
    for module, figures in kept.items():
        after = figures.get("ptq", {})
        shipped = _column(figures, "psnr")
        if (not after and not shipped) or module == "ours_checked":
            continue
        ahead = [a - b for a, b in zip(ours, shipped, strict=False)] if module != "ours" else []
        runs = [run for run in figures.get("qat", {}).values() if "psnr" in run]
        differing = sum(run["differing"] for run in runs)
        total = sum(run["pixels"] for run in runs)
        lines.append(
            _row(
                LABELS[module],
                f"{after['psnr']:.3f}" if "psnr" in after else after.get("failed", ""),
                _interval(_column(figures, "trained_psnr")),
                f"**{_interval(shipped)}**" if shipped else _failure(figures.get("qat", {})),
                _interval(ahead, "+.3f"),
                f"{differing:,} of {total:,}" if runs else "",
            )
        )
    return "\n".join(lines) + "\n"


def training(kept: Results, bench: Bench) -> str:
    """What training steps cost."""
    lines = [
        "## Training steps\n",
        "CPU time of a whole step over that of a float step of the same network, taking turns in "
        f"one process, {bench.rounds} rounds: median, and 95 % interval of the last stage. The "
        "recipe observes ranges for a fifth of the steps, freezes them for two fifths, and the "
        "grids of weights too for the rest. Saved is what autograd keeps for the backward pass, "
        "over what the float step keeps.\n",
        *_head(
            "toolkit", "observing", "frozen", "all frozen", "recipe", "recipe / fuseq's", "saved"
        ),
    ]
    shares = (FREEZE_ACTIVATIONS, FREEZE_ALL - FREEZE_ACTIVATIONS, 1 - FREEZE_ALL)
    ours = None
    for module, figures in kept.items():
        task = figures.get("step", {})
        if "step" not in task:
            lines += [_row(LABELS[module], task["failed"], *[""] * 5)] if task else []
            continue
        base = task["step"]["float"]
        stages = [
            [a / b for a, b in zip(seconds, base, strict=True)]
            for name, seconds in task["step"].items()
            if name != "float"
        ]
        middle = [statistics.median(ratios) for ratios in stages]
        recipe = sum(share * ratio for share, ratio in zip(shares, middle, strict=True))
        ours = ours or recipe
        low, high = median_interval(stages[-1])
        lines.append(
            _row(
                LABELS[module],
                f"{middle[0]:.2f}",
                f"{middle[1]:.2f}",
                f"{middle[2]:.2f} ({low:.2f} to {high:.2f})",
                f"**{recipe:.2f}**",
                f"{recipe / ours:.2f}",
                f"{task['saved']['frozen'] / task['saved']['float']:.2f}",
            )
        )
    return "\n".join(lines) + "\n"


def structure(kept: Results) -> str:
    """Convolutions and batch norms that are left."""
    able = {m: figures["fused"] for m, figures in kept.items() if "fused" in figures}
    lines = [
        "## Branches\n",
        "Convolutions / batch norms that are left of networks with branches in evaluation "
        "([tests/networks](../../tests/networks/)), for a toolkit by itself: no class is taught "
        "to it, and no method of the network is called. In TFLite files the second figure counts "
        "multiplications. Where it says *fails*, the toolkit raised an error, which the command "
        "prints.\n",
        *_head("network", "as trained", *(LABELS[module] for module in able)),
    ]
    for network in NETWORKS:
        found = [runs.get(network, {}) for runs in able.values()]
        before = next((run["before"] for run in found if "before" in run), ["", ""])
        cells = ["{}/{}".format(*run["after"]) if "after" in run else "fails" for run in found]
        lines.append(_row(network.replace("_", " "), "{}/{}".format(*before), *cells))
    return "\n".join(lines) + "\n"


def conversion(kept: Results) -> str:
    """What quantization after training costs, and how large its result is."""
    lines = [
        "## From the float network to what ships\n",
        "Quantization after training, from the network in PyTorch to the file: CPU seconds, memory "
        "on top of what the imported packages take, size.\n",
        *_head("toolkit", "seconds", "seconds / fuseq's", "MiB", "kB"),
    ]
    base = kept.get("ours", {}).get("ptq", {}).get("seconds")
    for module, figures in kept.items():
        after = figures.get("ptq", {})
        if "seconds" in after:
            lines.append(
                _row(
                    LABELS[module],
                    f"{after['seconds']:.1f}",
                    f"{after['seconds'] / base:.2f}" if base else "",
                    f"{after['mebibytes']:.0f}",
                    f"{after['kilobytes']:.0f}" if "kilobytes" in after else "no file",
                )
            )
    return "\n".join(lines) + "\n"


def growth(kept: Results) -> str:
    """The same for deeper networks."""
    able = {
        module: figures["growth"]["growth"]
        for module, figures in kept.items()
        if "growth" in figures.get("growth", {})
    }
    depths = list(next(iter(able.values()), {}))
    lines = [
        "## Growth with depth\n",
        "CPU seconds of the same for students of more blocks, with random weights and two images "
        "to calibrate with; the last column is the time of the deepest over that of the first "
        f"({int(depths[-1]) / int(depths[0]):.0f} times the blocks).\n",
        *_head("toolkit", *(f"{depth} blocks" for depth in depths), "growth"),
    ]
    for module, seconds in able.items():
        each = [float(value) for value in seconds.values()]
        cells = (*(f"{value:.1f}" for value in each), f"{each[-1] / each[0]:.1f}")
        lines.append(_row(LABELS[module], *cells))
    return "\n".join(lines) + "\n"


def latencies(seconds: dict[str, list[float]], runtime: str) -> str:
    """Time of files on one runtime."""
    names = {"branches": "float, branches", "fused": "float, fused"} | LABELS
    ours = seconds.get("ours" if runtime == "onnx" else "ours_tflite", seconds["fused"])
    lines = [
        f"## Latency on {RUNTIMES[runtime]}\n",
        f"CPU time for one 64x64 image, one thread, {len(ours)} rounds in turn: ratios of each "
        "round, their median.\n",
        *_head("file", "ms", "/ float, branches", "/ float, fused", "/ fuseq's", "95 %"),
    ]
    for name, times in seconds.items():
        ratios = [
            [a / b for a, b in zip(times, base, strict=True)]
            for base in (seconds["branches"], seconds["fused"], ours)
        ]
        low, high = median_interval(ratios[-1])
        lines.append(
            _row(
                names[name],
                f"{1000 * statistics.median(times):.2f}",
                *(f"{statistics.median(each):.2f}" for each in ratios),
                f"{low:.2f} to {high:.2f}",
            )
        )
    return "\n".join(lines) + "\n"


def _column(figures: Results, key: str) -> list[float]:
    """A figure of each seed."""
    return [run[key] for run in figures.get("qat", {}).values() if key in run]


def _failure(runs: Results) -> str:
    return next((run["failed"] for run in runs.values() if "failed" in run), "")


def _interval(values: Sequence[float], form: str = ".3f") -> str:
    """`mean ± half width`, as far as there are values."""
    if not values:
        return ""
    mean = format(statistics.mean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {mean_half_width(values):.3f}"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*["---"] * len(cells))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
