"""Sizes and kinds of tensors: numbers where they are the model's, nodes where the input's."""

from __future__ import annotations

import torch

from fuseq.build import Builder, Value
from fuseq.spelling.arranging import transpose
from fuseq.spelling.registry import spelled


@spelled(torch.ops.aten.sym_size.int, "size")
def size(build: Builder, x: Value, dim: int | None = None) -> Value:
    return build.sizes(x) if dim is None else build.size(x, dim)


@spelled("dim", "ndimension")
def rank(build: Builder, x: Value) -> Value:
    return len(build.shape(x))


@spelled(getattr)
def attribute(build: Builder, x: Value, name: str) -> Value:
    match name:
        case "shape":
            return build.sizes(x)
        case "ndim":
            return len(build.shape(x))
        case "dtype":
            return build.example(x).dtype
        case "device":
            # Constants are built where the program runs: programs live on the CPU.
            return torch.device("cpu")
        case "data":
            return x
        case "T" | "mT":
            return transpose(build, x, -2, -1)
        case _:
            return build.foreign(getattr, x, name)
