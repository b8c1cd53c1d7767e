"""The same network through litert-torch and ai-edge-quantizer, in an environment of their own.

    PEER/bin/python benchmarks/litert_torch_route.py WEIGHTS.npz OUT.tflite

Run by `benchmarks.tflite --peer PEER/bin/python`; imports nothing of fuseq, whose environment these
packages do not share (they bring 1.2 GB). Prints the seconds of the conversion, imports left out.
"""

import sys
import time

import ai_edge_quantizer.recipe
import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import quantizer
from torch import nn


class Student(nn.Module):
    """The fused x3 student: ten convolutions, a skip, a pixel shuffle."""

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Take over weights and biases, in order."""
        super().__init__()
        self.convs = nn.ModuleList()
        for weight, bias in layers:
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.weight = nn.Parameter(torch.from_numpy(weight))
            conv.bias = nn.Parameter(torch.from_numpy(bias))
            self.convs.append(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Enlarge `[1, 3, H, W]` three times."""
        stem, *blocks, head = self.convs
        first = y = stem(x)
        for conv in blocks:
            y = torch.relu(conv(y))
        return nn.functional.pixel_shuffle(head(y + first), 3)


def main(source: str, target: str) -> None:
    """Convert, calibrate, quantize, write."""
    stored = np.load(source)
    count = sum(name.startswith("weight") for name in stored)
    model = Student([(stored[f"weight{i}"], stored[f"bias{i}"]) for i in range(count)]).eval()
    data = stored["calibration"]
    started = time.perf_counter()
    nhwc = litert_torch.to_channel_last_io(model, args=[0], outputs=[0])
    converted = litert_torch.convert(nhwc, (torch.from_numpy(data[:1]).permute(0, 2, 3, 1),))
    converted.export(target)
    seconds = time.perf_counter() - started
    route = quantizer.Quantizer(target)
    route.load_quantization_recipe(ai_edge_quantizer.recipe.static_wi8_ai8())
    batches = [{"args_0": x.transpose(1, 2, 0)[None]} for x in data]
    ranges = route.calibrate({"serving_default": batches})
    started = time.perf_counter()
    route.quantize(ranges).export_model(target, overwrite=True)
    print(seconds + time.perf_counter() - started)


if __name__ == "__main__":
    main(*sys.argv[1:])
