"""onnx2tf: PyTorch's ONNX file, simplified, then TensorFlow's converter; int8 throughout.

One call writes the float file and every quantized form there is (float16, dynamic range, int8 with
float outside, int8 throughout, 16-bit activations): its seconds are those of all of them.

ECBSR fails: it writes borders into slices, which leave PyTorch as Expand and ScatterND. "Dimensions
must be equal, but are 64 and 4 [...] input shapes: [1,64,1,64,3], [1,4,1,1,1]" at Expand; the way
out that onnx2tf names is a file of replacements by hand for the operators of one network.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx2tf
import onnxsim
import torch
from torch import Tensor, nn

from benchmarks.peers.onnx_export import exported

LOOKED_FOR = "calibration_image_sample_data_20x128x128x3_float32.npy"
"""Images for tests of operators and for calibration, downloaded if the working folder has none.

`custom_input_op_name_np_data_path` names others, but with more than one image its tests of
operators are left out, and QATIE comes out as another function without a word, in float too: 14 dB
of PSNR to the network, against 136 dB in this way.
"""


def fused(model: nn.Module, example: Tensor, out: Path) -> Path:
    """The float file."""
    _convert(model, [example], out)
    return out / "float_float32.tflite"


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Calibrated and quantized, weights per channel."""
    _convert(
        model,
        calibration,
        out,
        output_integer_quantized_tflite=True,
        quant_type="per-channel",
        quant_norm_mean="[[[[0, 0, 0]]]]",
        quant_norm_std="[[[[1, 1, 1]]]]",
    )
    return out / "float_full_integer_quant.tflite"


def _convert(model: nn.Module, images: list[Tensor], out: Path, **options: Any) -> None:
    source = exported(model, images[0], out / "float.onnx")
    # In onnx2tf this is a command, which is not found by an environment's Python alone.
    simplified, _ = onnxsim.simplify(onnx.load(source))
    onnx.save(simplified, source)
    np.save(out / LOOKED_FOR, torch.cat(images).permute(0, 2, 3, 1).numpy())
    with contextlib.chdir(out):
        onnx2tf.convert(
            input_onnx_file_path=source.name,
            output_folder_path=".",
            not_use_onnxsim=True,
            non_verbose=True,
            **options,
        )
