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
    torch.manual_seed(0)
    return Net()


def example_inputs():
    return torch.rand(1, 3, 16, 16)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the package installed, and the model beside it."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, root / "source")  # pip leaves build files behind
    install(root / "source", root / "site")
    (root / "model.py").write_text(MODEL)
    return root / "site"


def install(source: Path, site: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    target = ["--no-build-isolation", "--target", str(site), str(source)]
    subprocess.run([*pip, *target], check=True)


def fuseq(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return python(site, "-m", "fuseq", *arguments)


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
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


@pytest.fixture(scope="module")
def bundle(site: Path) -> str:
    """What their backend makes of the model, by the command line."""
    done = fuseq(
        site, "lower", "model.py", "-b", "steps{title=mine}", "-o", "build", "--calib", "random"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_their_backend_is_listed_and_described(site: Path):
    found = json.loads(fuseq(site, "backends", "--json").stdout)["backends"]
    mine = {entry["name"]: entry["distribution"] for entry in found}
    assert mine == {**mine, "steps": "example-plugin", "onnx": "fuseq"}
    described = json.loads(fuseq(site, "backends", "steps", "--json").stdout)
    assert described["options"] == {"title": {"type": "str", "default": "untitled"}}
    assert "runs .steps" in fuseq(site, "doctor").stdout


def test_a_model_is_lowered_to_it_and_checked(site: Path, bundle: str):
    manifest = json.loads((site.parent / bundle / "fuseq.json").read_text())
    assert manifest["backend"] == "steps"
    assert [entry["kind"] for entry in manifest["files"] if entry["path"] == "model.steps"] == [
        "int8"
    ]
    parity = [check for check in manifest["checks"] if check["class"] == "parity"]
    assert len(parity) >= 2
    assert all(check["passed"] for check in manifest["checks"])


def test_check_and_bench_use_its_runner(site: Path, bundle: str):
    whole = fuseq(site, "check", bundle)
    assert whole.returncode == 0, whole.stderr
    pair = fuseq(site, "check", "model.py", f"{bundle}/model.steps", "--json")
    assert pair.returncode == 0, pair.stderr
    (check,) = json.loads(pair.stdout)["checks"]
    assert check["class"] == "fidelity"
    assert check["metrics"]["sqnr_db"] > 20
    timed = fuseq(site, "bench", bundle, "--runs", "2", "--warmup", "0", "--json")
    assert timed.returncode == 0, timed.stderr
    document = json.loads(timed.stdout)
    (row,) = document["files"]
    assert (row["runtime"].split()[0], row["threads"]) == ("numpy", None)
    assert "a computer with numpy" in document["remark"]


def test_a_wrong_integer_in_its_file_is_found(site: Path, bundle: str):
    edit = (
        "import numpy as np; a = dict(np.load('build/model.steps')); "
        "key = next(k for k in a if k.endswith('.bias') and a[k].ndim); a[key] = a[key] + 200; "
        "np.savez(open('wrong.steps', 'wb'), **a)"
    )
    assert python(site, "-c", edit).returncode == 0
    done = fuseq(site, "check", f"{bundle}/model.steps", "wrong.steps")
    assert done.returncode == 1
    assert "error[FQ302]" in done.stderr


def test_what_it_cannot_lower_is_refused_all_at_once(site: Path):
    text = MODEL.replace("* 1.0", "* self.conv(x).sigmoid()")
    (site.parent / "gated.py").write_text(text)
    done = fuseq(site, "lower", "gated.py", "-b", "steps", "-o", "no", "--calib", "random")
    assert done.returncode == 3
    assert "error[FQ501]: backend 'steps' cannot lower 2" in done.stderr
    assert not (site.parent / "no").exists()


def test_two_packages_with_one_name_are_told_apart(site: Path, tmp_path: Path):
    shutil.copytree(PACKAGE, tmp_path / "source")
    project = tmp_path / "source" / "pyproject.toml"
    project.write_text(project.read_text().replace('name = "example-plugin"', 'name = "other"'))
    install(tmp_path / "source", tmp_path / "other-site")
    both = f"import sys; sys.path.insert(0, {str(tmp_path / 'other-site')!r}); import fuseq.cli; "
    done = python(site, "-c", f"{both} sys.argv = ['fuseq', 'backends']; fuseq.cli.main()")
    assert done.returncode == 2
    assert "error[FQ010]: two distributions register the backend 'steps'" in done.stderr
    for name in ("example-plugin", "other"):
        assert f"{name} (example_plugin.steps:StepsBackend)" in done.stderr


def test_its_own_tests_pass(site: Path):
    theirs = str(site.parent / "source" / "their_tests")
    done = python(site, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", theirs)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
