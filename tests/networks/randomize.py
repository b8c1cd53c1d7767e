"""Statistics as after training: a fold that forgets one of them is then wrong by a lot."""

import torch
from torch import nn


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in eval, with random weights, biases, and batch norm statistics and affines."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.uniform_(-0.2, 0.2, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0.0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 1.2, generator=generator)
                module.bias.normal_(0.0, 0.2, generator=generator)
    return model.eval()
