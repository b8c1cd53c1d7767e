"""ExpandNets (arXiv 1811.10495): 1 x 1, k x k, 1 x 1 in place of one k x k, padded at the front."""

from torch import nn

from tests.networks.randomize import randomized


def expanded(
    inputs: int, outputs: int, kernel: int, stride: int = 1, rate: int = 2
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, rate * inputs, 1, padding=kernel // 2),
        nn.Conv2d(rate * inputs, rate * outputs, kernel, stride),
        nn.Conv2d(rate * outputs, outputs, 1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def small() -> nn.Module:
    return randomized(
        nn.Sequential(
            expanded(3, 8, 3, 2),
            expanded(8, 16, 5),
            expanded(16, 16, 3, 2),
            expanded(16, 24, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 10),
        )
    )
