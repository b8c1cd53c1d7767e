"""Lowering for chips: every op, the context and the files, on the real emulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import fuseq
from fuseq import ops
from fuseq.backends.qnn import QnnBackend, host
from fuseq.backends.qnn.chip_checks import shown_integers
from fuseq.backends.qnn.chips import CHIPS
from fuseq.backends.qnn.families import ON_SUMS, family_refusals, of_each_family, profile_for
from fuseq.backends.qnn.files import write_files
from fuseq.backends.qnn.htp_runner import HtpRunner
from fuseq.backends.qnn.op_steps import op_check
from fuseq.backends.qnn.tolerances import LARGEST_OF_16_BITS, allowed_steps
from fuseq.bundle import Bundle
from fuseq.errors import FuseqError
from fuseq.program import Program

MISSING = host.host_problem() or (None if host.wheel_version() else "no onnxruntime-qnn wheel here")
needs_emulator = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))
OLD, NEW = CHIPS["sm8450"], CHIPS["sm8750"]


class Net(nn.Module):
    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.head, self.activation = nn.Conv2d(3, 8, 3, padding=1), activation
        self.tail = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.activation(self.head(x))
        return nn.functional.pixel_shuffle(self.tail(y * torch.tanh(y)), 2)


def lowered(place: Path, activation: nn.Module, *chips: str, side: int = 64) -> Bundle:
    torch.manual_seed(0)
    image = (torch.rand(1, 3, side, side),)
    backend = QnnBackend(chips=chips)
    net = Net(activation)
    return fuseq.lower(net, image, backend=backend, out=place / "out", calibration=[image])


def checks_of(bundle: Bundle) -> dict[str, fuseq.equivalence.result.Check]:
    assert bundle.result is not None
    bundle.result.raise_for_status()
    return {check.id: check for check in bundle.result.checks}


@needs_emulator
def test_both_families_in_one_bundle(tmp_path) -> None:
    bundle = lowered(tmp_path, nn.ReLU(), "sm8750", "sm8450", side=96)
    checks = checks_of(bundle)
    for chip in ("sm8750", "sm8450"):
        steps = checks[f"ops-{chip}-1x3x64x64"]
        assert steps.metrics["max_lsb"] <= 1
        assert 0 < steps.metrics["differing"] < steps.metrics["total"] / 10
        assert "not verified on a device" in steps.note
        assert checks[f"reload-{chip}"].metrics["differing"] == 0
        assert checks[f"graph-{chip}"].metrics["float_ops"] == 0
        assert checks[f"graph-{chip}"].metrics["transposes"] == 0
        assert checks[f"end-to-end-{chip}"].metrics["sqnr_db"] > 30
        for name in ("model_ctx.onnx", "model_ctx_qnn.bin", "graph.json"):
            assert (bundle.path / chip / name).is_file()
    assert bundle.file("dlc") == bundle.path / "model.dlc"
    assert not bundle.changed_files()


@needs_emulator
def test_a_trained_model_is_what_the_chip_computes(tmp_path) -> None:
    torch.manual_seed(0)
    images = [torch.rand(2, 3, 64, 64) for _ in range(3)]
    model = Net(nn.LeakyReLU(0.1)).train()
    qat = fuseq.qat.prepare(model, images[0][:1], target="qnn", calibration=images)
    curriculum = fuseq.qat.Curriculum(qat, observe=1, tune=1, freeze=1)
    optimizer = torch.optim.SGD(qat.parameters(), lr=0.02)
    for epoch in range(3):
        curriculum.step(epoch)
        for image in images:
            optimizer.zero_grad()
            (qat(image) - 0.5).square().mean().backward()
            optimizer.step()
    backend = QnnBackend(chips=("sm8750",))
    bundle = fuseq.lower(qat, images[0][:1], backend=backend, out=tmp_path / "out")
    assert checks_of(bundle)["ops-sm8750-1x3x64x64"].metrics["max_lsb"] <= 1
    assert bundle.program is not None
    table = bundle.program.quantization
    assert table is not None
    assert "leaky_relu" in table.absorbed.values()  # no quantizer in between
    assert (float(table.grids["tanh"].scale), int(table.grids["tanh"].zero_point)) == (1 / 128, 128)
    with torch.no_grad():
        trained, lowered = qat.eval()(images[0][:1]), bundle.program(images[0][:1])
    assert torch.equal(trained, lowered)


@needs_emulator
@pytest.mark.parametrize("chip", ["sm8350", "sm8650"])
def test_each_family_gets_the_activations_it_computes(chip: str, tmp_path) -> None:
    bundle = lowered(tmp_path, nn.LeakyReLU(0.1), chip)
    assert checks_of(bundle)[f"ops-{chip}-1x3x64x64"].metrics["max_lsb"] <= 1
    assert bundle.program is not None
    assert bundle.program.quantization is not None
    absorbs = "leaky_relu" in bundle.program.quantization.absorbed.values()
    assert absorbs == (chip == "sm8650")


@needs_emulator
def test_the_other_family_fails_at_that_activation(tmp_path) -> None:
    bundle = lowered(tmp_path, nn.LeakyReLU(0.1), "sm8650")
    program, file = bundle.program, bundle.file("int8")
    assert program is not None
    assert file is not None
    shown = shown_integers(program, HtpRunner(file, OLD))
    check, first = op_check("ops", "", program, shown, program.example_inputs)
    assert not check.passed
    assert first is not None
    assert first.node == "leaky_relu"


def quantized(activation: nn.Module) -> Program:
    torch.manual_seed(0)
    image = (torch.rand(1, 3, 32, 32),)
    return fuseq.quantize(Net(activation), image, target="qnn", calibration=[image])


def test_one_program_is_not_for_both_families() -> None:
    program = quantized(nn.LeakyReLU(0.1))
    [refusal] = family_refusals(program, [OLD, NEW])
    assert refusal.node == "leaky_relu"
    assert "sm8450 rounds first" in refusal.reason
    assert family_refusals(program, [NEW]) == []
    assert family_refusals(quantized(nn.ReLU()), [OLD, NEW]) == []


def test_families_that_are_held() -> None:
    plain, special = quantized(nn.ReLU()), quantized(nn.LeakyReLU(0.1))
    assert of_each_family(plain, [CHIPS["sm8550"]]) == [OLD, CHIPS["sm8550"]]
    assert of_each_family(plain, [OLD, CHIPS["sm8350"], NEW]) == [OLD, NEW]
    assert of_each_family(special, [CHIPS["sm8550"]]) == [CHIPS["sm8550"]]


def test_the_profile_of_a_family() -> None:
    profile = QnnBackend().profile
    assert QnnBackend(chips=("sm8750",)).profile == profile
    assert QnnBackend(chips=("sm8750", "sm8450")).profile == profile
    assert QnnBackend(chips=("SM8450",)).profile == profile_for([OLD], profile)
    assert profile.absorbed.keys() - profile_for([OLD], profile).absorbed.keys() == ON_SUMS


def test_tolerances() -> None:
    assert set(LARGEST_OF_16_BITS) <= ops.VOCABULARY
    assert {allowed_steps(op, "uint8") for op in LARGEST_OF_16_BITS} == {1}
    assert max(allowed_steps(op, "uint16") for op in LARGEST_OF_16_BITS) < 256
    assert allowed_steps("gelu", "uint16") == 72


def test_an_unknown_chip() -> None:
    with pytest.raises(FuseqError, match=r"FQ007.*\n.*\n.*sm8750"):
        QnnBackend(chips=("sm875",))


def test_chips_without_the_tool(monkeypatch) -> None:
    monkeypatch.setattr(host, "host_problem", lambda: None)
    monkeypatch.setattr(host, "wheel_version", lambda: None)
    with pytest.raises(FuseqError, match="FQ502"):
        QnnBackend(chips=("sm8750",)).refusals(quantized(nn.ReLU()))


@needs_emulator
def test_a_wrong_weight_in_the_file_is_found_and_named(tmp_path) -> None:
    """What the file computes is not what the program says: the op is named."""
    program = quantized(nn.ReLU())
    write_files(program, tmp_path, integer_io=True, layout="nhwc")
    file = tmp_path / "model.qdq.onnx"
    model = onnx.load(str(file))
    [weight] = [t for t in model.graph.initializer if list(t.dims) == [12, 8, 3, 3]]
    changed = numpy_helper.to_array(weight).copy()
    changed[5] = np.roll(changed[5], 1, axis=-1)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, str(file))
    shown = shown_integers(program, HtpRunner(file, NEW))
    check, first = op_check("ops", "", program, shown, program.example_inputs)
    assert not check.passed
    assert first is not None
    assert first.node == "tail"
