"""Layers are refined in order, each from what the refined ones before it give."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq.program import Program
from fuseq.quant.executor import Quantized, execute
from fuseq.quant.refine import Layer, Study, refine


class Net(nn.Module):
    """A skip, two layers on one level, a layer without bias, a linear one, and a float island."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1, bias=False)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, 2, groups=8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        y = F.elu(self.depthwise(F.relu(self.left(y)) + self.right(y) + y))
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 12, 12, generator=generator) for _ in range(3)]


@pytest.fixture(scope="module")
def program(data: list[Tensor]) -> Program:
    torch.manual_seed(0)
    return fuseq.quantize(Net().eval(), data[0], calibration=data)


class Recorder(Study):
    """Keeps what it sees; proposes to move every bias by `step`."""

    def __init__(self, layer: Layer, step: int = 0) -> None:
        self.layer, self.step = layer, step
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def update(self, x: Quantized, y: Tensor) -> None:
        self.inputs.append(x.q.clone())
        self.outputs.append(y.clone())

    def proposal(self) -> Tensor:
        assert self.layer.bias is not None
        return self.layer.bias + self.step


def with_bias_moved(program: Program, path: str, step: int) -> Program:
    """A planted fault: the frozen bias of one layer is wrong."""
    table = program.quantization
    assert table is not None
    moved = program.clone()
    integers = {**table.integers, f"{path}.bias": table.integers[f"{path}.bias"] + step}
    moved.quantization = dataclasses.replace(table, integers=integers)
    return moved


def test_a_layer_sees_what_the_refined_layers_before_it_give(
    program: Program, data: list[Tensor]
) -> None:
    recorders: dict[str, Recorder] = {}

    def study(layer: Layer) -> Study:
        # The bias of the stem is too large by 4000 steps: moving it back is kept.
        recorders[str(layer.node.target)] = Recorder(layer, -4000 * (layer.node.name == "stem"))
        return recorders[str(layer.node.target)]

    moved = with_bias_moved(program, "stem", 4000)
    moved.quantization, _ = refine(moved, "bias", study, data)
    assert list(recorders) == ["stem", "left", "depthwise", "head"]  # `right` has none
    for batch_number, batch in enumerate(data):
        integers = execute(moved, (batch,)).integers
        assert all(
            torch.equal(integers[name], q)
            for name, q in execute(program, (batch,)).integers.items()
        )
        for recorder in recorders.values():
            source = recorder.layer.node.all_input_nodes[0].name
            assert torch.equal(recorder.inputs[batch_number], integers[source]), source
    with torch.no_grad():
        stem = torch.cat([program.module.get_submodule("stem")(batch) for batch in data])
    assert torch.equal(torch.cat(recorders["stem"].outputs), stem)


def test_what_makes_a_channel_worse_is_not_kept(program: Program, data: list[Tensor]) -> None:
    table, found = refine(program, "bias", lambda layer: Recorder(layer, 10**6), data)
    assert program.quantization is not None
    assert all(torch.equal(q, program.quantization.integers[k]) for k, q in table.integers.items())
    assert [(r.channels, r.noise_after - r.noise_before) for r in found] == [(0, 0.0)] * 4


def test_the_given_table_stays_as_it_is(program: Program, data: list[Tensor]) -> None:
    moved = with_bias_moved(program, "head", 999)
    assert moved.quantization is not None
    before = dict(moved.quantization.integers)
    table, found = refine(moved, "bias", lambda layer: Recorder(layer, -999), data)
    assert moved.quantization.integers == before
    assert table.integers.keys() == before.keys()
    assert table.grids == moved.quantization.grids
    by_layer = {record.layer: record for record in found}
    assert by_layer["head"].channels == 5
    assert by_layer["head"].noise_after < by_layer["head"].noise_before


def test_keeping_values_between_levels_changes_no_bit(
    program: Program, data: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refined() -> Any:
        table, found = refine(program, "bias", lambda layer: Recorder(layer, 1), data)
        return {name: q.tolist() for name, q in table.integers.items()}, found

    kept = refined()
    monkeypatch.setattr("fuseq.level_sweep.KEPT_BYTES", 0)
    assert refined() == kept


def test_progress_counts_batches_over_levels(program: Program, data: list[Tensor]) -> None:
    seen: list[int] = []
    refine(program, "bias", Recorder, data, seen.append)
    assert seen == list(range(1, 2 * 4 * len(data) + 1))


def test_data_that_is_empty_or_does_not_fit_is_refused(program: Program) -> None:
    for data in ([], [torch.rand(1, 4, 12, 12)]):
        with pytest.raises(fuseq.FuseqError) as caught:
            refine(program, "bias", Recorder, data)
        assert caught.value.code == "FQ006"
