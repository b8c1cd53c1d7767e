"""A third party's package: installed by pip, found by entry points, held to the same promises."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).with_name("plugin")

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x))) * 1.0


def get_model():
    return Net()


def example_inputs():
    return torch.rand(1, 3, 16, 16)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package installed, and the model beside it."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, root / "source")  # pip leaves build files behind
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    target = ["--no-build-isolation", "--target", str(root / "site"), str(root / "source")]
    subprocess.run([*install, *target], check=True)
    (root / "model.py").write_text(MODEL)
    return root / "site"


def fuseq(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuseq", *arguments],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_is_listed_beside_ours(site: Path):
    found = json.loads(fuseq(site, "passes", "--json").stdout)["passes"]
    (mine,) = (entry for entry in found if entry["name"] == "drop-unit-mul")
    assert (mine["distribution"], mine["version"]) == ("example-plugin", "1.2.0")
    assert mine["value"] == "example_plugin.drop_unit_mul:DropUnitMul"
    described = json.loads(fuseq(site, "passes", "drop-unit-mul", "--json").stdout)
    assert described["options"] == {"tolerance": {"type": "float", "default": 0.0}}


def test_a_right_pass_runs(site: Path):
    passes = "drop-unit-mul{tolerance=1e-3},fuse-affine"
    done = fuseq(site, "fuse", "model.py", "--passes", passes, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["max_rel_error_f64"] <= 1e-12


def test_a_wrong_pass_is_refused(site: Path):
    done = fuseq(site, "fuse", "model.py", "--passes", "drop-every-bn")
    assert done.returncode == 1
    assert "error[FQ301]: pass 'drop-every-bn' broke its promise" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
