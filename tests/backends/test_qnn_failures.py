"""A lowering for chips that fails half-way: a clear error, nothing half-written, the old bundle."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fuseq
from fuseq import backends
from fuseq.backends.qnn import QnnBackend, emulator, host, worker
from fuseq.bundle import read_bundle
from fuseq.errors import FuseqError
from tests.backends.test_qnn_files import Between

MISSING = host.host_problem() or (None if host.wheel_version() else "no onnxruntime-qnn wheel here")
needs_emulator = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))
IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

MODEL = """
import torch
from torch import nn

def get_model():
    torch.manual_seed({seed})
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3))

def example_inputs():
    return (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)

def calibration_data():
    yield example_inputs()
"""

HALF = "import pathlib, sys; pathlib.Path('model_ctx.onnx').write_bytes(b'half'); "


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle that is there before."""
    place = tmp_path / "place" / "out"
    torch.manual_seed(0)
    fuseq.lower(nn.Conv2d(3, 4, 3), IMAGE, backend="qnn", out=place, calibration=[IMAGE])
    return place


def unharmed(old: Path) -> None:
    assert not read_bundle(old).changed_files()
    assert [file.name for file in old.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("script", "code", "exit_code"),
    [
        ("import os; os.kill(os.getpid(), 9)", "FQ505", 4),
        ("import time; time.sleep(60)", "FQ506", 4),
        ("pathlib.Path('result.json').write_text('')", "FQ505", 4),
        ("open('/dev/full', 'wb', buffering=0).write(b'more')", "FQ505", 4),
    ],
    ids=["killed", "hangs", "silent", "cannot write"],
)
def test_the_compiler_fails(script, code, exit_code, old, tmp_path, monkeypatch) -> None:
    (tmp_path / "worker.py").write_text(HALF + script)
    monkeypatch.setattr(worker, "__file__", str(tmp_path / "worker.py"))
    for module in (backends.qnn, emulator):
        monkeypatch.setattr(module, "require_emulator", lambda: "0")
    compile_context = emulator.compile_context
    monkeypatch.setattr(
        "fuseq.backends.qnn.chip_files.compile_context",
        lambda *arguments: compile_context(*arguments, timeout=3),
    )
    model, backend = nn.Conv2d(3, 4, 3), QnnBackend(chips=("sm8750",))
    with pytest.raises(FuseqError) as raised:
        fuseq.lower(model, IMAGE, backend=backend, out=old, calibration=[IMAGE], force=True)
    assert (raised.value.code, raised.value.exit_code) == (code, exit_code)
    unharmed(old)


def test_the_command_is_interrupted(old: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(MODEL.format(seed=1))
    (tmp_path / "worker.py").write_text(HALF + "import time; time.sleep(60)")
    # As the command line does it, with another worker.
    code = f"""
import sys
from fuseq.backends.qnn import emulator, worker
import fuseq.backends.qnn as qnn
worker.__file__ = {str(tmp_path / "worker.py")!r}
qnn.require_emulator = emulator.require_emulator = lambda: "0"
sys.argv = ["fuseq", "lower", {str(tmp_path / "model.py")!r}, "-b", "qnn", "--chip", "sm8750",
            "-o", {str(old)!r}, "--force"]
from fuseq.cli import main
main()
"""
    running = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    try:
        while not list(old.parent.glob(".out.*/.htp.*/model_ctx.onnx")):
            assert running.poll() is None, running.stderr.read()
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130
    assert "interrupted" in told
    unharmed(old)


@pytest.mark.parametrize(
    "chips", [(), pytest.param(("--chip", "sm8750"), marks=needs_emulator)], ids=["files", "chip"]
)
def test_a_full_disk(chips: tuple[str, ...], old: Path, tmp_path: Path) -> None:
    """A real one: a small file system of its own, that no other process sees."""
    mount = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*mount, "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    (tmp_path / "model.py").write_text(MODEL.format(seed=1))
    disk = tmp_path / "disk"
    disk.mkdir()
    room = sum(file.stat().st_size for file in old.rglob("*")) // 1024
    # A page for each file besides; with a chip, all that is written before it is compiled.
    size = f"{2 * room + 90}k" if chips else f"{room + 60}k"
    lower = [sys.executable, "-m", "fuseq", "lower", str(tmp_path / "model.py"), "-b", "qnn"]
    script = f"""
mount -t tmpfs -o size={size} none {disk} && cp -r {old} {disk} || exit 99
"$@" -o {disk}/out --force
status=$?
diff -r {old} {disk}/out && ls -A {disk} >&2
exit $status
"""
    done = subprocess.run(
        [*mount, "sh", "-c", script, "sh", *lower, *chips], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "error[FQ008]" in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "out"
    assert done.stdout == ""


@needs_emulator
def test_a_pattern_that_crashes_the_emulator(old: Path) -> None:
    """A convolution without padding on rows that start past the first."""
    backend = QnnBackend(chips=("sm8750",))
    model = Between(lambda y, layer: layer(y.tanh()[:, :, 1:]).tanh(), nn.Conv2d(8, 8, 3)).eval()
    with pytest.raises(FuseqError, match=r"FQ505(.|\n)*SIGSEGV") as raised:
        fuseq.lower(model, IMAGE, backend=backend, out=old, calibration=[IMAGE], force=True)
    assert raised.value.exit_code == 4
    unharmed(old)


@needs_emulator
def test_a_context_that_was_damaged_later(tmp_path: Path) -> None:
    backend = QnnBackend(chips=("sm8750",))
    torch.manual_seed(0)
    bundle = fuseq.lower(
        nn.Conv2d(3, 4, 3), IMAGE, backend=backend, out=tmp_path / "out", calibration=[IMAGE]
    )
    binary = bundle.path / "sm8750" / "model_ctx_qnn.bin"
    binary.write_bytes(binary.read_bytes()[:1000])
    with pytest.raises(FuseqError, match=r"(FQ013|FQ505)(.|\n)*sha256"):
        fuseq.check(bundle.path)
