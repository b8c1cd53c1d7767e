"""Instance norms in training: the integers of evaluation, and gradients that stay finite."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fuseq import plugins
from fuseq.qat import QatModel
from tests.qat.networks import batches, prepared, steps

OnnxBackend = plugins.load("backends", "onnx")


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)
        self.norm = nn.InstanceNorm2d(8, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(torch.relu(self.norm(self.first(x))))
        return result


@pytest.fixture(params=["exact", "decomposed"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> QatModel:
    if request.param == "decomposed":
        profile = OnnxBackend.profile
        decompose = profile.decompose | {"instance_norm"}
        monkeypatch.setattr(OnnxBackend, "profile", replace(profile, decompose=decompose))
    return prepared(Normed())


def test_the_training_forward_gives_what_evaluation_gives(model: QatModel) -> None:
    steps(model, batches())
    for x in (batches(1, seed=7)[0], batches(1, size=21)[0] / 20):
        expected = model.eval()(x)
        torch.testing.assert_close(model.train()(x), expected, rtol=0, atol=0)


def test_weight_and_bias_of_the_norm_are_trained(model: QatModel) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "norm" in name}
    assert sorted(p.numel() for p in before.values()) == [8, 8]
    steps(model, batches())
    after = dict(model.named_parameters())
    assert all((after[name] != p).any() for name, p in before.items())


def test_maps_without_variance_leave_finite_gradients(model: QatModel) -> None:
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.in_channels == 3:
                layer.weight[:2] = 0  # constant channels
    x = batches(1)[0]
    model(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(torch.isfinite(low).all() for low in (model.ranges, model.activation_scale))
