"""Wrong TFLite files that break no rule: comparing integers or parameters names the value.

Each is a good file with one thing changed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fuseq.backends.tflite.runner import LiteRtRunner
from fuseq.backends.tflite.verifier import violations
from fuseq.equivalence.integers import file_parity, table_parity
from tests.planted.tflite_files import (
    Edit,
    Edited,
    first_is,
    lowered,
    one_unit_more,
    signature,
    transposed,
)


def swapped_shapes(edited: Edited) -> None:
    """The two dimensions of a channel shuffle the other way round, through the transpose."""
    edited.sizes("reshape", 1, [1, 8, 8, 8, 2])
    edited.tensor("reshape").shape = [1, 8, 8, 8, 2]
    edited.tensor("permute").shape = [1, 8, 8, 2, 8]


def in_program_order(array: np.ndarray) -> np.ndarray:
    """What is stored for a pixel shuffle by 2, as torch has it."""
    return array.reshape(4, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def scales_in_program_order(edited: Edited) -> None:
    edited.scale("head.weight", in_program_order)
    edited.scale("head.bias", in_program_order)


def last_outputs_swapped(edited: Edited) -> None:
    for indices in (edited.graph.outputs, signature(edited).outputs):
        indices[1], indices[2] = indices[2], indices[1]


def cut_above(edited: Edited) -> None:
    edited.sizes("relu_2", 1, [0, 0, 1, 0])
    edited.sizes("relu_2", 2, [1, 32, 33, 24])


PARITY_FAULTS: dict[str, tuple[str, Edit, str]] = {
    "weights not permuted for the pixel shuffle": (
        "gated", lambda e: e.constant("head.weight", in_program_order), "head_1",
    ),
    "bias not permuted for the pixel shuffle": (
        "gated", lambda e: e.constant("head.bias", in_program_order), "head_1",
    ),
    "scales not permuted for the pixel shuffle": ("gated", scales_in_program_order, "head_1"),
    "weights not permuted for the pixel unshuffle": (
        "moves", lambda e: e.constant("down.weight", lambda w: in_program_order(w.T).T), "down",
    ),
    "one weight off by one": (
        "gated", lambda e: e.constant("head.weight", lambda w: (w ^ 1).clip(-127)), "head_1",
    ),
    "bias of other channels": (
        "squeezenet", lambda e: e.constant("features.0.bias", lambda b: b[::-1]), "relu",
    ),
    "kernel with height and width exchanged": (
        "gated", lambda e: e.constant("head.weight", transposed(0, 2, 1, 3)), "head_1",
    ),
    "flat kernel stood upright": (
        "moves", lambda e: e.constant("wide.weight", transposed(0, 2, 1, 3)), "wide",
    ),
    "kernel of a transposed convolution not mirrored": (
        "decoder", lambda e: e.constant("decoder_0.weight", lambda w: w[:, ::-1, ::-1]), "relu_2",
    ),
    "weights of other groups": (
        "moves", lambda e: e.constant("grouped.weight", lambda w: np.roll(w, 4, 0)), "grouped",
    ),
    "padding at the other side": (
        "gated", lambda e: e.sizes("down1_a.padded", 1, [[0, 0], [0, 1], [1, 0], [0, 0]]),
        "down1_a",
    ),
    "padding with another value": (
        "shufflenet_v2", lambda e: e.constant("max_pool.fill", lambda v: v + 100), "max_pool",
    ),
    "window cut elsewhere out of a transposed convolution": (
        "decoder", cut_above, "relu_2",
    ),
    "dilation": ("gated", lambda e: e.options("head_1", dilationHFactor=2), "head_1"),
    "window of a pool": (
        "squeezenet", lambda e: e.options("max_pool", filterHeight=2), "max_pool",
    ),
    "operands of a difference swapped": (
        "qatie", lambda e: e.reads("sub", "mean", "refine_s2_branch_0"), "sub",
    ),
    "operands of a concatenation swapped": (
        "squeezenet", lambda e: e.reads("concat", "requantize_1", "requantize"), "concat",
    ),
    "one factor of a gate twice": (
        "gated", lambda e: e.reads("mul", "tanh", "tanh"), "mul",
    ),
    "a skip from another layer": (
        "mobilenet_v3", lambda e: e.reads("add", "features_3_block_9", "features_3_block_9"),
        "add",
    ),
    "slope of a leaky relu": (
        "unet", lambda e: e.options("leaky_relu", alpha=0.02), "leaky_relu",
    ),
    "bilinear resize by the upper left": (
        "moves", lambda e: e.options("interpolate", halfPixelCenters=False), "interpolate",
    ),
    "bilinear resize by the corners": (
        "moves",
        lambda e: e.options("interpolate", halfPixelCenters=False, alignCorners=True),
        "interpolate",
    ),
    "a channel shuffle the other way round": ("shufflenet_v2", swapped_shapes, "reshape"),
    "a bound of a clamp": (
        "moves", lambda e: e.constant("clamp.bound", lambda b: b + 50), "clamp",
    ),
    "a constant of a sum": (
        "mobilenet_v3", lambda e: e.constant("add_2.operand", lambda c: c - 100), "clamp",
    ),
    "scale of an output": (
        "mobilenet_v3", lambda e: e.scale("classifier_3", lambda s: s * 1.1), "classifier_3",
    ),
    "outputs in another order": ("moves", last_outputs_swapped, "clamp"),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(PARITY_FAULTS))
def test_parity_names_the_value(fault: str, tmp_path: Path) -> None:
    """What breaks no rule of the format shows in the integers."""
    network, edit, value = PARITY_FAULTS[fault]
    good = lowered(network)
    edited = Edited(good.data)
    edit(edited)
    assert violations(edited.data()) == []
    file = tmp_path / "wrong.tflite"
    file.write_bytes(edited.data())
    check, first = file_parity(good.program, LiteRtRunner(file), good.inputs)
    assert not check.passed
    assert first is not None
    assert first.node == value


@pytest.mark.parametrize("network", sorted({network for network, *_ in PARITY_FAULTS.values()}))
def test_the_good_files_agree(network: str, tmp_path: Path) -> None:
    good = lowered(network)
    file = tmp_path / "good.tflite"
    file.write_bytes(good.data)
    check, first = file_parity(good.program, LiteRtRunner(file), good.inputs)
    assert check.passed
    assert first is None
    assert table_parity(good.program, LiteRtRunner(file))[0].passed


TABLE_FAULTS: dict[str, tuple[str, Edit, str]] = {
    "weights not permuted for the pixel shuffle": (
        "gated", lambda e: e.constant("head.weight", in_program_order), "head_1",
    ),
    "bias not permuted for the pixel shuffle": (
        "gated", lambda e: e.constant("head.bias", in_program_order), "head_1",
    ),
    "scales not permuted for the pixel shuffle": ("gated", scales_in_program_order, "head_1"),
    "one weight off by one": (
        "mobilenet_v3", lambda e: e.constant("classifier.3.weight", first_is(5)), "classifier_3",
    ),
    "one bias off by one": (
        "mobilenet_v3", lambda e: e.constant("classifier.3.bias", first_is(5)), "classifier_3",
    ),
    "scale of an output, by the last bit": (
        "mobilenet_v3", lambda e: e.scale("classifier_3", one_unit_more), "classifier_3",
    ),
    "zero point of an output": (
        "mobilenet_v3", lambda e: e.zero_point("classifier_3", 9), "classifier_3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", list(TABLE_FAULTS))
def test_the_table_names_the_layer(fault: str, tmp_path: Path) -> None:
    """A change of a parameter shows even where it changes no integer of these images."""
    network, edit, node = TABLE_FAULTS[fault]
    good = lowered(network)
    edited = Edited(good.data)
    edit(edited)
    file = tmp_path / "wrong.tflite"
    file.write_bytes(edited.data())
    check, first = table_parity(good.program, LiteRtRunner(file))
    assert not check.passed
    assert first is not None
    assert first.node == node
