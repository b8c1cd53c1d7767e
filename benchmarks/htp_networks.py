"""Whole networks on the emulators of Snapdragon chips: what each costs to lower and verify.

    python -m benchmarks.htp_networks [--chip sm8450 ...] [--network repvgg_a0 ...]

Each network is lowered for each chip in a process of its own, at 64x64 pixels, with every check.
Printed are the values that differ from exact arithmetic, op by op, the largest difference in steps,
seconds of processors, and the memory of the largest process. It takes onnxruntime-qnn on Linux
x86-64, and a quarter of an hour for all.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import fuseq
from fuseq.backends.qnn import QnnBackend
from fuseq.errors import FuseqError
from tests.htp.test_networks import CHIPS, NETWORKS, network


def measure(name: str, chip: str) -> dict[str, object]:
    """Lower one network in this process, and say what that took."""
    torch.manual_seed(0)
    image = (torch.rand(1, 3, 64, 64),)
    model, backend = network(name).eval(), QnnBackend(chips=(chip,))
    with tempfile.TemporaryDirectory() as place:
        try:
            bundle = fuseq.lower(
                model, image, backend=backend, out=Path(place) / "out", calibration=[image]
            )
        except FuseqError as error:
            return {"refused": f"{error.code}: {error.what}"}
    assert bundle.result is not None
    checks = {check.id: check.metrics for check in bundle.result.checks}
    ops = checks[f"ops-{chip}-1x3x64x64"]
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "passed": bundle.result.passed,
        "float_ops": checks[f"graph-{chip}"]["float_ops"],
        "differing": ops["differing"] / ops["total"],
        "max_lsb": ops["max_lsb"],
        "seconds": sum(each.ru_utime + each.ru_stime for each in usage),
        "mb": max(each.ru_maxrss for each in usage) / 1024,
    }


def main() -> None:
    """Print one line for each network and chip."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--chip", nargs="+", default=CHIPS)
    parser.add_argument("--network", nargs="+", default=NETWORKS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.here:
        print(json.dumps(measure(chosen.network[0], chosen.chip[0])))
        return
    for name in chosen.network:
        for chip in chosen.chip:
            command = [sys.executable, "-m", "benchmarks.htp_networks", "--here"]
            done = subprocess.run(
                [*command, "--network", name, "--chip", chip], capture_output=True, text=True
            )
            if done.returncode:
                print(f"{name:16}{chip}  {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            if "refused" in found:
                print(f"{name:16}{chip}  {found['refused']}", flush=True)
                continue
            print(
                f"{name:16}{chip}  {'passed' if found['passed'] else 'FAILED'}"
                f"{found['float_ops']:3} in float{found['differing']:8.2%} differ"
                f"{found['max_lsb']:3} at most{found['seconds']:7.1f} s"
                f"{found['mb']:6.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
