import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fuseq
from fuseq.quant.executor import execute
from fuseq.quant.tensor_statistics import TensorStatistics, tensor_statistics


def conv(channels: int = 4) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(3, channels, 3)


def statistics(model: nn.Module, data: list[Tensor], **options: Any) -> list[TensorStatistics]:
    program = fuseq.quantize(model.eval(), data[0], calibration=data, **options)
    return tensor_statistics(program, data)


@pytest.fixture
def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, 3, 9, 9, generator=generator) for _ in range(3)]


def test_numbers_are_those_of_all_batches_together(data: list[Tensor]) -> None:
    model = conv().eval()
    program = fuseq.quantize(model, data[0], calibration=data, observer="percentile")
    together = torch.cat(data)
    (node,) = program.graph.find_nodes(op="call_module")
    (found,) = [s for s in tensor_statistics(program, data) if s.node == node.name]
    grid = program.quantization.grids[node.name]  # type: ignore[union-attr]
    with torch.no_grad():
        real = model(together)
    ours = grid.dequantize(execute(program, (together,)).integers[node.name])
    noise = (ours.double() - real.double()).square()
    assert found.low == pytest.approx(float(real.min()), abs=1e-6)
    assert found.high == pytest.approx(float(real.max()), abs=1e-6)
    assert (found.scale, found.dtype) == (float(grid.scale), "uint8")
    assert found.sqnr_db == pytest.approx(
        10 * math.log10(float(real.double().square().sum() / noise.sum())), abs=1e-4
    )
    assert found.rmse_steps == pytest.approx(float(noise.mean().sqrt() / grid.scale), rel=1e-4)
    outside = (real / grid.scale + grid.zero_point - 127.5).abs() > 128
    assert found.clipped == pytest.approx(float(outside.float().mean()))
    assert (found.channels, found.dead, found.outliers) == (4, (), ())


def test_the_worst_value_comes_first(data: list[Tensor]) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    found = statistics(model, data)
    assert [s.sqnr_db for s in found] == sorted(s.sqnr_db for s in found)
    assert {s.node for s in found} == {"input_1", "relu", "relu_1", "_4"}
    source = next(s for s in found if s.node == "input_1")
    assert source.rmse_steps == pytest.approx(1 / math.sqrt(12), rel=0.05)  # rounding alone


def test_dead_and_outlier_channels_are_named(data: list[Tensor]) -> None:
    layer = conv(8)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias[:] = 0.5
        layer.bias[2] = -100.0
        layer.bias[5] = 40.0
    found = {s.node: s for s in statistics(nn.Sequential(layer, nn.ReLU()), data)}
    assert found["relu"].dead == (2,)
    assert found["relu"].outliers == (5,)
    assert found["relu"].channels == 8
    assert found["input_1"].dead == ()


def test_a_value_that_is_always_zero_has_no_error(data: list[Tensor]) -> None:
    layer = conv(2)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    found = {s.node: s for s in statistics(nn.Sequential(layer, nn.ReLU()), data)}
    assert found["relu"].sqnr_db == math.inf
    assert found["relu"].dead == (0, 1)
    assert found["relu"].outliers == ()


def test_what_all_readers_cut_off_does_not_count(data: list[Tensor]) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.conv(x)
            return torch.relu(y), torch.clamp(y, 0.0, 0.5)

    found = {s.node: s for s in statistics(Two(), data)}
    assert found["conv"].low == 0.0
    assert found["conv"].clipped == 0.0
    assert found["conv"].sqnr_db > 30


def test_refuses_what_it_cannot_use(data: list[Tensor]) -> None:
    floating = fuseq.capture(conv().eval(), data[0])
    for program, given, code in [
        (floating, data, "FQ201"),
        (fuseq.quantize(floating, calibration=data), [], "FQ006"),
    ]:
        with pytest.raises(fuseq.FuseqError) as caught:
            tensor_statistics(program, given)
        assert caught.value.code == code
