"""Run every example from its committed weights, and write the table of their figures.

    python examples/common/report.py --out build/examples --table examples/figures.md

Two examples run at a time, on one thread each; what they say is in their ``.log`` files. One whose
``results.json`` is in the folder already is not run again, so what was interrupted goes on.

The exit code is 1 if a requirement fails: on each system and backend QAT gives at least the PSNR of
PTQ, no integer of a file differs from those of the network that was trained, and INT8
super-resolution stays within 0.15 dB of the float network it started from.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import fuseq

EXAMPLES = Path(__file__).parents[1]
SYSTEMS = {
    "sisr_x3": "x3 super-resolution",
    "qatie": "image enhancement",
    "qdr": "restoration",
}
PAPERS = """\
| paper | data | FP32 | PTQ INT8 | QAT INT8 |
|---|---|---|---|---|
| x3 super-resolution, deployed (arXiv 2604.20291) | DIV2K | 30.28 / 0.863 | | 30.13 / 0.858 |
| x3 super-resolution, challenge entry | DIV2K | 29.98 / 0.8730 | | 29.79 / 0.8634 |
| image enhancement (arXiv 2604.21743) | DPED | | 20.576 / 0.6139 | 21.050 / 0.725 |
| restoration (arXiv 2603.09624) | four tasks | | | 96.5 % of FP32 |"""
PAPERS_DROPS = {"MobileOne": 0.1347, "RepConv": 0.2405, "RepDW": 0.6552}
LARGEST_DROP = 0.15


def run(name: str, command: Sequence[str], out: Path) -> None:
    """Run a script of an example that has no results yet.

    Raises:
        SystemExit: The script failed.
    """
    if (out / name / "results.json").exists():
        return
    log = out / f"{name}.log"
    print(f"{name}: {log}", flush=True)
    started = time.monotonic()
    with log.open("w") as stream:
        done = subprocess.run(
            [sys.executable, *command, "--out", str(out / name)],
            stdout=stream,
            stderr=stream,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{name} failed; the end of {log}:\n{log.read_text()[-3000:]}")
    print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def systems_table(results: dict[str, Any]) -> list[str]:
    """Lay out one line for each system and backend."""
    lines = [
        "| system | backend | FP32 | PTQ INT8 | **QAT INT8** | QAT - PTQ | FP32 - QAT | "
        "FP32, trained on as long | its PTQ | differing integers |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in SYSTEMS.items():
        result = results[name]
        for backend, found in result["backends"].items():
            ptq, qat, start = (x["psnr"] for x in (found["ptq"], found["qat"], result["float"]))
            cells = (
                title,
                backend,
                pair(result["float"]),
                pair(found["ptq"]),
                f"**{pair(found['qat'])}**",
                f"{qat - ptq:+.3f}",
                f"{start - qat:+.3f}",
                pair(result["tuned"]),
                pair(found["tuned-ptq"]),
                f"{found['differing']} of {found['compared']:,}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def ablation_table(results: dict[str, Any]) -> list[str]:
    """Lay out one line for each kind of block, the smallest drop first."""
    drops = {name: x["float"]["psnr"] - x["ptq"]["psnr"] for name, x in results.items()}
    lines = ["| block | FP32 | PTQ INT8 | drop | the paper's |", "|---|---|---|---|---|"]
    for name in sorted(drops, key=drops.__getitem__):
        cells = (name, pair(results[name]["float"]), pair(results[name]["ptq"]))
        numbers = (f"{drops[name]:.3f}", f"{PAPERS_DROPS[name]:.3f}")
        lines.append(f"| {' | '.join((*cells, *numbers))} |")
    return lines


def pair(figures: dict[str, float]) -> str:
    """Spell PSNR and SSIM."""
    return f"{figures['psnr']:.3f} / {figures['ssim']:.4f}"


def failures(results: dict[str, Any]) -> list[str]:
    """Name every requirement that does not hold."""
    found = []
    for name in SYSTEMS:
        for backend, result in results[name]["backends"].items():
            qat, where = result["qat"]["psnr"], f"{name}, {backend}"
            if qat < result["ptq"]["psnr"]:
                found.append(f"{where}: QAT gives less than PTQ")
            if result["differing"] or not result["compared"]:
                found.append(f"{where}: {result['differing']} integers differ")
            if name == "sisr_x3" and results[name]["float"]["psnr"] - qat > LARGEST_DROP:
                found.append(f"{where}: INT8 is more than {LARGEST_DROP} dB below float")
    return found


def page(results: dict[str, Any]) -> str:
    """Lay out the whole page."""
    versions = f"fuseq {fuseq.__version__}, torch {torch.__version__}, {platform.machine()}"
    parts = (
        "# What the examples measure",
        "`make examples` wrote this page. PSNR over RGB in dB / SSIM, on generated images that no "
        "training saw. INT8 is the file, run in its runtime. PTQ is min-max calibration. "
        "*Trained on as long* is what QAT starts from, trained in float with as many batches.",
        "\n".join(systems_table(results)),
        "The papers' figures are of other images and other trainings. What can be compared is how "
        "much INT8 costs.",
        PAPERS,
        "## Blocks of super-resolution",
        "Each kind of block trained alike in float for 300 steps and quantized after training, in "
        "LiteRT; the smallest drop first. One run each.",
        "\n".join(ablation_table(results["ablation"])),
        f"{versions}. Seed 0.",
    )
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run all, write the page, name what fails."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--table", type=Path, required=True)
    options.add_argument("--jobs", type=int, default=2)
    options.add_argument("options", nargs="*", help="for every example, after --")
    chosen = options.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    commands = {
        name: (
            str(EXAMPLES / name / "train.py"),
            *("--weights", str(EXAMPLES / name / "weights.safetensors")),
            *chosen.options,
        )
        for name in SYSTEMS
    }
    commands["ablation"] = (str(EXAMPLES / "sisr_x3" / "ablation.py"), *chosen.options)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        list(pool.map(lambda name: run(name, commands[name], chosen.out), commands))
    results = {
        name: json.loads((chosen.out / name / "results.json").read_text()) for name in commands
    }
    text = page(results)
    chosen.table.write_text(text)
    print(text)
    failed = failures(results)
    if failed:
        raise SystemExit("\n".join(("requirements that do not hold:", *failed)))


if __name__ == "__main__":
    main()
