"""Training mode: what is captured of it, and that the user's module is left as it was."""

from __future__ import annotations

import contextlib
import copy
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor

import fuseq
from fuseq import ops

TRAINING = "the model was in training mode: captured as in eval"
IMAGE = torch.rand(1, 4, 16, 12)


class AssigningInEval(nn.Module):
    """A block that writes its sum into `.data` of a third convolution when in eval."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.whole = nn.Conv2d(4, 4, 3, padding=1)

    def update(self) -> None:
        assert self.large.bias is not None
        assert self.small.bias is not None
        assert self.whole.bias is not None
        self.whole.weight.data = self.large.weight + F.pad(self.small.weight, (1, 1, 1, 1))
        self.whole.bias.data = self.large.bias + self.small.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            y: Tensor = self.large(x) + self.small(x)
            return y
        self.update()
        z: Tensor = self.whole(x)
        return z


class DroppingPaths(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)


class SkippingLayers(nn.Module):
    """Draws from Python's generator, not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 1e-9:
            return x
        y: Tensor = self.conv(x)
        return y


class WithAuxiliary(nn.Module):
    """Stochastic depth around, and a second output in training, as Inception has."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.drop, self.skip = AssigningInEval(), DroppingPaths(), SkippingLayers()
        self.auxiliary = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Any:
        y = self.skip(x + self.drop(self.block(x)))
        return (y, self.auxiliary(y)) if self.training else y


@pytest.mark.parametrize("front_end", ["fx", "export"])
@pytest.mark.parametrize("training", [True, False])
def test_only_blocks_that_compute_the_same_are_taken_as_in_training(
    front_end: str, training: bool
) -> None:
    torch.manual_seed(0)
    model = WithAuxiliary().train(training)
    program = fuseq.capture(model, IMAGE, front_end=front_end)
    assert ops.count(program, "conv2d") == 3
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(program(x), model.eval()(x))
    fused = "AssigningInEval fuses itself in eval: captured with its branches"
    assert program.origin.notes == ((TRAINING, fused) if training else (fused,))


def test_a_model_without_modes_needs_no_note() -> None:
    assert fuseq.capture(nn.Conv2d(4, 4, 1).train(), IMAGE).origin.notes == ()


class Stateful(nn.Module):
    """Keeps a value, counts, and has every kind of state that a capture could touch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
        self.calls, self.kept = 0, torch.zeros(())
        self.features: dict[str, Tensor] = {}
        self.trace: list[Tensor] = []
        # The closure names this module; a copy of the hook does too.
        self.norm.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features["norm"] = output
        self.trace.append(output)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y: Tensor = self.conv(self.drop(self.norm(x)))
        self.kept = y
        return y


class Unrecordable(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def contents(model: nn.Module) -> dict[str, Any]:
    return {
        f"{path}.{name}": copy.copy(value)
        for path, module in model.named_modules()
        for name, value in (*vars(module).items(), *module.state_dict().items())
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict | list):
        items = a.items() if isinstance(a, dict) else enumerate(a)
        return len(a) == len(b) and all(same(value, b[key]) for key, value in items)
    return bool(a == b)


@pytest.mark.parametrize("front_end", ["fx", "export", "auto"])
@pytest.mark.parametrize("kind", [Stateful, Unrecordable])
def test_the_module_is_left_as_it_was(kind: type[Stateful], front_end: str) -> None:
    model = kind().train()
    closure = model.features
    model.norm.register_forward_hook(lambda m, i, o: closure.__setitem__("again", o))
    model(torch.rand(2, 4, 8, 8))
    before = contents(model)
    with contextlib.suppress(fuseq.FuseqError):
        fuseq.capture(model, IMAGE, front_end=front_end)
        assert kind is Stateful
    after = contents(model)
    assert before.keys() == after.keys()
    assert [name for name in before if not same(before[name], after[name])] == []
    assert all(module.training for module in model.modules())
    held = [v for value in after.values() for v in (value.values() if isinstance(value, dict)
            else value if isinstance(value, list) else [value])]  # fmt: skip
    assert not any(isinstance(v, fx.Proxy | FakeTensor) for v in held)
    model(torch.rand(2, 4, 8, 8))


def test_capture_draws_no_random_number_of_the_users() -> None:
    model = WithAuxiliary().train()
    before = torch.get_rng_state()
    fuseq.capture(model, IMAGE)
    assert torch.equal(torch.get_rng_state(), before)
