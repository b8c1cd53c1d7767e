import gc
import re
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import plugins, rewrite
from fuseq.equivalence.integers import file_parity
from fuseq.program import Program
from fuseq.quant.executor import execute
from fuseq.quant.observer import OBSERVERS
from fuseq.text import to_text

BACKEND = plugins.load("backends", "onnx")()
ONE_SCALE = replace(BACKEND.profile, per_channel=False)
Quantize, Legalize = plugins.load("passes", "quantize"), plugins.load("passes", "legalize")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            for layer, step in ((self.stem, 0.01), (self.body, 0.25)):
                layer.weight.copy_(
                    torch.arange(layer.weight.numel()).reshape(layer.weight.shape) % 5 * step - step
                )
                assert layer.bias is not None
                layer.bias.copy_(torch.arange(4) * 0.125)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        return F.max_pool2d(torch.cat([torch.tanh(self.body(y)), y], 1), 2)


def corners() -> Tensor:
    """Black and white: the same extremes everywhere, whatever the order of the sums."""
    return torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])


@pytest.fixture(scope="module")
def program() -> Program:
    captured = fuseq.capture(Net().eval(), torch.rand(1, 3, 8, 8))
    return rewrite.apply(Legalize(profile=BACKEND.profile), captured)


def quantized(program: Program, **options: Any) -> Program:
    given = {"calibration": [corners()], "profile": BACKEND.profile} | options
    return rewrite.apply(Quantize(**given), program)


def test_text_shows_the_grid_of_every_value(program: Program) -> None:
    lines = to_text(quantized(program)).splitlines()
    names = [line.partition(" = ")[0] for line in lines]
    grids = [line.partition(" @ ")[2] for line in lines]
    assert dict(zip(names, grids, strict=True)) == {
        "%x": "uint8 scale=0.00392157 zero_point=0",
        "%stem": "",  # its relu is computed on its accumulator
        "%relu": "uint8 scale=0.0024902 zero_point=0",
        "%body": "uint8 scale=0.00340686 zero_point=0",
        "%tanh": "uint8 scale=0.00274799 zero_point=0",
        "%requantize": "uint8 scale=0.00274799 zero_point=0",
        "%requantize_1": "uint8 scale=0.00274799 zero_point=0",
        "%concat": "uint8 scale=0.00274799 zero_point=0",
        "%max_pool": "uint8 scale=0.00274799 zero_point=0",
        "return %max_pool": "",
    }


def test_text_shows_the_values_of_sixteen_bits(program: Program) -> None:
    """`stem` is the ReLU on its accumulator; `max_pool` shares the grid of the concat."""
    lines = to_text(quantized(program, wide=("stem", "max_pool"))).splitlines()
    grids = {line.partition(" = ")[0]: line.partition(" @ ")[2] for line in lines}
    assert grids == {
        "%x": "uint8 scale=0.00392157 zero_point=0",
        "%stem": "",
        "%relu": "uint16 scale=9.68948e-06 zero_point=0",
        "%body": "uint8 scale=0.00340686 zero_point=0",
        "%tanh": "uint8 scale=0.00274799 zero_point=0",
        "%requantize": "uint16 scale=1.06926e-05 zero_point=0",
        "%requantize_1": "uint16 scale=1.06926e-05 zero_point=0",
        "%concat": "uint16 scale=1.06926e-05 zero_point=0",
        "%max_pool": "uint16 scale=1.06926e-05 zero_point=0",
        "return %max_pool": "",
    }


def test_a_dtype_for_all_activations(program: Program) -> None:
    table = quantized(program, activation="uint16").quantization
    plain = quantized(program).quantization
    assert table is not None
    assert plain is not None
    dtypes = {name: grid.dtype for name, grid in table.grids.items()}
    assert dtypes.pop("stem.weight") == dtypes.pop("body.weight") == "int8"
    assert dtypes.pop("stem.bias") == dtypes.pop("body.bias") == "int32"
    assert set(dtypes.values()) == {"uint16"}
    assert torch.equal(table.integers["stem.weight"], plain.integers["stem.weight"])
    assert table.profile.activation == "uint16"


def test_one_scale_for_each_weight(program: Program) -> None:
    table = quantized(program, per_channel=False).quantization
    assert table is not None
    for name in ("stem.weight", "body.weight"):
        assert len(table.grids[name].scale.unique()) == 1
        assert int(table.integers[name].abs().max()) == 127


def error_of(program: Program, x: Tensor, **options: Any) -> float:
    expected, actual = program(x), quantized(program, **options)(x)
    return float((actual - expected).square().mean())


def test_sixteen_bits_are_finer(program: Program) -> None:
    x = corners() * 0.7
    errors = [
        error_of(program, x, **options)
        for options in ({}, {"wide": ("stem",)}, {"activation": "uint16"})
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < errors[0] / 3


def test_the_record_counts_values_and_lists_float_islands() -> None:
    captured = fuseq.capture(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ELU(), nn.Conv2d(3, 3, 1)).eval(), corners()
    )
    record = quantized(captured).history[-1]
    assert record.rewrites == 4
    assert [detail.islands for detail in record.details] == [("elu",)]


def test_the_given_program_stays_float(program: Program) -> None:
    before = to_text(program)
    assert quantized(program).quantization is not None
    assert program.quantization is None
    assert to_text(program) == before


@pytest.mark.parametrize("observer", OBSERVERS)
def test_quantizing_twice_gives_the_same_table(program: Program, observer: str) -> None:
    data = [torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    tables = [
        quantized(program, calibration=data, observer=observer).quantization for _ in range(2)
    ]
    first, second = tables
    assert first is not None
    assert second is not None
    assert first.grids == second.grids
    assert first.integers.keys() == second.integers.keys()
    assert all(torch.equal(q, second.integers[name]) for name, q in first.integers.items())


@pytest.mark.parametrize("kept", ["stem", "body", "tanh", "max_pool"])
def test_kept_nodes_run_in_float_here_and_in_the_runtime(
    program: Program, kept: str, tmp_path: Path
) -> None:
    result = quantized(program, keep=(kept,))
    x = torch.rand(2, 3, 8, 8)
    execution = execute(result, (x,))
    node = next(n for n in result.graph.nodes if n.name == kept)
    source = node.all_input_nodes[0]
    table = result.quantization
    assert table is not None
    assert kept not in table.integer
    if source.name in table.grids:
        real = table.grids[source.name].dequantize(execution.integers[source.name])
    else:
        real = execution.reals[source.name]
    expected = (
        result.get(node)(real) if node.op == "call_module" else node.target(real, **node.kwargs)
    )
    if kept in table.grids:
        assert torch.equal(execution.integers[kept], table.grids[kept].quantize(expected))
    else:
        assert torch.allclose(execution.reals[kept], expected)
    BACKEND.lower(result, tmp_path)
    check, _ = file_parity(result, BACKEND.runner(tmp_path / "model.int8.qdq.onnx"), (x,))
    assert check.passed
    assert check.metrics["differing"] == 0


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"profile": None}, "FQ012", "needs a target"),
        ({"activation": "int16"}, "FQ012", "'onnx' has no activations of int16"),
        ({"keep": ("boddy",)}, "FQ007", "no node 'boddy'.*did you mean 'body'"),
        ({"wide": ("stem", "concat_7")}, "FQ007", "no node 'concat_7'.*did you mean 'concat'"),
        ({"wide": ("stem",), "profile": replace(BACKEND.profile, wide="")}, "FQ012", "16 bits"),
        ({"activation": "uint16", "profile": replace(BACKEND.profile, wide="")}, "FQ012", "uint16"),
        ({"per_channel": True, "profile": ONE_SCALE}, "FQ012", "one scale for each weight"),
        ({"wide": ("stem",), "keep": ("stem", "relu", "body", "x")}, "FQ401", "has no grid"),
        ({"calibration": None}, "FQ006", "needs calibration data"),
        ({"calibration": []}, "FQ006", "empty"),
        ({"observer": "entropy"}, "FQ007", "unknown observer"),
        ({"calibration": [corners() * float("nan")]}, "FQ401", "not finite"),
        ({"calibration": [corners(), corners() / 0]}, "FQ401", "not finite"),
        ({"calibration": [corners().double()]}, "FQ006", "torch.float64"),
        ({"calibration": [corners()[0]]}, "FQ006", "shape"),
        ({"calibration": [corners(), ()]}, "FQ006", "batch 2 has 0 tensors"),
    ],
)
def test_refuses_what_it_cannot_use(
    program: Program, options: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(fuseq.FuseqError) as caught:
        quantized(program, **options)
    assert caught.value.code == code
    assert re.search(message, str(caught.value), re.DOTALL)


def test_refuses_a_batch_norm_that_was_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    with pytest.raises(fuseq.FuseqError, match="batch norms folded") as caught:
        quantized(fuseq.capture(model, corners()))
    assert caught.value.code == "FQ201"


@pytest.mark.parametrize(
    "data",
    [
        [corners()],
        [(corners(), torch.tensor([0, 1]))],
        [[corners()]],
        [{"x": corners(), "label": torch.tensor([0, 1])}],
        [corners()[:1], corners()[1:]],
        iter([corners()]),
    ],
)
def test_batches_come_as_loaders_give_them(program: Program, data: Sequence[Any]) -> None:
    assert to_text(quantized(program, calibration=data)) == to_text(quantized(program))


def test_progress_counts_batches(program: Program) -> None:
    seen: list[int] = []
    quantized(program, calibration=[corners()] * 3, progress=seen.append)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("observer", OBSERVERS)
def test_calibration_holds_one_batch_at_a_time(program: Program, observer: str) -> None:
    """Memory does not grow with the number of images: older batches are gone."""
    alive: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[Tensor]:
        for _ in range(6):
            gc.collect()
            assert sum(ref() is not None for ref in alive) <= 1
            batch = torch.rand(2, 3, 8, 8)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    quantized(program, calibration=stream(), observer=observer)
    assert len(alive) == 6
