"""RepVGG: 3 x 3, 1 x 1 and identity branches, dense and grouped."""

from torch import Tensor, nn

from tests.networks.randomize import randomized


class RepVGGBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.dense = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.pointwise = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, 0, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.nonlinearity = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = 0 if self.identity is None else self.identity(x)
        return self.nonlinearity(self.dense(x) + self.pointwise(x) + identity)


class RepVGG(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            RepVGGBlock(3, 8, stride=2),
            RepVGGBlock(8, 16, stride=2),
            RepVGGBlock(16, 16, groups=2),
            RepVGGBlock(16, 24, stride=2),
            RepVGGBlock(24, 24),
            RepVGGBlock(24, 24, groups=2),
        )
        self.gap = nn.AdaptiveAvgPool2d(output_size=1)
        self.linear = nn.Linear(24, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.gap(self.stages(x))
        return self.linear(out.view(out.size(0), -1))


class RepVGGA0(nn.Module):
    """RepVGG-A0 of arXiv 2101.03697: stages of 1, 2, 4, 14 and 1 blocks."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = 3
        for outputs, depth in ((48, 1), (48, 2), (96, 4), (192, 14), (1280, 1)):
            for index in range(depth):
                blocks.append(RepVGGBlock(inputs, outputs, stride=1 if index else 2))
                inputs = outputs
        self.stages = nn.Sequential(*blocks)
        self.gap = nn.AdaptiveAvgPool2d(output_size=1)
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.gap(self.stages(x))
        return self.linear(out.view(out.size(0), -1))


def small() -> nn.Module:
    return randomized(RepVGG())


def a0() -> nn.Module:
    return randomized(RepVGGA0())
