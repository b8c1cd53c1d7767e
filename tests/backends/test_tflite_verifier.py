"""The TFLite verifier: silent on good files, loud where `lower` would leave a wrong one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch import Tensor, nn

import fuseq
from fuseq.backend import Backend
from fuseq.backends.tflite import TfliteBackend, emit
from fuseq.backends.tflite.file import (
    VERSIONS,
    File,
    operators,
    packed,
    unpacked,
    version_of_form,
)
from fuseq.backends.tflite.verifier import violations
from fuseq.backends.tflite.verifier.versions import HIGHEST
from tests.networks import unet

NETWORKS = (
    "asymmetric decoder fastvit gated kernel_space lcnet_v2 mobilenet_v2 mobilenet_v3 mobileone "
    "qatie qdr rep_unet repvgg resnet shufflenet_v2 span squeezenet unet"
).split()


def lowered(
    network: nn.Module, out: Path, backend: str | Backend = "tflite", passes: str | None = None
) -> dict[str, bytes]:
    """Files of a network, by name."""
    batches = [torch.rand(1, 3, 64, 64) for _ in range(2)]
    fuseq.lower(
        network,
        batches[0],
        backend=backend,
        calibration=batches,
        out=out,
        passes=passes,
        check=False,
    )
    return {file.name: file.read_bytes() for file in out.glob("*.tflite")}


@pytest.mark.parametrize("name", NETWORKS)
def test_files_of_networks_break_no_rule(name: str, tmp_path: Path) -> None:
    network = importlib.import_module(f"tests.networks.{name}").small()
    files = lowered(network, tmp_path / "out")
    assert sorted(files) == ["model.fp32.tflite", "model.int8.tflite"]
    found = {name: violations(data) for name, data in files.items()}
    assert found == {name: [] for name in files}


def test_operators_of_files_of_old_have_their_names(tmp_path: Path) -> None:
    """Before schema version 3a the code of an operator stood in another field."""
    data = lowered(unet.small(), tmp_path / "out")["model.int8.tflite"]
    model = unpacked(data)
    names = operators(model)
    for code in model.operatorCodes:
        code.builtinCode = 0
    assert operators(model) == names
    assert violations(packed(model)) == []


@pytest.mark.parametrize("io", ["int8", "uint8", "float"])
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_no_interface_breaks_a_rule(io: str, layout: str, tmp_path: Path) -> None:
    backend = TfliteBackend(io=io, layout=layout)
    files = lowered(unet.small(), tmp_path / "out", backend)
    assert [violations(data) for data in files.values()] == [[], []]


class Wrong(File):
    """A fault that an emitter could have: a padded tensor on a grid of its own."""

    def like(self, index: int, name: str, shape: Sequence[int]) -> int:
        made = super().like(index, name, shape)
        quantization = self.graph.tensors[made].quantization
        quantization.scale = [2 * scale for scale in quantization.scale or ()]
        return made


def test_a_wrong_file_does_not_leave_the_backend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(emit, "File", Wrong)
    with pytest.raises(fuseq.FuseqError) as caught:
        lowered(unet.small(), tmp_path / "out")
    assert caught.value.code == "FQ507"
    assert caught.value.exit_code == 3
    assert caught.value.what.startswith("model.int8.tflite breaks ")
    assert caught.value.where == "#4 PAD of 'leaky_relu_1'"
    assert caught.value.why is not None
    assert "#4 PAD of 'leaky_relu_1': grid of the result: found [" in caught.value.why
    assert not (tmp_path / "out").exists()


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 8, 8, stride=8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.linear(self.conv(x).flatten(2).transpose(1, 2))
        return rows


def test_a_linear_layer_on_three_dimensions(tmp_path: Path) -> None:
    with pytest.raises(fuseq.FuseqError, match="FULLY_CONNECTED takes rows") as caught:
        lowered(Rows(), tmp_path / "out", passes="fuse-affine")
    assert caught.value.code == "FQ501"
    files = lowered(Rows(), tmp_path / "out", passes="fuse-affine,legalize")
    assert [violations(data) for data in files.values()] == [[]]


@pytest.mark.parametrize(
    ("code", "shapes", "scales", "fields", "version"),
    [
        ("CONV_2D", [(1, 8, 8, 6), (4, 3, 3, 3)], [], {}, 6),
        ("CONV_2D", [(1, 8, 8, 6), (4, 3, 3, 6)], [], {"dilationHFactor": 2}, 1),
        ("DEPTHWISE_CONV_2D", [(1, 8, 8, 6)], [], {"dilationHFactor": 1, "dilationWFactor": 2}, 2),
        ("FULLY_CONNECTED", [(1, 4, 8)], [], {"keepNumDims": True}, 5),
        ("TRANSPOSE", [(1, 2, 3, 4)], [], {}, 1),
        ("TRANSPOSE", [(1, 2, 3, 4, 5)], [], {}, 4),
        ("TRANSPOSE", [(1, 2, 3, 4, 5, 6)], [], {}, 6),
        ("PAD", [(1, 2, 3, 4, 5)], [], {}, 4),
        ("RESIZE_BILINEAR", [(1, 2, 3, 4)], [], {"alignCorners": True}, 1),
        ("RESIZE_BILINEAR", [(1, 2, 3, 4)], [], {"halfPixelCenters": True}, 3),
        ("RESIZE_NEAREST_NEIGHBOR", [(1, 2, 3, 4)], [], {"alignCorners": True}, 3),
        ("MUL", [(1, 2), (1, 2)], [0.5, 0.1, 0.06], {}, 1),
        ("MUL", [(1, 2), (1, 2)], [0.5, 0.1, 0.04], {}, 3),
        ("SUB", [(1, 2, 3, 4, 5), (1, 1, 1, 1, 5)], [], {}, 3),
        ("SUB", [(1, 2, 3, 4), (1, 1, 1, 4)], [], {}, 1),
        ("DIV", [(1, 2, 3, 4, 5), (1, 1, 1, 1, 5)], [], {}, 2),
    ],
)
def test_versions_follow_the_form(
    code: str,
    shapes: list[tuple[int, ...]],
    scales: list[float],
    fields: dict[str, int],
    version: int,
) -> None:
    """As LiteRT's own converter counts them, in op_version.cc."""
    options = SimpleNamespace(**fields)
    assert version_of_form(code, shapes, scales, "int8", options) == version
    assert version_of_form("QUANTIZE", shapes, scales, "int16", None) == 2


@pytest.mark.parametrize("resolver", [OpResolverType.AUTO, OpResolverType.BUILTIN_REF])
def test_no_kernel_set_loads_less_than_the_highest_version(resolver: OpResolverType) -> None:
    assert set(HIGHEST) == set(VERSIONS)
    refused = [code for code, version in HIGHEST.items() if not _loads(code, version, resolver)]
    assert refused == []


def test_one_kernel_set_refuses_a_version_more() -> None:
    loaded = [
        code
        for code, version in HIGHEST.items()
        if _loads(code, version + 1, OpResolverType.AUTO)
        and _loads(code, version + 1, OpResolverType.BUILTIN_REF)
    ]
    assert loaded == []


def _loads(code: str, version: int, resolver: OpResolverType) -> bool:
    """Whether a kernel set has a kernel for an operator in a version."""
    file = File()
    source, result = (file.tensor(name, (1,), "float32") for name in ("x", "y"))
    file.op(code, [source], result, version=version)
    data = file.serialized({"x": source}, {"y": result}, {})
    try:
        Interpreter(model_content=data, experimental_op_resolver_type=resolver)
    except ValueError as error:
        return "find op" not in str(error)
    return True
