"""What HTP's compiler takes without a word, with the lint passed over: the next line of defence.

Every pattern is written, compiled and run in spite of the lint. What is computed wrongly is found
op by op, and what is computed in float by the graph that the compiler made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import fuseq
from fuseq.backends.qnn import QnnBackend, host
from fuseq.backends.qnn.chip_checks import shown_integers
from fuseq.backends.qnn.chips import CHIPS
from fuseq.backends.qnn.emulator import compile_context
from fuseq.backends.qnn.files import QDQ, write_files
from fuseq.backends.qnn.htp_runner import HtpRunner
from fuseq.backends.qnn.lint import refusals
from fuseq.backends.qnn.op_steps import op_check
from fuseq.errors import FuseqError
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.quant.profile import Profile
from tests.backends import qdq_files
from tests.backends.test_qnn_files import Between
from tests.backends.test_qnn_lint import grid, with_grid

MISSING = host.host_problem() or (None if host.wheel_version() else "no onnxruntime-qnn wheel here")
pytestmark = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))

CHIP = CHIPS["sm8750"]
IMAGE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) - 0.3
OURS = QnnBackend.profile
APART = replace(OURS, absorbed={})
"""Rules by which a clip has operands on a grid of their own."""
SIGNED = replace(OURS, activation="int8", fixed={})


def quantized(
    function: Callable[..., Tensor],
    *layers: nn.Module,
    profile: Profile = OURS,
    options: str = "",
    gain: float = 1.0,
) -> Program:
    """By rules that need not be HTP's; a gain reaches the bends of activations."""
    torch.manual_seed(0)
    model = Between(function, *layers)
    with torch.no_grad():
        model.first.weight.mul_(gain)
    data = [IMAGE]
    pipeline = f"fuse-affine,legalize,quantize{options}"
    steps = parse_passes(pipeline, profile=profile, calibration=data)
    return fuseq.Pipeline(steps).run(fuseq.capture(model.eval(), IMAGE, dynamic=False))


def clipped(cut: Callable[[Tensor], Tensor], scale: float, zero_point: int) -> Program:
    program = quantized(cut, profile=APART, gain=12.0)
    return with_grid(program, "clamp", grid(scale, zero_point))


def wide(function: Callable[[Tensor], Tensor]) -> Program:
    return quantized(function, profile=replace(OURS, fixed={}), options="{activation=uint16}")


def softmax() -> Program:
    program = quantized(lambda y: y.softmax(1), profile=SIGNED)
    return with_grid(program, "softmax", grid(1 / 256, 0, "int8"))


def padded() -> Program:
    program = quantized(lambda y: F.pad(y, (1, 1, 1, 1), mode="reflect"), profile=SIGNED)
    return with_grid(program, "pad", grid(0.02, 10, "int8"))


def transposed() -> Program:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(8, 8, 2, 2, groups=2)
    return quantized(
        lambda y, up: up(y.tanh()).tanh(), layer, profile=replace(OURS, per_channel_groups=True)
    )


def zero_to_one(y: Tensor) -> Tensor:
    return y.clamp(0.0, 1.0)


WRONG: dict[str, tuple[str, Callable[[], Program]]] = {
    "clip from 0 to 2": ("QNN101", lambda: clipped(zero_to_one, 2 / 255, 0)),
    "clip from -0.5 to 1": ("QNN101", lambda: clipped(zero_to_one, 1.5 / 255, 85)),
    "clip around 0": ("QNN101", lambda: clipped(zero_to_one, 1 / 127, 128)),
    "relu6 to 8": ("QNN101", lambda: clipped(F.relu6, 8 / 255, 0)),
    "signed softmax": ("QNN102", softmax),
    "sigmoid of 16 bits": ("QNN103", lambda: wide(torch.sigmoid)),
    "tanh of 16 bits": ("QNN103", lambda: wide(torch.tanh)),
    "hard sigmoid of 16 bits": ("QNN103", lambda: wide(F.hardsigmoid)),
    "pad": ("QNN104", padded),
    "logarithm": ("QNN107", lambda: wide(lambda y: (y.abs() + 0.5).log())),
    "running sum": ("QNN107", lambda: quantized(lambda y: y.cumsum(1))),
    "average over the edge": (
        "QNN108",
        lambda: quantized(lambda y: F.avg_pool2d(y, 3, 2, ceil_mode=True)),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_result_is_found_op_by_op(name: str, tmp_path: Path) -> None:
    code, build = WRONG[name]
    program = build()
    found = {refusal.node: refusal.reason for refusal in refusals(program)}
    write_files(program, tmp_path, integer_io=True, layout="nhwc")
    shown = shown_integers(program, HtpRunner(tmp_path / QDQ, CHIP))
    check, first = op_check("ops", "", program, shown, program.example_inputs)
    assert not check.passed
    assert first is not None
    assert found[first.node].startswith(code)
    assert check.metrics["max_lsb"] > 20


def test_a_transposed_convolution_with_groups_is_refused(tmp_path: Path) -> None:
    """With scales for channels: by this version of the compiler, where older ones were wrong."""
    program = transposed()
    assert [refusal.reason[:6] for refusal in refusals(program)] == ["QNN105"]
    write_files(program, tmp_path, integer_io=True, layout="nhwc")
    with pytest.raises(FuseqError, match=r"FQ504(.|\n)*`layers_0`"):
        compile_context(tmp_path / QDQ, CHIP, tmp_path / "out")


def test_weight_scales_along_the_sum_are_found_op_by_op(tmp_path: Path) -> None:
    """The file says what the program says: weights of twice the scale have half the integers."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-60, 61, (64, 64)) * 2 / 127)
        layer.weight[:, 0] = 1.0  # so that every output has the scale 1/127
    program = quantized(lambda y, linear: linear(y), layer)
    write_files(program, tmp_path, integer_io=True, layout="nhwc")
    model = onnx.load(str(tmp_path / QDQ))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    [weight] = [t for t in model.graph.initializer if t.name == "layers.0.weight"]
    [reader] = [node for node in model.graph.node if weight.name in node.input]
    coarse = np.arange(64) % 2 == 1
    integers = numpy_helper.to_array(weight)
    halved = np.where(coarse, integers // 2, integers)
    assert np.array_equal(halved * np.where(coarse, 2, 1), integers)
    weight.CopyFrom(numpy_helper.from_array(halved.astype(np.int8), weight.name))
    scale = numpy_helper.to_array(constants[reader.input[1]])
    along = np.where(coarse, 2 * scale[0], scale[0]).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(along, "along"))
    reader.input[1] = "along"
    [axis] = [attribute for attribute in reader.attribute if attribute.name == "axis"]
    axis.i = 1
    onnx.save(model, str(tmp_path / QDQ))
    shown = shown_integers(program, HtpRunner(tmp_path / QDQ, CHIP))
    check, first = op_check("ops", "", program, shown, program.example_inputs)
    assert not check.passed
    assert first is not None


ONES = np.ones(3, np.float32)
OTHER = {"other": np.ones((1, 3, 1, 1), np.float32)}
FILES: dict[str, tuple[tuple[str, ...], dict[str, np.ndarray]]] = {
    "tanh without quantizers": (("Tanh", "Sigmoid"), {}),
    "sigmoid without quantizers": (("Sigmoid", "Tanh"), {}),
    "sum": (("Sum",), OTHER),
    "mean": (("Mean",), OTHER),
    "selu": (("Selu",), {}),
    "threshold": (("ThresholdedRelu",), {}),
    "norm with a float weight": (("InstanceNormalization",), {"weight": ONES, "bias": ONES}),
}


@pytest.mark.parametrize("name", FILES)
def test_an_operation_in_float_is_named(name: str, tmp_path: Path) -> None:
    ops, operands = FILES[name]
    file = qdq_files.write(tmp_path / "m.onnx", [ops], operands)
    with pytest.raises(FuseqError, match="FQ303") as raised:
        compile_context(file, CHIP, tmp_path / "out")
    assert all(op.lower() in str(raised.value) for op in ops)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def resized() -> Program:
    program = quantized(lambda y: F.interpolate(y, scale_factor=2, mode="bilinear"))
    return with_grid(program, "interpolate", grid(0.02, 100))


PROGRAMS: dict[str, tuple[str, Callable[[], Program]]] = {
    "interpolate": ("QNN201", resized),
    "norm": ("QNN203", lambda: quantized(lambda y: y / (y.norm(dim=1, keepdim=True) + 1))),
    "selu": ("QNN203", lambda: quantized(F.selu)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_float_part_of_a_program_is_named(name: str, tmp_path: Path) -> None:
    code, build = PROGRAMS[name]
    program = build()
    assert code in {refusal.reason[:6] for refusal in refusals(program)}
    write_files(program, tmp_path, integer_io=True, layout="nhwc")
    with pytest.raises(FuseqError, match=rf"FQ303(.|\n)*`{name}"):
        compile_context(tmp_path / QDQ, CHIP, tmp_path / "out")
