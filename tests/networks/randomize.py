"""Statistics as after training: a fold that forgets one of them is then wrong by a lot."""

import torch
from torch import nn


@torch.no_grad()
def randomized(model: nn.Module, seed: int = 0, gain: float = 2.0) -> nn.Module:
    """The model in eval, with random parameters and batch norm statistics.

    `gain` is the variance of a weight times its fan-in: below 2 where many branches without norms
    are summed.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, (gain / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-0.2, 0.2, generator=generator)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.uniform_(0.5, 1.2, generator=generator)
            module.bias.normal_(0.0, 0.2, generator=generator)
        elif not isinstance(module, nn.PReLU):
            for parameter in module.parameters(recurse=False):  # scales, kernels, their factors
                fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
                parameter.normal_(0.0, (1.0 / fan_in) ** 0.5, generator=generator)
    return model.eval()
