"""Networks in the styles people write them, through the command line, from module to checked file.

Golden numbers are convolutions before and after fusion, batch norms before (none is left), values
that stay float in the program, and ops that ONNX Runtime computes in float between integers.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fuseq.cli.commands import app
from tests.backends.test_onnx_forms import EXACT_STATISTICS

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Golden:
    conv_before: int
    conv_after: int
    bn_before: int
    islands: list[str] = field(default_factory=list)
    runtime_float_ops: dict[str, int] = field(default_factory=dict)


NETWORKS = {
    "mobileone": Golden(31, 17, 27),
    "repvgg": Golden(12, 6, 15),
    "mobilenet_v2": Golden(13, 13, 13),
    "mobilenet_v3": Golden(16, 16, 10, [], {"HardSigmoid": 7, "Mul": 4}),
    "resnet": Golden(20, 20, 20),
    "shufflenet_v2": Golden(18, 18, 18),
    "squeezenet": Golden(11, 11, 0),
    "unet": Golden(13, 13, 8, [], {"Tanh": 2}),
    "diverse_branch": Golden(10, 2, 12),
    "asymmetric": Golden(9, 3, 9),
    "qatie": Golden(
        35, 35, 0, [], {"Tanh": 4, **{op: 5 * n for op, n in EXACT_STATISTICS.items()}}
    ),
    "qdr": Golden(27, 21, 18),
    "weight_standardized": Golden(3, 2, 1, ["elu"], {"Elu": 1}),
}


def arguments(name: str, out: Path) -> list[str]:
    shape = ["--input", "1x3x64x64"]
    data = ["--calib", "random", "--samples", "4"]
    return ["lower", f"tests.networks.{name}:small", *shape, *data, "-b", "onnx", "-o", str(out)]


def metrics(document: Any, kind: str, name: str) -> list[float]:
    return [check["metrics"][name] for check in document["checks"] if check["class"] == kind]


@pytest.mark.parametrize("name", NETWORKS)
def test_integers_equal_the_runtimes(name, tmp_path):
    golden = NETWORKS[name]
    done = CliRunner().invoke(app, [*arguments(name, tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    manifest = json.loads((tmp_path / "out" / "fuseq.json").read_text())

    assert document["passed"]
    (exact,) = [check for check in document["checks"] if check["id"] == "fused-f64"]
    assert exact["pair"].startswith("trained ")
    assert exact["metrics"]["max_rel"] <= 1e-12
    assert metrics(document, "parity", "differing") == [0, 0, 0]  # the table, and two sizes
    assert min(metrics(document, "parity", "total")) > 1000
    assert min(metrics(document, "fidelity", "sqnr_db")) > 20

    counts = {name: golden.__dict__[name] for name in ("conv_before", "conv_after", "bn_before")}
    assert manifest["ops"] == {**counts, "bn_after": 0}
    assert manifest["float_islands"] == golden.islands
    assert manifest["runtime_float_ops"] == golden.runtime_float_ops


def test_bytes_depend_on_the_network_alone(tmp_path):
    """Two processes, two hash seeds, two directories: the same bytes, and no trace of either."""
    bundles = []
    for seed in ("1", "2"):
        home = tmp_path / f"checkout-{seed}"
        shutil.copytree(ROOT / "tests" / "networks", home / "tests" / "networks")
        out = home / "out"
        subprocess.run(
            [sys.executable, "-m", "fuseq", *arguments("weight_standardized", out), "--quiet"],
            cwd=home,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        bundles.append({file.name: file.read_bytes() for file in sorted(out.iterdir())})
    first, second = (
        {name: hashlib.sha256(content).hexdigest() for name, content in bundle.items()}
        for bundle in bundles
    )
    assert first == second
    assert {"fuseq.json", "model.fp32.onnx", "model.int8.qdq.onnx"} <= first.keys()
    private = [str(tmp_path), str(ROOT), sys.prefix, str(Path.home()), time.strftime("%Y-%m-%d")]
    for name, content in bundles[0].items():
        assert not [text for text in private if text.encode() in content], name
        # Only what names source lines knows files of the user's, and those without directories.
        names_lines = name in ("program.safetensors", "lineage.json")
        assert names_lines or b".py" not in content, name
