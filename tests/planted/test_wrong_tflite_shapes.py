"""TFLite files whose operators make other shapes than the file says: the verifier names them.

Each is a good file with one thing changed.
"""

from __future__ import annotations

import pytest
from ai_edge_litert import schema_py_generated as schema

from fuseq.backends.tflite.verifier import violations
from tests.planted.tflite_files import Edit, Edited, lowered, transposed

SAME = schema.Padding.SAME

SHAPE_FAULTS: dict[str, tuple[str, Edit, str, str]] = {
    "SAME instead of VALID": (
        "gated", lambda e: e.options("down1_a", padding=SAME), "CONV_2D", "down1_a",
    ),
    "another stride": (
        "gated", lambda e: e.options("down1_a", strideH=1), "CONV_2D", "down1_a",
    ),
    "another dilation": (
        "gated", lambda e: e.options("down1_a", dilationHFactor=2), "CONV_2D", "down1_a",
    ),
    "weights with inputs and outputs exchanged": (
        "gated", lambda e: e.constant("head.weight", transposed(3, 1, 2, 0)), "CONV_2D", "head_1",
    ),
    "a bias with a channel too few": (
        "gated", lambda e: e.constant("head.bias", lambda b: b[1:]), "CONV_2D", "head.bias",
    ),
    "another multiplier of a depthwise convolution": (
        "mobilenet_v3", lambda e: e.options("relu_1", depthMultiplier=2), "DEPTHWISE_CONV_2D",
        "features_3_block_3.weight",
    ),
    "depthwise weights as those of a convolution": (
        "mobilenet_v3", lambda e: e.constant("features_3_block_3.weight", transposed(3, 1, 2, 0)),
        "DEPTHWISE_CONV_2D", "features_3_block_3.weight",
    ),
    "another size of a transposed convolution": (
        "decoder", lambda e: e.sizes("relu_2.whole", 0, [1, 33, 34, 24]), "TRANSPOSE_CONV",
        "relu_2.whole",
    ),
    "another stride of a transposed convolution": (
        "decoder", lambda e: e.options("relu_2.whole", strideW=1), "TRANSPOSE_CONV", "relu_2.whole",
    ),
    "transposed convolution with channels exchanged": (
        "decoder", lambda e: e.constant("decoder_0.weight", transposed(3, 1, 2, 0)),
        "TRANSPOSE_CONV", "decoder_0.weight",
    ),
    "weights of a linear layer transposed": (
        "mobilenet_v3", lambda e: e.constant("classifier.0.weight", transposed(1, 0)),
        "FULLY_CONNECTED", "classifier.0.weight",
    ),
    "padding off by one": (
        "gated", lambda e: e.sizes("down1_a.padded", 1, [[0, 0], [1, 1], [1, 0], [0, 0]]), "PAD",
        "down1_a.padded",
    ),
    "padding of channels": (
        "gated", lambda e: e.sizes("down1_a.padded", 1, [[0, 0], [0, 0], [1, 0], [1, 0]]), "PAD",
        "down1_a.padded",
    ),
    "padding for fewer dimensions": (
        "gated", lambda e: e.sizes("down1_a.padded", 1, [[1, 0], [1, 0]]), "PAD", "down1_a.padded",
    ),
    "reflection past the image": (
        "moves", lambda e: e.sizes("pad", 1, [[0, 0], [40, 1], [1, 1], [0, 0]]), "MIRROR_PAD",
        "pad",
    ),
    "another dimension to concatenate along": (
        "squeezenet", lambda e: e.options("concat", axis=1), "CONCATENATION", "concat",
    ),
    "another stride of a pool": (
        "squeezenet", lambda e: e.options("max_pool", strideW=1), "MAX_POOL_2D", "max_pool",
    ),
    "a larger window of an average": (
        "moves", lambda e: e.options("avg_pool", filterHeight=5), "AVERAGE_POOL_2D", "avg_pool",
    ),
    "another block of a pixel shuffle": (
        "gated", lambda e: e.options("pixel_shuffle", blockSize=3), "DEPTH_TO_SPACE",
        "pixel_shuffle",
    ),
    "another block of a pixel unshuffle": (
        "moves", lambda e: e.options("pixel_unshuffle", blockSize=4), "SPACE_TO_DEPTH",
        "pixel_unshuffle",
    ),
    "an axis named twice": (
        "shufflenet_v2", lambda e: e.sizes("permute", 1, [0, 1, 2, 4, 4]), "TRANSPOSE", "permute",
    ),
    "a transpose of height and channels": (
        "shufflenet_v2", lambda e: e.sizes("permute", 1, [0, 3, 2, 1, 4]), "TRANSPOSE", "permute",
    ),
    "a reshape to fewer elements": (
        "squeezenet", lambda e: e.sizes("reshape", 1, [1, 5]), "RESHAPE", "reshape",
    ),
    "a reshape to another order": (
        "shufflenet_v2", lambda e: e.sizes("reshape", 1, [1, 8, 8, 8, 2]), "RESHAPE", "reshape",
    ),
    "a slice that begins late": (
        "decoder", lambda e: e.sizes("relu_2", 1, [0, 2, 1, 0]), "STRIDED_SLICE", "relu_2",
    ),
    "a slice that skips": (
        "decoder", lambda e: e.sizes("relu_2", 3, [1, 2, 1, 1]), "STRIDED_SLICE", "relu_2",
    ),
    "a resize to another size": (
        "gated", lambda e: e.sizes("interpolate", 1, [31, 32]), "RESIZE_NEAREST_NEIGHBOR",
        "interpolate",
    ),
    "a resize with both conventions": (
        "moves", lambda e: e.options("interpolate", alignCorners=True), "RESIZE_BILINEAR",
        "interpolate",
    ),
    "a mean over batch and channels": (
        "mobilenet_v3", lambda e: e.sizes("mean", 1, [0, 3]), "MEAN", "mean",
    ),
    "a mean over a dimension that is not there": (
        "mobilenet_v3", lambda e: e.sizes("mean", 1, [1, 4]), "MEAN", "mean",
    ),
    "a mean that drops its dimensions": (
        "mobilenet_v3", lambda e: e.options("mean", keepDims=False), "MEAN", "mean",
    ),
    "a product with a value of another size": (
        "gated", lambda e: e.reads("mul", "tanh", "tanh_3"), "MUL", "mul",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(SHAPE_FAULTS))
def test_the_verifier_names_a_wrong_shape(fault: str) -> None:
    network, edit, code, value = SHAPE_FAULTS[fault]
    edited = Edited(lowered(network).data)
    edit(edited)
    found = violations(edited.data())
    assert (code, value) in {(v.code, v.value) for v in found}
    assert found[0].code == code
