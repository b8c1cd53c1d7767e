"""What the package's own author tests: the contracts, and what its runner computes."""

import json

import numpy as np
import pytest
import torch
from example_plugin.drop_every_bn import DropEveryBatchNorm
from example_plugin.drop_unit_mul import DropUnitMul
from example_plugin.steps import StepsBackend
from example_plugin.steps_runner import convolved

import fuseq
from fuseq.testing import BackendContract, PassContract, assert_equivalent, small_networks


class TestDropUnitMul(PassContract):
    pass_ = DropUnitMul(tolerance=1e-3)


class TestSteps(BackendContract):
    backend = StepsBackend(title="a, b")
    refuses = frozenset({"Gated", "Joined"})


def test_a_wrong_pass_does_not_keep_the_contract():
    class Wrong(PassContract):
        pass_ = DropEveryBatchNorm()

    with pytest.raises(AssertionError, match="breaks its numeric promise"):
        Wrong().test_it_keeps_its_promise_or_refuses()


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_are_torchs(groups):
    random = np.random.default_rng(0)
    x, weight = random.integers(-9, 9, (2, 4, 9, 8)), random.integers(-9, 9, (6, 4 // groups, 3, 3))
    geometry = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": groups}
    tensors = [torch.from_numpy(array).double() for array in (x, weight)]
    expected = torch.nn.functional.conv2d(*tensors, **geometry)
    np.testing.assert_array_equal(convolved(x, weight, geometry), expected.numpy())


def test_options_reach_the_file(tmp_path):
    model, inputs = small_networks()["Upscaler"]
    backend = StepsBackend(title="mine")
    bundle = fuseq.lower(
        model, inputs, backend=backend, out=tmp_path / "steps", calibration=[inputs]
    )
    with np.load(bundle.file("int8")) as arrays:
        assert json.loads(arrays["program.json"].tobytes())["title"] == "mine"
    assert_equivalent(bundle.program, bundle)
