"""Runs the scripts of the examples as their users do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
SHORT = ("--steps 5 --tuning-steps 5 --images 4 --batch 1").split()


def run(script: str, out: Path, *options: str, ranks: int = 1) -> str:
    """What a script prints; with several ranks, torchrun runs it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    started = [str(Path(__file__).with_name("few_images.py")), str(EXAMPLES / script)]
    command = [*(launcher if ranks > 1 else []), *started, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, *command, *SHORT, *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(out: Path, *backends: str) -> dict[str, Any]:
    """The figures that a script kept: of these backends, and with no integer apart."""
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    assert list(found["backends"]) == list(backends)
    for result in found["backends"].values():
        assert result["differing"] == 0 < result["compared"]
        for kind in ("ptq", "tuned-ptq", "qat"):
            assert 5 < result[kind]["psnr"] < 60
            assert 0 < result[kind]["ssim"] < 1
    return found
