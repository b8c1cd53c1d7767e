"""Runs `.steps` files in numpy: float64 holds every sum exactly, and is rounded once."""

import json
import zipfile

import numpy as np

from fuseq.backend import Runner
from fuseq.errors import FuseqError


class StepsRunner(Runner):
    """One file."""

    name = "steps"
    quantized = True
    says_layout = True  # channels first, as a program has them
    note = ""

    def __init__(self, file):
        self.runtime = f"numpy {np.__version__}"
        try:
            with np.load(file) as arrays:
                self._arrays = {name: arrays[name] for name in arrays.files}
            self._program = json.loads(self._arrays.pop("program.json").tobytes())
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise FuseqError(
                "FQ013", f"'{file.name}' is no .steps file", why=str(error), fix="write it again"
            ) from error
        self.shapes = tuple(tuple(value["shape"]) for value in self._program["inputs"])
        self.dtypes = ("float32",) * len(self.shapes)

    def __call__(self, *inputs):
        values = self.integers(*inputs)
        return tuple(self._real(name, values).astype(np.float32) for name in self._outputs())

    def integers(self, *inputs):
        names = [value["name"] for value in self._program["inputs"]]
        values = {name: self._on_grid(x, name) for name, x in zip(names, inputs, strict=True)}
        for step in self._program["steps"]:
            # A step whose activation is computed with it goes by the name of the activation.
            values.setdefault(step["grid"], getattr(self, f"_{step['op']}")(step, values))
        return values

    def parameters(self):
        return self._arrays

    def float_ops(self):
        return {}

    # --- the steps ---

    def _conv2d(self, step, values):
        (operand,) = self._operands(step)
        x = values[operand].astype(np.int64) - self._arrays[f"{operand}.zero_point"]
        layer = step["layer"]
        total = convolved(x, self._arrays[f"{layer}.weight"].astype(np.int64), step)
        total = total.astype(np.float64)
        if f"{layer}.bias" in self._arrays:
            total += self._arrays[f"{layer}.bias"].astype(np.float64).reshape(-1, 1, 1)
        scale = np.float64(self._arrays[f"{operand}.scale"])
        scale = scale * self._arrays[f"{layer}.weight.scale"].astype(np.float64).reshape(-1, 1, 1)
        return self._on_grid(total * scale, step["grid"])

    def _add(self, step, values):
        a, b = (self._real(name, values) for name in self._operands(step))
        return self._on_grid(a + b, step["grid"])

    def _relu(self, step, values):
        return values[step["grid"]]  # its layer was rounded to a grid that ends at zero

    _clamp = _relu

    def _pixel_shuffle(self, step, values):
        (operand,), factor = self._operands(step), step["upscale_factor"]
        batch, channels, height, width = values[operand].shape
        parts = values[operand].reshape(batch, -1, factor, factor, height, width)
        moved = parts.transpose(0, 1, 4, 2, 5, 3)
        return moved.reshape(batch, channels // factor**2, height * factor, width * factor)

    # --- grids ---

    def _outputs(self):
        return [self._value(name) for name in self._program["outputs"]]

    def _operands(self, step):
        return [self._value(name) for name in step["operands"]]

    def _value(self, name):
        """The value that holds a node's result."""
        grids = {step["name"]: step["grid"] for step in self._program["steps"]}
        return grids.get(name, name)

    def _real(self, name, values):
        steps = values[name] - self._arrays[f"{name}.zero_point"]
        return steps.astype(np.float64) * np.float64(self._arrays[f"{name}.scale"])

    def _on_grid(self, real, name):
        steps = np.rint(real.astype(np.float64) / np.float64(self._arrays[f"{name}.scale"]))
        shifted = steps + self._arrays[f"{name}.zero_point"]
        return np.clip(shifted, -128, 127).astype(np.int32)


def convolved(x, weight, step):
    """Integer sums of `[N, C, H, W]` with `[O, C / groups, kh, kw]`, padded with zero."""
    (rows, columns), groups = step["padding"], step["groups"]
    x = np.pad(x, ((0, 0), (0, 0), (rows, rows), (columns, columns)))
    spread = [
        (size - 1) * by + 1 for size, by in zip(weight.shape[2:], step["dilation"], strict=True)
    ]
    windows = np.lib.stride_tricks.sliding_window_view(x, spread, axis=(2, 3))
    (down, right), (gap_rows, gap_columns) = step["stride"], step["dilation"]
    windows = windows[:, :, ::down, ::right, ::gap_rows, ::gap_columns]
    parts = zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", w, k) for w, k in parts], 1)
