"""Which toolkits are compared, and how one is given a task in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.install import python

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Toolkit:
    """One row of the tables.

    Attributes:
        label: as the tables call it.
        module: of this package.
        environment: a name in `environments`; empty for the one that this runs in.
        tasks: what it can do.
    """

    label: str
    module: str
    environment: str
    tasks: frozenset[str]

    @property
    def python(self) -> str:
        """The interpreter that runs it."""
        return str(python(self.environment)) if self.environment else sys.executable

    @property
    def installed(self) -> bool:
        """Whether its environment was made."""
        return Path(self.python).exists()


def _toolkit(label: str, module: str, environment: str, tasks: str) -> Toolkit:
    return Toolkit(label, module, environment, frozenset(tasks.split()))


TOOLKITS = (
    _toolkit("fuseq", "ours", "", "ptq qat step growth fused"),
    _toolkit("fuseq, checks included", "ours_checked", "", "ptq growth"),
    _toolkit("fuseq ptq", "ours_aided", "", "ptq"),
    _toolkit("fuseq, TFLite", "ours_tflite", "", "ptq qat growth"),
    _toolkit("torch.ao FX", "torch_ao", "", "ptq qat step growth fused"),
    _toolkit("torch.ao FX, `FakeQuantize`", "torch_ao_v0", "", "qat step"),
    _toolkit("torchao PT2E", "torchao_pt2e", "torchao", "ptq qat step growth fused"),
    _toolkit("Brevitas", "brevitas_toolkit", "brevitas", "ptq qat step growth fused"),
    _toolkit("AIMET", "aimet", "aimet", "ptq qat step growth fused"),
    _toolkit("NNCF", "nncf_toolkit", "nncf", "ptq qat step growth fused"),
    _toolkit("ModelOpt", "modelopt_toolkit", "modelopt", "ptq qat step growth fused"),
    _toolkit("ORT `quantize_static`", "onnxruntime_static", "onnxruntime", "ptq growth fused"),
    _toolkit("ORT `quantize_static`, QNN", "onnxruntime_qnn", "onnxruntime", "ptq growth"),
    _toolkit("onnxsim", "onnxsim_route", "onnxruntime", "fused"),
    _toolkit("litert-torch", "litert_torch_route", "litert_torch", "ptq qat step growth fused"),
    _toolkit("onnx2tf", "onnx2tf_route", "onnx2tf", "ptq growth fused"),
)  # fmt: skip


def run(toolkit: Toolkit, task: str, bed: Path, out: Path, *options: str) -> dict[str, Any]:
    """What the worker printed; `{"failed": reason}` if it did not come to that."""
    command = [toolkit.python, "-m", "benchmarks.peers.worker", toolkit.module, task]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(bed), str(out), *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
