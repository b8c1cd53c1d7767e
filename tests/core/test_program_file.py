"""A program that was written and read computes the same bits, and a file cannot call anything."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fuseq
from fuseq.bundle import read_bundle
from fuseq.graph_form import NotPlain, plain, value_of
from fuseq.text import to_text

NETWORKS = ("mobileone", "orepa", "qatie", "qdr", "fastvit", "yolo", "weight_standardized")


def small(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    module = importlib.import_module(f"tests.networks.{name}")
    torch.manual_seed(0)
    return module.small(), (torch.rand(1, 3, 64, 64),)


def same_bits(ours: fuseq.Program, theirs: fuseq.Program, inputs: tuple[Tensor, ...]) -> bool:
    with torch.no_grad():
        pairs = zip(
            pytree.tree_leaves(ours(*inputs)), pytree.tree_leaves(theirs(*inputs)), strict=True
        )
        return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, inputs = small(name)
    captured = fuseq.capture(model, inputs)
    programs = [captured]
    if name != "yolo":
        programs.append(fuseq.quantize(fuseq.fuse(captured), calibration=[inputs]))
    for program in programs:
        fuseq.write_program(program, tmp_path / "a")
        read = fuseq.read_program(tmp_path / "a")
        assert to_text(read, sources=True) == to_text(program, sources=True)
        assert same_bits(program, read, inputs)
        assert read.origin.dynamic == program.origin.dynamic
        assert (read.input_names, read.output_names) == (program.input_names, program.output_names)
        if program.quantization is not None:
            assert read.quantization is not None
            assert read.quantization.profile == program.quantization.profile
            larger = tuple(torch.rand(2, 3, 96, 64) for _ in inputs)
            if {(0, 2), (0, 3)} <= set(program.origin.dynamic):
                assert same_bits(program, read, larger)
        fuseq.write_program(read, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bundle_holds_what_was_lowered(tmp_path: Path) -> None:
    model, inputs = small("repvgg")
    bundle = fuseq.lower(model, inputs, out=tmp_path / "bundle", calibration=[inputs])
    assert bundle.program is not None
    read = read_bundle(bundle.path).lowered_program()
    assert read is not None
    assert same_bits(bundle.program, read, inputs)
    file = bundle.file("int8")
    assert file is not None
    result = fuseq.check(read, file)
    assert result.passed
    assert result.checks[0].kind == "parity"
    assert result.checks[0].metrics["total"] > 30_000


def test_what_nobody_could_repeat_is_refused(tmp_path: Path) -> None:
    program = fuseq.capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), torch.rand(1, 3, 8, 8))
    last = program.outputs()[0]
    with program.graph.inserting_after(last):
        foreign = program.graph.call_function(_own, (last,))
    last.replace_all_uses_with(foreign)
    foreign.args = (last,)
    program.module.recompile()
    with pytest.raises(fuseq.FuseqError, match="function _own") as caught:
        fuseq.write_program(program, tmp_path / "p")
    assert caught.value.code == "FQ014"
    assert not (tmp_path / "p").exists()


def _own(x: Tensor) -> Tensor:
    return x + 1


def rewritten(tmp_path: Path, change: Any) -> Path:
    """A good file whose JSON was changed."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    x = torch.rand(1, 3, 8, 8)
    program = fuseq.quantize(model, x, calibration=[x])
    file = tmp_path / "program"
    fuseq.write_program(program, file)
    with safe_open(file, framework="pt") as stored:
        about = json.loads(stored.metadata()["program"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    change(about, tensors)
    save_file(tensors, file, {"program": json.dumps(about)})
    return file


def node(about: dict[str, Any], op: str) -> Any:
    return next(n for n in about["nodes"] if n["op"] == op)


DAMAGE = {
    "another format": lambda about, tensors: about.update(format=99),
    "no nodes": lambda about, tensors: about.pop("nodes"),
    "a loader": lambda about, tensors: node(about, "call_module").update(
        op="call_function", target="torch.load", args={"tuple": ["/etc/hostname"]}
    ),
    "a shell": lambda about, tensors: node(about, "call_module").update(
        op="call_function", target="os.system", args={"tuple": ["true"]}
    ),
    "an attribute getter": lambda about, tensors: node(about, "call_module").update(
        op="call_function", target="operator.attrgetter"
    ),
    "a method": lambda about, tensors: node(about, "call_module").update(op="call_method"),
    "no layer": lambda about, tensors: node(about, "call_module")["module"].update(
        {"class": "Parameter"}
    ),
    "a node that is nowhere": lambda about, tensors: node(about, "output").update(
        args={"tuple": [{"node": "nowhere"}]}
    ),
    "a weight missing": lambda about, tensors: tensors.pop("weight/0.weight"),
    "a weight of another shape": lambda about, tensors: tensors.update(
        {"weight/0.weight": torch.zeros(4, 3, 1, 2)}
    ),
    "a grid missing": lambda about, tensors: tensors.pop("scale/relu"),
    "a grid of no dtype": lambda about, tensors: about["table"]["grids"].update(
        relu=["int3", None]
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    file = rewritten(tmp_path, DAMAGE[damage])
    with pytest.raises(fuseq.FuseqError) as caught:
        fuseq.read_program(file)
    assert caught.value.code == "FQ013"
    assert "program" in caught.value.what


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_something_else_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(fuseq.FuseqError, match="FQ013"):
        fuseq.read_program(tmp_path / "p")
    with pytest.raises(fuseq.FuseqError, match="FQ013"):
        fuseq.read_program(tmp_path / "absent")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    scalars | st.sampled_from([torch.float32, torch.int64]) | st.frozensets(st.text()),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.builds(slice, inner, inner, inner)
    ),
    max_leaves=20,
)


@given(values)
def test_values_come_back_equal(value: Any) -> None:
    assert value_of(json.loads(json.dumps(plain(value))), {}) == value


@pytest.mark.parametrize("value", [object(), b"bytes", 1j, nn.ReLU(), torch.zeros(1)])
def test_values_of_other_kinds_have_no_plain_form(value: object) -> None:
    with pytest.raises(NotPlain):
        plain(value)
