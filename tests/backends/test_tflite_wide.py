"""Activations of 16 bits: file and executor agree in every integer, on both kernel sets."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.backends.tflite import TfliteBackend
from fuseq.backends.tflite.graph import read_graph
from fuseq.backends.tflite.verifier.grids import LAYERS
from fuseq.errors import FuseqError
from tests.backends.test_tflite_corners import OPS, Network
from tests.backends.test_tflite_forms import CASES
from tests.backends.tflite_files import operators

NARROW = {"prelu", "prelu of one slope", "hard swish", "dead hard swish"}
"""Cases without a kernel of 16 bits."""


class Layers(Network):
    """More to choose from."""

    def __init__(self, function: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__(function)  # type: ignore[arg-type]
        self.grouped = nn.Conv2d(8, 8, 3, 2, 1, groups=2)
        self.depthwise, self.up = (
            nn.Conv2d(8, 16, 3, 2, 1, groups=8),
            nn.ConvTranspose2d(8, 5, 4, 2, 1),
        )
        self.slopes = nn.PReLU(8)


CUT: dict[str, Callable[[Layers, Tensor], Tensor]] = {
    "relu on sums": lambda m, x: torch.relu(m.grouped(torch.relu(x))),
    "relu6 on sums": lambda m, x: F.relu6(m.up(F.relu6(20 * x))),
    "clamp to one": lambda m, x: m.depthwise(3 * x).clamp(-1, 1),
    "clamp to less": lambda m, x: m.depthwise(x.clamp(-0.25, 0.125)).clamp(-0.1, 3),
    "clamp from above": lambda m, x: (x * 1.5).clamp(max=0.25),
    "relu of a linear layer": lambda m, x: torch.relu(m.wide(x)),
}
NETWORKS = ("unet", "mobilenet_v2", "qdr", "shufflenet_v2")


class Student(nn.Module):
    """Convolutions with a skip around them, and a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return F.pixel_shuffle(self.head(torch.relu(self.body(y)) + y), 2)


class Everything(nn.Module):
    """Every layer with weights, every sum and a gate, with activations on some of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.depthwise, self.linear = nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        gate = torch.sigmoid(self.linear(y.mean((2, 3))))
        y = y * gate[:, :, None, None] - self.depthwise(y)
        return F.pixel_shuffle(F.relu6(torch.relu(y + x[:, :1]) + F.max_pool2d(self.up(y), 2)), 2)


def images(count: int = 3, side: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(1, 3, side, side, generator=generator) for _ in range(count)]


def no_integer_differs(bundle: fuseq.Bundle) -> None:
    assert bundle.result is not None
    bundle.result.raise_for_status()
    parity = [check.metrics for check in bundle.result.checks if check.id.startswith("parity-")]
    assert len(parity) == 2
    assert not any(metrics["differing"] for metrics in parity)


def lowered(model: nn.Module, batches: list[Tensor], out: Path) -> fuseq.Bundle:
    program = fuseq.quantize(
        model, batches[0], target="tflite", calibration=batches, activation="int16"
    )
    assert program.quantization is not None
    grids = {name: g for name, g in program.quantization.grids.items() if g.dtype == "int16"}
    assert "x" in grids
    assert not any(int(grid.zero_point) for grid in grids.values())
    return fuseq.lower(program, backend="tflite", out=out)


@pytest.mark.parametrize("case", [case for case in CASES if case not in NARROW])
def test_no_integer_of_a_form_differs(case: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, inputs, _ = CASES[case]
    no_integer_differs(lowered(network().eval(), [*inputs], tmp_path / "out"))


@pytest.mark.parametrize("op", [*(op for op in OPS if op not in NARROW), *CUT])
def test_no_integer_of_a_corner_differs(op: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Layers(CUT[op]) if op in CUT else Network(OPS[op])
    batches = [torch.randn(1, 3, 12, 16) for _ in range(2)]
    no_integer_differs(lowered(network.eval(), batches, tmp_path / "out"))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_integer_of_a_network_differs(name: str, tmp_path: Path) -> None:
    model = importlib.import_module(f"tests.networks.{name}").small().eval()
    no_integer_differs(lowered(model, images(side=64), tmp_path / "out"))


def test_forms_that_16_bits_have(tmp_path: Path) -> None:
    """32 bits for the bias wherever the format has them, real scales for sums, no block order."""
    torch.manual_seed(0)
    file = lowered(Everything().eval(), images(), tmp_path / "out").file("int8")
    assert file is not None
    found = read_graph(file.read_bytes()).operators
    versions = {operator.code: operator.version for operator in found}
    assert versions == {
        "CONV_2D": 8, "DEPTHWISE_CONV_2D": 5, "TRANSPOSE_CONV": 5, "ADD": 3, "SUB": 5, "MUL": 4,
        "MEAN": 3, "FULLY_CONNECTED": 12, "LOGISTIC": 3, "RESHAPE": 1, "TRANSPOSE": 6,
        "STRIDED_SLICE": 1, "MAX_POOL_2D": 3,
    }  # fmt: skip
    for operator in found:
        if operator.code in LAYERS:
            bias = operator.operand(LAYERS[operator.code][2])
            assert bias is not None
            depthwise = operator.code == "DEPTHWISE_CONV_2D"
            assert bias.dtype == ("int64" if depthwise else "int32")
            assert operator.option("quantizedBiasType") == (0 if depthwise else 2)  # INT32
        if operator.code in ("ADD", "SUB"):
            assert not operator.option("potScaleInt16")
    activations = [operator.option("fusedActivationFunction") for operator in found]
    assert [a for a in activations if a] == [1, 1, 3]  # two of RELU, RELU6


def test_what_16_bits_lack_is_refused_at_once(tmp_path: Path) -> None:
    def network(m: Layers, x: Tensor) -> Tensor:
        return F.hardswish(m.slopes(x))

    with pytest.raises(FuseqError) as caught:
        lowered(Layers(network).eval(), images(), tmp_path / "out")
    assert caught.value.code == "FQ501"
    assert "PRELU has no kernel of 16 bits" in str(caught.value)
    assert "HARD_SWISH has no kernel of 16 bits" in str(caught.value)


@pytest.mark.parametrize("wide", [("x",), ("relu", "add"), ("pixel_shuffle",)])
def test_ops_are_of_8_or_of_16_bits(wide: tuple[str, ...], tmp_path: Path) -> None:
    """Each operand is requantized that has another dtype than the result."""
    data, model = images(), Student().eval()
    program = fuseq.quantize(model, data[0], target="tflite", calibration=data, wide=wide)
    assert program.quantization is not None
    grids = program.quantization.grids
    dtypes = {name: grids[name].dtype for name in ("x", "relu", "relu_1", "add", "pixel_shuffle")}
    assert {name for name, dtype in dtypes.items() if dtype == "int16"} == {*wide}
    bundle = fuseq.lower(program, backend="tflite", out=tmp_path / "out")
    no_integer_differs(bundle)
    file = bundle.file("int8")
    assert file is not None
    steps = {("x",): 1, ("relu", "add"): 4, ("pixel_shuffle",): 1}
    assert operators(file).count("QUANTIZE") == steps[wide]


def test_the_worst_values_get_16_bits(tmp_path: Path) -> None:
    data = images()
    program = fuseq.quantize(
        Student().eval(), data[0], target="tflite", calibration=data, wide=("add",), worst=1
    )
    assert program.quantization is not None
    assert {grid.dtype for grid in program.quantization.grids.values()} >= {"int8", "int16"}
    no_integer_differs(fuseq.lower(program, backend="tflite", out=tmp_path / "out"))


def test_8_and_16_bits_meet_at_a_concat(tmp_path: Path) -> None:
    """The requantize at its edge is the step from one to the other."""
    torch.manual_seed(0)
    network = Layers(lambda m, x: torch.cat((torch.relu(m.grouped(x)), m.depthwise(x)), 1)).eval()
    x = torch.randn(1, 3, 12, 16)
    program = fuseq.quantize(network, x, target="tflite", calibration=[x], wide=("concat",))
    assert program.quantization is not None
    dtypes = {name: grid.dtype for name, grid in program.quantization.grids.items()}
    assert (dtypes["x"], dtypes["concat"]) == ("int8", "int16")
    no_integer_differs(fuseq.lower(program, backend="tflite", out=tmp_path / "out"))


def test_a_trained_network_is_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = images()
    model = fuseq.qat.prepare(
        Student(), data[0], target="tflite", calibration=data, activation="int16"
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    losses = []
    for _ in range(6):
        wanted = [F.interpolate(x, scale_factor=2).mean(1, keepdim=True) for x in data]
        loss = sum(F.mse_loss(model(x), y) for x, y in zip(data, wanted, strict=True))
        assert isinstance(loss, Tensor)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    model.eval()
    backend = TfliteBackend(io="float")
    bundle = fuseq.lower(model, data[0], backend=backend, out=tmp_path / "out")
    no_integer_differs(bundle)
    file = bundle.file("int8")
    assert file is not None
    (result,) = backend.runner(file)(data[1].numpy())
    assert torch.equal(model(data[1]), torch.from_numpy(result))


@pytest.mark.parametrize("op", ["everything", *CUT])
def test_training_gives_the_integers_of_the_executor(op: str) -> None:
    """Of every kind of layer: each has an output stage of its own."""
    torch.manual_seed(0)
    network = Layers(CUT[op]) if op in CUT else Everything()
    x = torch.randn(2, 3, 12, 16)
    model = fuseq.qat.prepare(network, x, target="tflite", calibration=[x], activation="int16")
    model.stage(observing=False, weight_grids_frozen=True)
    trained = model(x).detach()
    assert torch.equal(trained, model.eval()(x))


def test_the_command_line_takes_the_choice(tmp_path: Path) -> None:
    arguments = ["lower", "tests.networks.unet:small", "--input", "1x3x32x32", "--calib", "random"]
    arguments += ["--samples", "2", "-b", "tflite", "-o", str(tmp_path / "out"), "--json"]
    passes = "fuse-affine,legalize,quantize{activation=int16}"
    done = subprocess.run(
        [sys.executable, "-m", "fuseq", *arguments, "--passes", passes],
        cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    parity = [c["metrics"] for c in document["checks"] if c["id"].startswith("parity-")]
    assert [metrics["differing"] for metrics in parity] == [0, 0]
    manifest = json.loads((tmp_path / "out" / "fuseq.json").read_text())
    assert [side["dtype"] for side in (*manifest["inputs"], *manifest["outputs"])] == ["int16"] * 2
