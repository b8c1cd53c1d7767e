"""The real compiler and emulator, where they are installed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fuseq.backends.qnn import emulator, host, probe
from fuseq.backends.qnn.chips import CHIPS
from fuseq.errors import FuseqError
from tests.backends import qdq_files

CHIP = CHIPS["sm8750"]
MISSING = host.host_problem() or (None if host.wheel_version() else "no onnxruntime-qnn wheel here")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return qdq_files.write(tmp_path_factory.mktemp("qdq") / "m.onnx", [("Tanh",)])


@pytest.fixture(scope="module")
def compiled(model, tmp_path_factory) -> emulator.Compiled:
    return emulator.compile_context(model, CHIP, tmp_path_factory.mktemp("htp") / "sm8750")


@pytest.fixture(scope="module")
def x() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).integers(0, 256, qdq_files.SHAPE).astype(np.uint8)}


def test_a_context(compiled) -> None:
    out = compiled.context.parent
    files = ["graph.json", "model_ctx.onnx", "model_ctx_qnn.bin"]
    assert sorted(file.name for file in out.iterdir()) == files
    assert [file.name for file in out.parent.iterdir()] == ["sm8750"]
    assert dict(compiled.graph.ops) == {"Conv2d": 1, "Tanh": 1, "Transpose": 2}
    assert compiled.graph.transposes == 2
    assert 50 < compiled.peak_rss_mb < 1000


def test_the_context_computes_what_the_file_computes(compiled, model, x) -> None:
    fresh = emulator.run(model, CHIP, x)
    again = emulator.run(compiled.context, CHIP, x)
    assert list(fresh) == list(again) == ["y"]
    assert np.ptp(fresh["y"]) > 50
    np.testing.assert_array_equal(fresh["y"], again["y"])


def test_the_same_bytes_from_another_place(compiled, tmp_path) -> None:
    model = qdq_files.write(tmp_path / "another_name.onnx", [("Tanh",)])
    again = emulator.compile_context(model, CHIP, tmp_path / "sm8750")
    assert again.context.read_bytes() == compiled.context.read_bytes()
    assert again.binary.read_bytes() == compiled.binary.read_bytes()


def test_two_chips_at_once(model, x, tmp_path) -> None:
    def one(name: str) -> np.ndarray:
        compiled = emulator.compile_context(model, CHIPS[name], tmp_path / name)
        return emulator.run(compiled.context, CHIPS[name], x)["y"]

    with ThreadPoolExecutor(2) as pool:
        old, new = pool.map(one, ("sm8350", "sm8650"))
    assert np.abs(old.astype(int) - new).max() <= 1


def test_a_dlc(model, tmp_path) -> None:
    emulator.write_dlc(model, CHIP, tmp_path / "model.dlc")
    assert [file.name for file in tmp_path.iterdir()] == ["model.dlc"]
    assert (tmp_path / "model.dlc").read_bytes().startswith(b"PK")
    assert b'"timestamp": "1980-01-01 00:00:00 UTC"' in (tmp_path / "model.dlc").read_bytes()
    with pytest.raises(FuseqError, match="FQ008"):
        emulator.write_dlc(model, CHIP, tmp_path / "model.dlc")


def test_an_unknown_operation_is_named_with_the_reason(tmp_path) -> None:
    model = qdq_files.write(tmp_path / "m.onnx", [("Softsign",)])
    with pytest.raises(FuseqError, match="FQ504") as raised:
        emulator.compile_context(model, CHIP, tmp_path / "out")
    assert "`softsign" in str(raised.value)
    assert "not supported" in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_damaged_context(compiled, x, tmp_path) -> None:
    (tmp_path / "model_ctx.onnx").write_bytes(compiled.context.read_bytes())
    (tmp_path / "model_ctx_qnn.bin").write_bytes(compiled.binary.read_bytes()[:1000])
    with pytest.raises(FuseqError, match=r"FQ013|FQ505") as raised:
        emulator.run(tmp_path / "model_ctx.onnx", CHIP, x)
    assert "sha256" in str(raised.value)


def test_the_probe() -> None:
    assert [(line.name, line.ok) for line in probe.doctor_lines()] == [
        ("onnxruntime-qnn", True), ("HTP host", True), ("HTP emulator", True)
    ]  # fmt: skip
