"""What the qnn backend writes without any tool of Qualcomm's."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

import fuseq
from fuseq.backends.qnn import QnnBackend
from fuseq.backends.qnn.runner import EmittedRunner
from fuseq.bundle import Bundle
from fuseq.quant.grid import LIMITS

NETWORKS = (
    "asymmetric diverse_branch mobilenet_v2 mobilenet_v3 mobileone efdn qatie qdr repvgg "
    "resnet sesr shufflenet_v2 squeezenet unet".split()
)


class Between(nn.Module):
    """A convolution, a function, a convolution."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x), *self.layers))


def _attend(y: Tensor) -> Tensor:
    rows = y.flatten(2)
    return y * (rows @ rows.transpose(1, 2)).softmax(-1).mean(2).reshape(1, 8, 1, 1)


FORMS: dict[str, Between] = {
    "gelu": Between(F.gelu),
    "softmax": Between(lambda y: y.softmax(1)),
    "hardsigmoid": Between(F.hardsigmoid),
    "silu": Between(F.silu),
    "unshuffle": Between(lambda y: F.pixel_shuffle(F.pixel_unshuffle(y, 2), 2)),
    "pad": Between(lambda y: F.pad(y, (1, 2, 3, 4))),
    "reflect": Between(lambda y: F.pad(y, (1, 2, 3, 4), mode="reflect")),
    "sub": Between(lambda y: y - y.mean((2, 3), keepdim=True)),
    "div": Between(lambda y: y / 3.0),
    "bilinear": Between(lambda y: F.interpolate(y, scale_factor=2, mode="bilinear")),
    "corners": Between(lambda y: F.interpolate(y, (25, 20), mode="bilinear", align_corners=True)),
    "pools": Between(lambda y: F.max_pool2d(F.avg_pool2d(y, 3, 1, 1), 3, 2, ceil_mode=True)),
    "grouped": Between(lambda y, up: up(y), nn.ConvTranspose2d(8, 8, 2, 2, groups=4)),
    "norm": Between(lambda y, norm: norm(y), nn.InstanceNorm2d(8, affine=True)),
    "attention": Between(_attend),
    "shuffle": Between(lambda y: y.reshape(1, 2, 4, 16, 16).transpose(1, 2).reshape(y.shape)),
    "leaky": Between(lambda y: F.leaky_relu(y, 0.1)),
    "hardswish": Between(F.hardswish),
    "prelu": Between(lambda y, slopes: slopes(y), nn.PReLU(8)),
    "transposed": Between(
        lambda y, up, slopes: slopes(up(y)), nn.ConvTranspose2d(8, 8, 2, 2), nn.PReLU(8)
    ),
    "sum": Between(lambda y, slopes: slopes(y + y.tanh()), nn.PReLU()),
}


def lowered(
    model: nn.Module, out: Path, size: int = 16, backend: str | QnnBackend = "qnn"
) -> Bundle:
    torch.manual_seed(0)
    x = torch.rand(1, 3, size, size) - 0.3
    return fuseq.lower(model, x, backend=backend, out=out, calibration=[x, x * 0.9])


def compared(bundle: Bundle) -> None:
    """Every check holds; each quantized value was compared, and the parameters were too."""
    assert bundle.result is not None
    bundle.result.raise_for_status()
    checks = {check.id.split("-")[0]: check for check in bundle.result.checks}
    assert checks["table"].metrics["total"] > 100
    assert checks["parity"].note == "emitted, not compiled"
    assert bundle.program is not None
    table = bundle.program.quantization
    values = {node.name for node in bundle.program.graph.nodes if node.op != "get_attr"}
    metrics = checks["parity"].metrics
    assert metrics["float_values"] + metrics["total"] > 0
    assert table is not None
    assert values & table.grids.keys()


def parts(file: Path) -> tuple[onnx.ModelProto, list[onnx.NodeProto], dict[str, Any]]:
    model = onnx.load(str(file))
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return model, list(model.graph.node), constants


def well_formed(bundle: Bundle) -> None:
    """What HTP's compiler asks of a file."""
    model, nodes, constants = parts(bundle.path / "model.qdq.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [o.version for o in model.opset_import if not o.domain] == [21]
    assert all(node.name for node in nodes)
    assert len({node.name for node in nodes}) == len(nodes)
    for value in (*model.graph.input, *model.graph.output):
        tensor = value.type.tensor_type
        assert tensor.elem_type in (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16)
        assert all(dim.HasField("dim_value") for dim in tensor.shape.dim)
    makers = {node.output[0]: node for node in nodes}
    edges = {"Transpose", "QuantizeLinear", "DequantizeLinear"}
    for node in nodes:
        if node.op_type in edges and not all(name.endswith("dequantized") for name in node.input):
            continue
        reals = [makers[name] for name in node.input if name in makers]
        direct = node.op_type in ("Relu", "Clip")  # on the sums of what is before
        assert direct or all(maker.op_type == "DequantizeLinear" for maker in reals), node.name
        floats = [n for n in node.input if n in constants and constants[n].dtype == np.float32]
        scales = node.op_type in ("Clip", "Resize", "Pad")
        assert scales or not floats, node.name


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = importlib.import_module(f"tests.networks.{name}").small()
    bundle = lowered(model.eval(), tmp_path / "out", 32)
    compared(bundle)
    well_formed(bundle)


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    bundle = lowered(FORMS[form].eval(), tmp_path / "out")
    compared(bundle)
    well_formed(bundle)


@pytest.mark.parametrize("io", ["uint8", "float"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_interface(io: str, layout: str, tmp_path: Path) -> None:
    backend = QnnBackend(io=io, layout=layout)
    bundle = lowered(FORMS["leaky"].eval(), tmp_path / "out", backend=backend)
    compared(bundle)
    model, nodes, _ = parts(bundle.path / "model.qdq.onnx")
    shapes = [
        [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    ]
    nchw = [[1, 3, 16, 16], [1, 4, 16, 16]]
    assert shapes == (nchw if layout == "nchw" else [[s[0], *s[2:], s[1]] for s in nchw])
    assert sum(n.op_type == "Transpose" for n in nodes) == (2 if layout == "nhwc" else 0)
    entry = bundle.manifest["inputs"][0]
    assert entry["dtype"] == ("uint8" if io == "uint8" else "float32")
    assert entry["layout"] == layout.upper()
    assert entry["shape"] == shapes[0]


def test_sixteen_bits(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 16, 16)
    model = Between(lambda y: torch.sigmoid(y) * torch.tanh(y))
    wide = fuseq.quantize(model, x, target="qnn", calibration=[x], activation="uint16")
    bundle = fuseq.lower(wide, backend="qnn", out=tmp_path / "out")
    compared(bundle)
    assert wide.quantization is not None
    grids = wide.quantization.grids
    assert (float(grids["sigmoid"].scale), int(grids["sigmoid"].zero_point)) == (2**-16, 0)
    assert (float(grids["tanh"].scale), int(grids["tanh"].zero_point)) == (2**-15, 2**15)


def test_the_quantizer_that_is_passed_over(tmp_path: Path) -> None:
    """It is in the file, covers what its layer gives, and is not what the runner runs."""
    bundle = lowered(FORMS["prelu"].eval(), tmp_path / "out")
    file = bundle.path / "model.qdq.onnx"
    _, nodes, constants = parts(file)
    (quantizer,) = [n for n in nodes if n.name == "first.ignored.quantized"]
    low = float(constants[quantizer.input[1]]) * (0 - int(constants[quantizer.input[2]]))
    assert bundle.program is not None
    table = bundle.program.quantization
    assert table is not None
    assert "first" not in table.grids
    outputs = table.grids["layers_0"]
    smallest = float(outputs.dequantize(torch.tensor(0)))
    assert low <= smallest / 0.25 + 1e-3
    x = np.zeros((1, 3, 16, 16), np.uint8)
    assert not any("ignored" in name for name in EmittedRunner(file).integers(x))


def test_encodings_are_the_table(tmp_path: Path) -> None:
    bundle = lowered(FORMS["norm"].eval(), tmp_path / "out")
    assert bundle.program is not None
    assert bundle.program.quantization is not None
    grids = bundle.program.quantization.grids
    _, nodes, constants = parts(bundle.path / "model.float.onnx")
    model = onnx.load(str(bundle.path / "model.float.onnx"))
    tensors = {*constants, *(o for n in nodes for o in n.output)}
    tensors |= {value.name for value in model.graph.input}
    v2, v1, v0 = (json.loads((bundle.path / f"encodings.v{n}.json").read_text()) for n in (2, 1, 0))
    assert (v2["version"], v1["version"], v0["version"]) == ("2.0.0", "1.0.0", "0.6.1")
    new = {entry["name"]: entry for entry in v2["encodings"]}
    lists = [*v1["activation_encodings"], *v1["param_encodings"]]
    middle = {entry["name"]: entry for entry in lists}
    old = {**v0["activation_encodings"], **v0["param_encodings"]}
    assert new.keys() == middle.keys() == old.keys() <= tensors
    assert {name for name in grids if name in tensors} <= new.keys()
    for name in grids.keys() & new.keys():
        grid = grids[name]
        scales, zeros = grid.scale.reshape(-1).tolist(), grid.zero_point.reshape(-1).tolist()
        low, high = LIMITS[grid.dtype]
        assert new[name]["output_dtype"] == grid.dtype
        assert np.array(new[name]["y_scale"]).reshape(-1).tolist() == scales
        assert np.array(new[name].get("y_zero_point", zeros)).reshape(-1).tolist() == zeros
        assert new[name].get("axis") == grid.axis
        assert middle[name]["scale"] == scales
        assert middle[name]["offset"] == [low - z for z in zeros]
        assert 2 ** middle[name]["bw"] == high - low + 1
        assert middle[name]["enc_type"] == ("PER_TENSOR" if grid.axis is None else "PER_CHANNEL")
        for entry, scale, zero in zip(old[name], scales, zeros, strict=True):
            assert entry["min"] == pytest.approx(scale * (low - zero))
            assert entry["max"] == pytest.approx(scale * (high - zero))


def test_every_value_of_the_float_file_has_an_encoding(tmp_path: Path) -> None:
    """But for those that HTP does not have: sums before an activation."""
    bundle = lowered(FORMS["unshuffle"].eval(), tmp_path / "out")
    _, nodes, _ = parts(bundle.path / "model.float.onnx")
    entries = json.loads((bundle.path / "encodings.v2.json").read_text())["encodings"]
    assert {o for n in nodes for o in n.output} <= {entry["name"] for entry in entries}


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    first, second = (lowered(FORMS["leaky"].eval(), tmp_path / name) for name in "ab")
    assert first.manifest["files"] == second.manifest["files"]


def test_golden_text(tmp_path: Path) -> None:
    bundle = lowered(FORMS["leaky"].eval(), tmp_path / "out")
    _, nodes, _ = parts(bundle.path / "model.qdq.onnx")
    lines = [f"{n.op_type} {n.name}" for n in nodes]
    assert lines == [
        "Transpose x.nchw",
        "DequantizeLinear x.dequantized",
        "DequantizeLinear first.weight.dequantized",
        "DequantizeLinear first.bias.dequantized",
        "Conv first",
        "QuantizeLinear first.ignored.quantized",
        "DequantizeLinear first.ignored.dequantized",
        "LeakyRelu leaky_relu",
        "QuantizeLinear leaky_relu.quantized",
        "DequantizeLinear leaky_relu.dequantized",
        "DequantizeLinear last.weight.dequantized",
        "DequantizeLinear last.bias.dequantized",
        "Conv last",
        "QuantizeLinear last.quantized",
        "Transpose output",
    ]


@pytest.mark.parametrize("option", ["io", "layout"])
def test_unknown_option(option: str) -> None:
    with pytest.raises(fuseq.FuseqError, match=f"unknown {option} 'int8'"):
        replace(QnnBackend(), **{option: "int8"})  # type: ignore[arg-type]
