"""Multiply-accumulates of each op against numbers worked out by hand, and memory of values."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuseq import capture, memory
from fuseq.macs import total_macs


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Conv2d(4, 8, 3, padding=1, groups=2), 2 * 6 * 8 * 8 * 2 * 9),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), 2 * 3 * 4 * 8 * 4 * 9),
        (nn.ConvTranspose2d(4, 8, 3, stride=2), 2 * 6 * 8 * 4 * 8 * 9),
        (nn.Linear(8, 5), 2 * 4 * 6 * 8 * 5),
        (nn.BatchNorm2d(4), 2 * 4 * 6 * 8),
        (nn.LayerNorm(8), 2 * 4 * 6 * 8),
        (nn.AvgPool2d(2), 2 * 4 * 3 * 4 * 4),
        (nn.AdaptiveAvgPool2d(1), 2 * 4 * 6 * 8),
        (Call(lambda x: x @ x.transpose(2, 3)), 2 * 4 * 6 * 6 * 8),
        (Call(lambda x: x * 0.5), 2 * 4 * 6 * 8),
        (Call(lambda x: F.relu(x + x)), 0),
    ],
)
def test_of_one_op(model: nn.Module, expected: int) -> None:
    assert total_macs(capture(model, torch.rand(2, 4, 6, 8))) == expected


def test_values_that_live_at_once() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.narrow(torch.relu(self.wide(x)))

    program = capture(Skip(), torch.rand(1, 1, 4, 4))
    image, wide = 4 * 4 * 4, 8 * 4 * 4 * 4
    largest = memory.largest_value(program)
    assert (largest.name, memory.value_bytes(program, largest)) == ("wide", wide)
    # The image waits for the sum while relu reads one wide map and writes another.
    assert memory.peak_bytes(program) == image + 2 * wide
    assert memory.weight_bytes(program) == 4 * (8 + 8 + 8 + 1)
