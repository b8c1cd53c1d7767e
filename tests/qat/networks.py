"""Small networks and data that the tests of QAT train."""

import torch
from torch import Tensor, nn

import fuseq.qat
from fuseq.qat import QatModel


class Residual(nn.Module):
    """Two parallel branches with batch norms, a skip that goes below zero, a concat, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1)
        self.norm, self.other_norm = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.stem(x)
        y = torch.relu(self.norm(self.wide(features)) + self.other_norm(self.narrow(features)))
        y = y * torch.sigmoid(self.gate(y)) + features
        result: Tensor = self.head(torch.cat((y, torch.tanh(features)), 1))
        return result


def batches(count: int = 4, size: int = 16, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, size, size, generator=generator) for _ in range(count)]


def prepared(model: nn.Module | None = None, **options: object) -> QatModel:
    """A prepared model; the same each time."""
    torch.manual_seed(0)
    data = batches()
    model = model or Residual()
    result: QatModel = fuseq.qat.prepare(model, data[0], **{"calibration": data, **options})  # type: ignore[arg-type]
    return result


def steps(model: nn.Module, data: list[Tensor], rate: float = 1e-2) -> None:
    """Plain SGD towards the input."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for batch in data:
        optimizer.zero_grad()
        (model(batch) - batch).square().mean().backward()
        optimizer.step()
