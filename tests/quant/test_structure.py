from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fuseq
from fuseq import ops, plugins, rewrite
from fuseq.program import Program
from fuseq.quant.profile import Profile
from fuseq.quant.structure import Structure, find_structure

PROFILE: Profile = plugins.load("backends", "onnx").profile


class Call(nn.Module):
    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function, self.a, self.b = function, nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def program_of(function: Callable[..., object]) -> Program:
    torch.manual_seed(0)
    program = fuseq.capture(Call(function).eval(), torch.rand(1, 3, 8, 8))
    return rewrite.apply(plugins.load("passes", "legalize")(profile=PROFILE), program)


def structure_of(
    function: Callable[..., object],
    *,
    profile: Profile = PROFILE,
    keep: frozenset[str] = frozenset(),
    wide: frozenset[str] = frozenset(),
) -> Structure:
    return find_structure(program_of(function), profile, keep, wide)


def groups(structure: Structure) -> set[frozenset[str]]:
    """Sets of values that share a grid, single ones left out."""
    members: dict[str, set[str]] = {}
    for name, group in structure.group.items():
        members.setdefault(group, set()).add(name)
    return {frozenset(names) for names in members.values() if len(names) > 1}


def test_moving_ops_share_one_grid_with_their_source() -> None:
    structure = structure_of(
        lambda m, x: (
            F.pixel_shuffle(F.max_pool2d(m.a(x), 2), 2),
            m.b(torch.permute(m.a(x)[:, :, 1:], (0, 1, 3, 2))),
        )
    )
    assert groups(structure) == {
        frozenset({"a", "max_pool", "pixel_shuffle"}),
        frozenset({"a_1", "slice_1", "permute"}),
    }
    assert structure.islands == ()


def test_a_grid_reaches_moving_ops_from_behind() -> None:
    """The input is quantized as soon as a convolution reads it through any number of moves."""
    structure = structure_of(lambda m, x: m.a(F.max_pool2d(x[:, :, 2:], 2)))
    assert groups(structure) == {frozenset({"x", "slice_1", "max_pool"})}


def test_a_concat_and_its_edges_share_a_grid_its_operands_do_not() -> None:
    structure = structure_of(lambda m, x: torch.cat([m.a(x), torch.sigmoid(m.a(x)), m.a(x)], 1))
    assert groups(structure) == {
        frozenset({"requantize", "requantize_1", "requantize_2", "concat"})
    }


@pytest.mark.parametrize(
    ("activation", "absorbed"),
    [
        (torch.relu, True),
        (F.relu6, True),
        (lambda x: torch.clamp(x, -1, 2), True),
        (lambda x: torch.clamp(x, max=0.0), True),
        (lambda x: torch.clamp(x, 0.5, 2), False),  # a grid holds zero, this range does not
        (lambda x: torch.clamp(x, max=-0.5), False),
        (torch.sigmoid, False),
    ],
)
def test_activations_are_absorbed_if_their_range_holds_zero(
    activation: Callable[[Tensor], Tensor], absorbed: bool
) -> None:
    structure = structure_of(lambda m, x: m.b(activation(m.a(x))))
    assert ("a" in structure.absorbed) == absorbed
    assert ("a" in structure.group) == (not absorbed)
    assert "b" in structure.group


def test_a_value_others_read_is_not_absorbed() -> None:
    def used_twice(m: Call, x: Tensor) -> object:
        y = m.a(x)
        return m.b(torch.relu(y)), torch.sigmoid(y)

    def an_output_too(m: Call, x: Tensor) -> object:
        y = m.a(x)
        return m.b(torch.relu(y)), y

    for function in (used_twice, an_output_too):
        structure = structure_of(function)
        assert structure.absorbed == {}
        assert {"a", "relu"} <= structure.group.keys()


def test_neither_half_is_absorbed_when_one_stays_float() -> None:
    def function(m: Call, x: Tensor) -> object:
        return m.b(torch.relu(m.a(x)))

    for kept in ("a", "relu"):
        structure = structure_of(function, keep=frozenset({kept}))
        assert structure.absorbed == {}
        assert structure.islands == (kept,)
        assert kept not in structure.integer


def test_kept_nodes_leave_float_edges_where_no_integer_op_reads() -> None:
    structure = structure_of(
        lambda m, x: m.b(m.a(x)) + x.mean(1, keepdim=True), keep=frozenset({"a", "add"})
    )
    assert structure.islands == ("a", "add")
    assert "add" not in structure.group  # a float output
    assert {"a", "b", "x"} <= structure.group.keys()  # `mean` and `b` compute in integers


def test_foreign_ops_are_islands_between_quantized_neighbours() -> None:
    structure = structure_of(lambda m, x: m.b(F.elu(m.a(x))))
    assert structure.islands == ("elu",)
    assert {"elu", "b"} <= structure.group.keys()
    assert "elu" not in structure.integer


def test_a_float_operand_of_a_concat_is_quantized_at_its_edge() -> None:
    structure = structure_of(lambda m, x: torch.cat([F.elu(m.a(x)), m.a(x)], 1))
    assert "elu" not in structure.group
    assert groups(structure) == {frozenset({"requantize", "requantize_1", "concat"})}


def test_fixed_grids_hold_for_the_whole_group() -> None:
    profile = Profile(
        name="test",
        arithmetic="ideal",
        integer=frozenset({"conv2d", "sigmoid"}),
        same_grid=frozenset({"max_pool"}),
        fixed={"sigmoid": {"uint8": (1 / 256, 0)}},
    )
    structure = structure_of(
        lambda m, x: m.b(F.max_pool2d(torch.sigmoid(m.a(x)), 2)), profile=profile
    )
    assert structure.fixed == {"sigmoid": (1 / 256, 0)}
    assert structure.group["max_pool"] == "sigmoid"


def test_a_fixed_grid_is_that_of_the_dtype() -> None:
    profile = replace(PROFILE, fixed={"sigmoid": {"uint8": (1 / 256, 0)}})
    wide = structure_of(
        lambda m, x: m.b(torch.sigmoid(m.a(x))), profile=profile, wide=frozenset({"sigmoid"})
    )
    assert wide.dtypes["sigmoid"] == "uint16"
    assert wide.fixed == {}


@pytest.mark.parametrize(
    ("named", "widened"),
    [
        ("a", {"relu"}),  # its value is that of the ReLU on its accumulator
        ("relu", {"relu"}),
        ("x", {"x"}),
        ("max_pool", {"b", "max_pool"}),  # a group has one grid
        ("concat", {"concat", "requantize", "requantize_1"}),
    ],
)
def test_wide_values_bring_their_groups_and_no_other(named: str, widened: set[str]) -> None:
    structure = structure_of(
        lambda m, x: (lambda y: torch.cat([F.max_pool2d(m.b(y), 1), y], 1))(torch.relu(m.a(x))),
        wide=frozenset({named}),
    )
    wide = {n for n, group in structure.group.items() if structure.dtypes[group] == "uint16"}
    assert wide == widened
    others = structure.group.keys() - wide
    assert {structure.dtypes[structure.group[name]] for name in others} == {"uint8"}


def test_structure_depends_on_no_order_of_hashes() -> None:
    """The member that stands for a group is the first in the graph."""

    def function(m: Call, x: Tensor) -> object:
        return F.pixel_shuffle(F.max_pool2d(torch.cat([m.a(x), m.a(x)[:, 1:]], 1)[:, :4], 2), 2)

    program = program_of(function)
    order = {node.name: i for i, node in enumerate(program.graph.nodes)}
    structure = find_structure(program, PROFILE)
    for name, group in structure.group.items():
        assert order[group] <= order[name]
    assert ops.count(program, "requantize") == 2
