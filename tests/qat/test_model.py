"""What a prepared model computes: the target's integers, in training as in evaluation."""

import copy

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import fuseq
import fuseq.qat
from tests.qat.networks import Residual, batches, prepared, steps

STAGES = [(True, False), (False, False), (False, True)]


def same_table(a, b):
    return all(a.grids[name] == grid for name, grid in b.grids.items()) and all(
        torch.equal(a.integers[name], value) for name, value in b.integers.items()
    )


def test_before_any_step_it_is_the_quantized_program():
    data, passes = batches(), "recalibrate-bn,fuse-affine,equalize"
    torch.manual_seed(0)
    fused = fuseq.fuse(Residual(), data[0], passes=passes, calibration=data)
    quantized = fuseq.quantize(fused, calibration=data)
    assert same_table(prepared().table(), quantized.quantization)


@pytest.mark.parametrize(("observing", "frozen"), STAGES)
def test_the_training_forward_gives_what_evaluation_gives(observing, frozen):
    model = prepared()
    steps(model, batches())
    model.stage(observing=observing, weight_grids_frozen=frozen)
    x = batches(1, seed=7)[0]
    expected = model.eval()(x)
    # The grids of a forward pass that observes move after it.
    torch.testing.assert_close(model.train()(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("observing", "frozen"), STAGES)
@pytest.mark.parametrize("learn_scales", [False, True])
def test_the_file_computes_what_evaluation_computes(observing, frozen, learn_scales, tmp_path):
    model = prepared(learn_scales=learn_scales)
    model.stage(observing=observing, weight_grids_frozen=frozen)
    steps(model, batches())
    program = fuseq.qat.finalize(model)
    assert same_table(program.quantization, model.table())
    bundle = fuseq.lower(program, out=tmp_path / "out", calibration=batches())
    assert bundle.result is not None
    assert bundle.result.passed
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.int8.qdq.onnx")
    x = torch.rand(8, 3, 64, 64)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_array_equal(y, model.eval()(x).numpy())


def test_observing_moves_grids_and_freezing_holds_them():
    model = prepared()
    model(10 * batches(1)[0])
    wide = model.table()
    assert not same_table(prepared().table(), wide)
    model.stage(observing=False, weight_grids_frozen=True)
    steps(model, [10 * batch for batch in batches()])
    assert all(model.table().grids[name] == grid for name, grid in wide.grids.items())


def test_the_given_model_stays_as_it_is():
    model = Residual()
    before = copy.deepcopy(model.state_dict())
    qat = prepared(model)
    steps(qat, batches())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_finalized_does_not_move_with_further_training():
    model = prepared()
    program, x = fuseq.qat.finalize(model), batches(1)[0]
    expected = program(x)
    steps(model, batches())
    assert torch.equal(program(x), expected)
    assert not torch.equal(model.eval()(x), expected)


def test_autocast_leaves_the_integers_alone():
    model, x = prepared(), batches(1)[0]
    model.stage(observing=False, weight_grids_frozen=False)
    expected = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = model(x)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


class AddsNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.tanh(self.conv(x)) + 0.5
        return result


def test_a_number_is_added():
    model, x = prepared(AddsNumber()), batches(1)[0]
    expected = model.eval()(x)
    torch.testing.assert_close(model.train()(x), expected, rtol=0, atol=0)
