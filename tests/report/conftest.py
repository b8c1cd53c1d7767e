"""Bundles that reports are made of."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fuseq


class Enlarge(nn.Module):
    """Twice the size: branches that fuse, a skip, a pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide, self.narrow = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.stem(image))
        both = torch.relu(self.norm(self.wide(features) + self.narrow(features)))
        return nn.functional.pixel_shuffle(self.head(both + features), 2)


class Classify(nn.Module):
    """Ten numbers from an image."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU())
        self.classes = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.classes(self.features(image).mean((2, 3)))


def images(count: int, size: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1, 3, size, size, generator=generator) for _ in range(count)]


def lowered(model: nn.Module, out: Path, backend: str = "onnx") -> Path:
    torch.manual_seed(0)
    for parameter in itertools.chain(model.parameters(), model.buffers()):
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    data = images(3)
    fuseq.lower(model.eval(), data[0], backend=backend, out=out, calibration=data)
    return out


@pytest.fixture(scope="session")
def enlarging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network from image to image."""
    return lowered(Enlarge(), tmp_path_factory.mktemp("bundles") / "enlarge")


@pytest.fixture(scope="session")
def classifying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a classifier, for another backend."""
    return lowered(Classify(), tmp_path_factory.mktemp("bundles") / "classify", "tflite")


@pytest.fixture(scope="session")
def in_float(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that is not quantized."""
    out = tmp_path_factory.mktemp("bundles") / "float"
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    fuseq.lower(model, images(1)[0], out=out, passes="fuse-affine")
    return out
