"""What capture says when it refuses: the exact text, and nothing else on the terminal."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from torch import nn

import fuseq
from fuseq.errors import FuseqError
from fuseq.recording import record
from tests.errors import models


def refusal(model: nn.Module, capfd: pytest.CaptureFixture[str], front_end: str = "auto") -> str:
    torch.manual_seed(0)
    with pytest.raises(FuseqError) as refused:
        fuseq.capture(model, torch.randn(1, 4, 6, 8), front_end=front_end)
    assert capfd.readouterr() == ("", "")
    return str(refused.value)


def line_of(code: str) -> int:
    source = inspect.getsource(models).splitlines()
    (number,) = [i for i, line in enumerate(source, 1) if code in line]
    return number


@pytest.mark.parametrize(
    ("model", "code"),
    [
        (models.BranchOnValue(), "if x.mean() > 0:"),
        (models.ItemInCondition(), "while x.abs().max().item() > 1:"),
    ],
)
@pytest.mark.parametrize("front_end", ["fx", "export", "auto"])
def test_branch_on_a_value(
    model: nn.Module, code: str, front_end: str, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder = "torch.fx" if front_end == "fx" else "torch.export"
    assert refusal(model, capfd, front_end) == (
        f"error[FQ101]: {recorder} cannot record the model: it branches on a value known only at "
        "run time\n"
        f"  --> models.py:{line_of(code)}: {code}\n"
        "  why: the graph must be the same for every input value\n"
        "  help: compute the condition from shapes or attributes, or use torch.where"
    )


def test_numpy(capfd: pytest.CaptureFixture[str]) -> None:
    code = "return torch.from_numpy(x.numpy() * 2)"
    assert refusal(models.ThroughNumPy(), capfd) == (
        "error[FQ101]: torch.export cannot record the model: .numpy() is not supported for tensor "
        "subclasses.\n"
        f"  --> models.py:{line_of(code)}: {code}\n"
        "  help: write this line with plain tensor operations"
    )


def test_batch_statistics(capfd: pytest.CaptureFixture[str]) -> None:
    code = "y: Tensor = self.norm(x)"
    assert refusal(models.BatchStatistics(), capfd, "fx") == (
        "error[FQ101]: cannot take `norm` into the graph: a batch norm uses batch statistics: it "
        "has no running statistics to fold\n"
        f"  --> models.py:{line_of(code)}: {code}\n"
        "  help: write this line with plain tensor operations"
    )


def test_model_raises(capfd: pytest.CaptureFixture[str]) -> None:
    last = [n for n, line in enumerate(inspect.getsource(models).splitlines(), 1)
            if "y: Tensor = self.conv(x)" in line]  # fmt: skip
    assert refusal(models.WrongChannels(), capfd) == (
        "error[FQ102]: the model raised RuntimeError on its example inputs (1x4x6x8)\n"
        f"  --> models.py:{last[0]}: y: Tensor = self.conv(x)\n"
        "  why: Given groups=1, weight of size [4, 3, 1, 1], expected input[1, 4, 6, 8] to have 3 "
        "channels, but got 4 channels instead\n"
        "  help: check the shape: --input 1x3x224x224, or example_inputs() in the model file"
    )


def test_weights_not_finite(capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(models.Diverged(), capfd) == (
        "error[FQ103]: 4 of 16 values of `conv.weight` are not finite\n"
        "  --> parameter `conv.weight`\n"
        "  help: load a checkpoint from before training diverged"
    )


def test_outputs_not_finite(capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(models.DividesByZero(), capfd) == (
        "error[FQ103]: 192 of 192 values of output 0 are not finite\n"
        "  why: forward overflows or divides by zero on the example inputs\n"
        "  help: look for weights that diverged, a variance of zero with eps=0, and inputs out of "
        "range"
    )


@pytest.mark.parametrize("front_end", ["fx", "export", "auto"])
def test_random_in_eval(front_end: str, capfd: pytest.CaptureFixture[str]) -> None:
    text = refusal(models.AlwaysDropping(), capfd, front_end)
    assert re.sub(r"differ by \S+", "differ by N", text) == (
        "error[FQ104]: the model is random in eval mode: the same input gives another output each "
        "time\n"
        "  why: two runs differ by N (relative L2)\n"
        "  help: call dropout and noise with training=self.training"
    )


@pytest.mark.parametrize(
    ("model", "write", "read"),
    [
        (models.WriteThenRead(), "z = F.relu(y, inplace=True)", "return z + y"),
        (models.WriteThroughView(), "first.mul_(3)", None),
    ],
)
def test_write_in_place_read_again(
    model: nn.Module, write: str, read: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    later = f"models.py:{line_of(read)}" if read else "output"
    assert refusal(model, capfd, "fx") == (
        "error[FQ104]: a value is written in place and read again afterwards\n"
        f"  --> models.py:{line_of(write)}: {write}\n"
        f"  why: torch.fx records the old value for the read at {later}\n"
        "  help: write it out of place, or use the export front end"
    )
    assert fuseq.capture(model, torch.randn(1, 4, 6, 8)).origin.front_end == "export"


def test_another_computation(capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(models.TypeTest(), capfd, "fx") == (
        "error[FQ104]: output 0 of the captured program is 5.0e-01 away from the model's\n"
        "  why: the fx front end recorded another computation (control flow on values, or state "
        "that forward keeps)\n"
        "  help: move the branch out of forward"
    )


def test_an_exception_without_a_message() -> None:
    model = models.SilentInTraining()
    assert fuseq.capture(model, torch.randn(1, 4, 6, 8)).origin.module is model
    with pytest.raises(FuseqError) as refused:
        record("fx", model.train(), (torch.randn(1, 4, 6, 8),), [(1, 4, 6, 8)])
    assert refused.value.what == "torch.fx cannot record the model: NotImplementedError"


@pytest.mark.parametrize("inputs", [(), ("image.png",), [1]])
def test_example_inputs_that_are_no_tensors(inputs: tuple[object, ...]) -> None:
    with pytest.raises(FuseqError) as refused:
        fuseq.capture(nn.Identity(), inputs)  # type: ignore[arg-type]
    assert str(refused.value) == (
        "error[FQ005]: example inputs must be tensors\n  help: pass a tensor or a tuple of tensors"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_module() -> None:
    with pytest.raises(FuseqError) as refused:
        fuseq.capture(torch.jit.script(nn.ReLU()), torch.randn(1, 4))
    assert str(refused.value) == (
        "error[FQ101]: the model is scripted: it has no Python forward to record\n"
        "  help: pass the module that torch.jit.script or torch.jit.trace was given"
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_submodule(capfd: pytest.CaptureFixture[str]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), torch.jit.script(nn.ReLU()))
    assert refusal(model, capfd).startswith(
        "error[FQ101]: `1` is scripted: it has no Python forward"
    )


def test_lazy_module(capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(nn.Sequential(nn.LazyConv2d(4, 1)), capfd) == (
        "error[FQ101]: `0` is a lazy LazyConv2d: it has no weights yet\n"
        "  help: run the model once on an input, then load or train its weights"
    )


def test_quantized_layer(capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(nn.Sequential(models.Quantized()), capfd) == (
        "error[FQ101]: `0` is quantized already (Quantized)\n"
        "  help: pass the float model: fuseq.quantize and fuseq.lower choose the integers"
    )


def test_a_model_that_cannot_be_copied(capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(models.Unsharable(), capfd) == (
        "error[FQ101]: the model cannot be copied: cannot pickle '_thread.lock' object\n"
        "  why: recording changes a module, so a copy is recorded\n"
        "  help: keep handles, locks and callbacks outside the module, or define __deepcopy__"
    )


def test_state_between_calls(capfd: pytest.CaptureFixture[str]) -> None:
    assert refusal(models.Counting(), capfd) == (
        "error[FQ104]: the model keeps state: the same input gives another output at the second "
        "call\n"
        "  why: forward changes `calls`, `count`\n"
        "  help: return what forward must remember, and take it as an input"
    )


def test_unknown_front_end() -> None:
    with pytest.raises(FuseqError) as refused:
        fuseq.capture(nn.ReLU(), torch.randn(1, 4), front_end="jit")
    assert str(refused.value) == (
        "error[FQ007]: unknown front end 'jit'\n  help: use 'auto', 'fx' or 'export'"
    )


class Returns(nn.Module):
    """Returns one value that is no tensor."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.conv, self.value = nn.Conv2d(4, 4, 1), value

    def forward(self, x: torch.Tensor) -> object:
        return self.value if self.value == [] else (self.conv(x), self.value)


@pytest.mark.parametrize(("value", "named"), [(3, "int"), ("a", "str"), ([], "nothing")])
def test_outputs_that_are_no_tensors(
    value: object, named: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert refusal(Returns(value), capfd) == (
        f"error[FQ101]: forward returns {named} where a tensor is needed\n"
        "  help: wrap the model in a module that returns its tensors only"
    )
