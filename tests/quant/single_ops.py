"""A .tflite file of one op, run on LiteRT's reference kernels or on XNNPACK.

Tensors are as the file stores them: `nhwc` and `nchw` bring ours there and back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from torch import Tensor

from fuseq.backends.tflite.file import File
from fuseq.quant.grid import Grid

RESOLVERS = {"reference": OpResolverType.BUILTIN_REF, "xnnpack": OpResolverType.AUTO}


@dataclass(frozen=True)
class Operand:
    """A tensor that an op reads.

    Attributes:
        value: integers on a grid; without one, as they are.
        grid: what they mean.
        constant: whether the file holds it, or it is fed.
    """

    value: Tensor
    grid: Grid | None = None
    constant: bool = False

    def array(self) -> Any:
        array = self.value.contiguous().numpy()
        return array.astype(self.grid.dtype) if self.grid else array


def nhwc(x: Tensor) -> Tensor:
    """`[N, C, H, W]` as `[N, H, W, C]`."""
    return x.permute(0, 2, 3, 1)


def nchw(x: Tensor) -> Tensor:
    """`[N, H, W, C]` as `[N, C, H, W]`."""
    return x.permute(0, 3, 1, 2)


def integers(*values: int) -> Operand:
    """Sizes, axes, paddings: a constant int32 tensor."""
    return Operand(torch.tensor(values, dtype=torch.int32), constant=True)


def run(
    code: str,
    operands: Sequence[Operand],
    shape: Sequence[int],
    grid: Grid | None = None,
    *,
    kernels: str = "reference",
    options: str = "",
    version: int | None = None,
    **fields: Any,
) -> Tensor:
    """What one op computes.

    Args:
        code: key of `fuseq.backends.tflite.file.VERSIONS`.
        operands: in the op's order; one that is given twice is one tensor.
        shape: of the result.
        grid: of the result.
        kernels: key of `RESOLVERS`.
        options: as `File.op` takes it.
        version: likewise.
        **fields: likewise.

    Returns:
        int32, float32 where the result has no grid.
    """
    file = File()
    tensors, inputs = {}, {}
    for number, operand in enumerate(operands):
        name, array = f"x{number}", operand.array()
        if operand.constant:
            tensors[id(operand)] = file.constant(name, array, operand.grid)
        elif id(operand) not in tensors:
            inputs[name] = file.tensor(name, array.shape, str(array.dtype), operand.grid)
            tensors[id(operand)] = inputs[name]
    indices = [tensors[id(operand)] for operand in operands]
    y = file.tensor("y", shape, grid.dtype if grid else "float32", grid)
    file.op(code, indices, y, options, version, **fields)
    interpreter = Interpreter(
        model_content=file.serialized(inputs, {"y": y}, {}),
        experimental_op_resolver_type=RESOLVERS[kernels],
        num_threads=1,
    )
    interpreter.allocate_tensors()
    for detail in interpreter.get_input_details():
        number = int(detail["name"].removeprefix("x"))
        interpreter.set_tensor(detail["index"], operands[number].array())
    interpreter.invoke()
    (detail,) = interpreter.get_output_details()
    result = torch.from_numpy(interpreter.get_tensor(detail["index"]))
    return result.to(torch.int32) if grid else result
