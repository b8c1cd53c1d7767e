"""Bad input: a coded error with its place and a way out, the documented status, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fuseq.target import load_target
from tests.cli.conftest import edited


@pytest.fixture
def lower(run, tmp_path):
    """Lower, and see that a failure leaves nothing behind, not even beside its place."""

    def invoke(target, *arguments):
        out = tmp_path / "out" / "bundle"
        out.parent.mkdir(exist_ok=True)
        answer = run("lower", target, "-b", "onnx", "-o", out, *arguments)
        assert answer.status != 0
        assert answer.stdout == ""
        assert list(out.parent.iterdir()) == []
        return answer

    return invoke


@pytest.mark.parametrize(
    ("target", "help"),
    [
        ("modle.py", "did you mean"),
        ("weights.pt", "--weights weights.pt"),
        ("net.onnx", "inspected and checked"),
        ("mine.nets", "name the factory"),
        ("no_such_package.nets:Net", "install the package"),
    ],
)
def test_no_such_target(lower, model, monkeypatch, target, help):
    monkeypatch.chdir(model.parent)
    answer = lower(target)
    assert (answer.status, answer.code) == (2, "FQ001")
    assert help in answer.stderr


def test_no_get_model(lower, model):
    answer = lower(edited(model, "def get_model", "def get_modle"))
    assert (answer.status, answer.code) == (2, "FQ002")
    assert "did you mean 'get_modle'?" in answer.stderr
    assert "Net, get_modle, example_inputs, calibration_data" in answer.stderr
    assert "def get_model():\n    return MyNetwork()" in answer.stderr


@pytest.mark.parametrize(
    ("old", "new", "place", "why"),
    [
        ("import torch\n", "import torch\nraise ValueError('no')\n", "model.py:3: raise", "no"),
        ("import torch\n", "import torch\nimport sys; sys.exit(0)\n", "model.py:3: ", "0"),
        ("import torch\n", "import torch\nx = = 1\n", "model.py:3", "invalid syntax"),
        ("import torch\n", "import torch\nimport no_such\n", "model.py:3: import", "no_such"),
        ("    return Net(width)", "    return Net(width=-1)", "model.py:9: ", "negative"),
        ("    return Net(width)", "    return [Net(width)]", "", "returned a list"),
        ("    return (torch.rand", "    return (torch.rnd", "model.py:25: return", "rnd"),
        ("    for seed in range(4):", "    for seed in rnge(4):", "model.py:29: for", "rnge"),
    ],
)
def test_the_users_code_raises(lower, model, old, new, place, why):
    answer = lower(edited(model, old, new))
    assert (answer.status, answer.code) == (2, "FQ003")
    assert place in answer.stderr
    assert why in answer.stderr


def test_weights_that_do_not_match(lower, model, tmp_path):
    state = load_target(str(model)).model.state_dict()
    state["neck.weight"] = state.pop("head.weight")
    state["head.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "w.safetensors")
    answer = lower(model, "--weights", tmp_path / "w.safetensors")
    assert (answer.status, answer.code) == (2, "FQ004")
    for part in (
        "missing: head.weight",
        "unexpected: neck.weight",
        "head.bias (7, the model has 2",
    ):
        assert part in answer.stderr


def test_weights_that_are_code(lower, model, tmp_path):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "module.pt")
    answer = lower(model, "--weights", tmp_path / "module.pt")
    assert (answer.status, answer.code) == (2, "FQ004")
    assert "save tensors only" in answer.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (("--input", "1x3xA"), 2, "FQ005"),
        (("--input", "y:1x3x8x8"), 2, "FQ005"),
        (("--input", "1x3x²x8"), 2, "FQ005"),
        (("--input", "1x3x99999999x99999999"), 2, "FQ005"),
        (("--input", f"1x3x{10**20}x8"), 2, "FQ005"),
        (("--input", "1x4x16x16"), 3, "FQ102"),
        (("--arg", "widht=8"), 2, "FQ007"),
        (("--arg", "width"), 2, "FQ007"),
        (("--calib", "nowhere"), 2, "FQ006"),
        (("--weights", "nowhere.pt"), 2, "FQ004"),
        (("--passes", "fuse-afine"), 2, "FQ007"),
        (("--passes", "fuse-affine{size=all}"), 2, "FQ012"),
        (("--observer", "median"), 2, "FQ007"),
    ],
)
def test_bad_options(lower, model, arguments, status, code):
    answer = lower(model, *arguments)
    assert (answer.status, answer.code) == (status, code)
    assert "help: " in answer.stderr


def test_no_example_inputs(lower, model):
    answer = lower(edited(model, "def example_inputs", "def inputs"))
    assert (answer.status, answer.code) == (2, "FQ005")
    assert "--input 1x3x224x224" in answer.stderr
    assert "def example_inputs():" in answer.stderr


def test_no_calibration_data(lower, model):
    answer = lower(edited(model, "def calibration_data", "def images"))
    assert (answer.status, answer.code) == (2, "FQ006")
    assert "--calib DIR" in answer.stderr
    assert "def calibration_data():" in answer.stderr


def test_empty_calibration(lower, model, tmp_path):
    answer = lower(edited(model, "range(4)", "range(0)"))
    assert (answer.status, answer.code) == (2, "FQ006")
    (tmp_path / "empty").mkdir()
    assert lower(model, "--calib", tmp_path / "empty").code == "FQ006"
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"not an image")
    broken = lower(model, "--calib", tmp_path / "broken")
    assert broken.code == "FQ006"
    assert "a.png" in broken.stderr


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"x": np.zeros((2, 3, 16, 16), np.uint8)},
        {"x": np.zeros((2, 3, 16, 16)), "y": np.zeros((2, 3, 16, 16))},
    ],
)
def test_bad_calibration_arrays(lower, model, tmp_path, arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    answer = lower(model, "--calib", tmp_path / "data.npz")
    assert (answer.status, answer.code) == (2, "FQ006")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY\x01\x00", b"text"])
def test_calibration_arrays_that_cannot_be_read(lower, model, tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    answer = lower(model, "--calib", tmp_path / "data.npz")
    assert (answer.status, answer.code) == (2, "FQ006")
    assert "data.npz" in answer.stderr


def test_calibration_of_another_shape(lower, model):
    answer = lower(edited(model, "yield torch.rand(1, 3, 16, 16", "yield torch.rand(1, 4, 16, 16"))
    assert (answer.status, answer.code) == (2, "FQ006")


@pytest.mark.parametrize("returned", ["None", "{'psnr': 'good'}", "{'psnr': run(3)}"])
def test_an_evaluation_that_gives_no_numbers(lower, model, returned):
    model.write_text(f"{model.read_text()}\n\ndef evaluate(run):\n    return {returned}\n")
    answer = lower(model)
    assert (answer.status, answer.code) == (2, "FQ003")
    assert "evaluate(run) raised" in answer.stderr


def test_control_flow_on_values(lower, model):
    old = "        y = torch.relu"
    answer = lower(edited(model, old, f"        if x.mean() > 0:\n            x = x + 1\n{old}"))
    assert (answer.status, answer.code) == (3, "FQ101")
    assert "model.py:14" in answer.stderr


def test_weights_that_are_not_finite(lower, model):
    old = "    return Net(width)"
    new = "    net = Net(width)\n    net.head.bias.data[0] = float('nan')\n    return net"
    answer = lower(edited(model, old, new))
    assert (answer.status, answer.code) == (3, "FQ103")
    assert "head.bias" in answer.stderr


def test_unknown_backend_names_a_close_one(run, model, tmp_path):
    answer = run("lower", model, "-b", "onxx", "-o", tmp_path / "out")
    assert (answer.status, answer.code) == (2, "FQ007")
    assert "did you mean 'onnx'?" in answer.stderr


def test_an_older_bundle_survives(run, model, tmp_path):
    out = tmp_path / "bundle"
    lower = ("lower", model, "-b", "onnx", "-o", out, "-q")
    assert run(*lower).status == 0
    before = {file: file.read_bytes() for file in out.iterdir()}
    refused = run(*lower)
    assert (refused.status, refused.code) == (2, "FQ008")
    assert "--force" in refused.stderr
    broken = edited(model, "self.head(y * 1.0)", "self.head(y * 1.0, y)")
    assert run("lower", broken, *lower[2:], "--force").status == 3
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(tmp_path.iterdir()) == sorted([out, model, *tmp_path.glob("__pycache__")])


def test_output_that_is_no_bundle(run, model, tmp_path):
    for name in ("photos", "file"):
        out = tmp_path / name
        if name == "photos":
            out.mkdir()
            (out / "holiday.jpg").touch()
        else:
            out.touch()
        answer = run("lower", model, "-b", "onnx", "-o", out, "--force")
        assert (answer.status, answer.code) == (2, "FQ008")
    assert (tmp_path / "photos" / "holiday.jpg").exists()


def test_an_error_is_one_document_too(run, tmp_path):
    answer = run("fuse", tmp_path / "nothing.py", "--json")
    assert answer.status == 2
    assert answer.document["command"] == "fuse"
    assert answer.document["error"]["code"] == "FQ001"


def test_debug_shows_the_traceback(run, model):
    answer = run("fuse", edited(model, "torch.manual_seed(0)", "torch.mnual_seed(0)"), "--debug")
    assert answer.status == 2
    assert "Traceback" in answer.stderr
    assert "torch.mnual_seed(0)" in answer.stderr


def test_a_bug_of_ours_is_status_70(run, model, monkeypatch):
    def broken(*arguments, **options):
        raise KeyError("nobody expected this")

    monkeypatch.setattr("fuseq.cli.models.load_target", broken)
    answer = run("fuse", model, "--json")
    assert answer.status == 70
    assert answer.stdout == ""
    assert "Traceback" in answer.stderr
    assert "bug in fuseq" in answer.stderr


def test_interruption_is_status_130(run, model, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fuseq.cli.models.load_target", interrupted)
    answer = run("fuse", model)
    assert answer.status == 130
    assert "Traceback" not in answer.stderr


def test_nothing_is_a_usage_error(run):
    assert run("lower").status == 2
    assert run("no-such-command").status == 2
    assert run("explain", "FQ999").code == "FQ007"
    assert run("inspect", "nowhere.onnx").code == "FQ013"


def test_files_that_are_no_models(run, model, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    assert run("inspect", broken).code == "FQ013"
    assert run("check", model, broken).code == "FQ013"
    (tmp_path / "fuseq.json").write_text("{}")
    assert run("inspect", tmp_path).code == "FQ013"
    assert run("check", model, tmp_path / "nowhere.bin").code == "FQ001"


def test_models_with_nothing_in_common(run, model, tmp_path):
    other = tmp_path / "other.py"
    other.write_text(model.read_text().replace("self.head(y * 1.0)", "self.head(y), y"))
    answer = run("check", model, other)
    assert (answer.status, answer.code) == (2, "FQ009")


# --- in a process of its own --------------------------------------------------------------------


def fuseq(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fuseq", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_help_is_quick_and_imports_no_torch():
    code = "\n".join(
        [
            "import resource, sys",
            "sys.argv = ['fuseq', '--help']",
            "from fuseq.cli import main",
            "try: main()",
            "except SystemExit: pass",
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules",
            "usage = resource.getrusage(resource.RUSAGE_SELF)",
            "print(usage.ru_utime + usage.ru_stime, file=sys.stderr)",
        ]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "lower" in done.stdout
    assert float(done.stderr.split()[-1]) < 0.5


def test_listing_plugins_imports_no_torch():
    code = (
        "import sys; from fuseq import plugins; plugins.available('passes');"
        "assert not {'torch', 'numpy', 'fuseq.passes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_stdout_belongs_to_the_result(model):
    # C code writes to file descriptor 1 below Python, and may hold it back until the end.
    loud = edited(model, 'print("the', 'import os; os.write(1, b"from C\\n"); print("the')
    done = fuseq("inspect", loud, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('{\n  "schema": "fuseq/1"')
    assert done.stdout.endswith("}\n")
    assert "from C" in done.stderr
    assert "the user's model prints this" in done.stderr


def test_unwritable_output(model, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    if os.access(locked, os.W_OK):
        locked = Path("/proc/fuseq")  # root may write anywhere else
    done = fuseq("lower", model, "-b", "onnx", "-o", locked / "out")
    assert done.returncode == 2, done.stderr
    assert "error[FQ008]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
