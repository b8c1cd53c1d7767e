"""The search: replace every region that one convolution computes, and more cheaply.

Nodes are visited from the output backwards. Each affine node that is still there is the exit of
candidate regions; the one that saves most is replaced. If none saves anything, the visit goes on
to its operands, so smaller fusions still happen. Replacing a region changes nothing upstream, so
one set of dominators serves a whole sweep.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx, nn

from fuseq import ops
from fuseq.affine.emit import Plan, plans
from fuseq.affine.operations import WEIGHTED, boundary
from fuseq.affine.price import CostModel
from fuseq.affine.prove import LIMIT, Certificate, FusedNode, residual
from fuseq.affine.refusal import Refusal, RefusedError
from fuseq.affine.region import Region, candidates, dominators, read
from fuseq.macs import macs
from fuseq.program import Program

PATIENCE = 12
"""Candidates in a row that cannot be, or do not pay, before larger regions are given up."""

_TELLING = frozenset(("batch_norm", "add", "sub", "mul", "div", "concat", "avg_pool"))


@dataclass(frozen=True)
class Outcome:
    """What fusing did.

    Attributes:
        certificates: one for each region that was replaced.
        refusals: what is left in the result, and why.
    """

    certificates: tuple[Certificate, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Candidate:
    """A region that one convolution can compute.

    Attributes:
        region: the operations.
        plan: the convolution.
        saving: price before minus price after.
        removed: number of operations fewer.
    """

    region: Region
    plan: Plan
    saving: float
    removed: int

    @property
    def pays(self) -> bool:
        """Whether to fuse: cheaper, or as cheap with fewer operations."""
        return self.saving > 0 or (self.saving == 0 and self.removed > 0)


def fuse(program: Program, cost: CostModel, *, captured_size_only: bool = False) -> Outcome:
    """Fuse affine regions of a program in place, until nothing is left to fuse.

    Args:
        program: edited.
        cost: what decides between regions.
        captured_size_only: also fuse what holds at the captured size alone.
    """
    certificates: list[Certificate] = []
    while True:
        outcome = _sweep(program, cost, captured_size_only)
        certificates += outcome.certificates
        program.clean()
        if not outcome.certificates:
            return Outcome(tuple(certificates), outcome.refusals)


def _sweep(program: Program, cost: CostModel, captured_size_only: bool) -> Outcome:
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    dominator = dominators(program.graph)
    certificates: list[Certificate] = []
    refusals: dict[tuple[str, str], Refusal] = {}
    gone: set[fx.Node] = set()
    for node in reversed(list(order)):
        if node in gone or node not in dominator or boundary(program, node):
            continue
        found, refused = _search(program, node, dominator, order, cost, captured_size_only)
        for candidate in found:
            result = _replace(program, candidate)
            if isinstance(result, Certificate):
                certificates.append(result)
                gone.update(candidate.region.nodes)
                break
            refused.append(result)
        for refusal in refused[:1]:
            refusals.setdefault((refusal.code, refusal.node), refusal)
    return Outcome(tuple(certificates), tuple(refusals.values()))


def _search(
    program: Program,
    exit: fx.Node,
    dominator: Mapping[fx.Node, fx.Node],
    order: Mapping[fx.Node, int],
    cost: CostModel,
    captured_size_only: bool,
) -> tuple[list[Candidate], list[Refusal]]:
    """Paying candidates that end at a node, best first, and what was refused, smallest first."""
    found: list[Candidate] = []
    refused: list[Refusal] = []
    misses = 0
    for region in candidates(program, exit, dominator, order):
        if isinstance(region, Refusal):
            if region.code != "nonlinear" or ops.name_of(program, exit) in _TELLING:
                refused.append(region)
            break
        if len(region.nodes) == 1 or not _weighted(program, region):
            continue
        candidate = _priced(program, region, cost, captured_size_only)
        if isinstance(candidate, Candidate) and candidate.pays:
            found.append(candidate)
            misses = 0
            continue
        if isinstance(candidate, Refusal):
            refused.append(candidate)
        elif candidate.saving < 0:
            refused.append(_too_dear(program, candidate))
        misses += 1
        if misses == PATIENCE:
            break
    found.sort(key=lambda c: (c.saving, c.removed), reverse=True)
    return found, refused


def _priced(
    program: Program, region: Region, cost: CostModel, captured_size_only: bool
) -> Candidate | Refusal:
    root = program.shape(region.root)
    form = read(program, region, None)
    if isinstance(form, Refusal) and captured_size_only and len(root) == 4:
        form = read(program, region, (root[2], root[3]))
    if isinstance(form, Refusal):
        return form
    names = {ops.name_of(program, node) for node in region.nodes}
    possible = plans(form, transpose="conv_transpose2d" in names)
    plan = min(possible, key=lambda p: cost.plan(p, root), default=None)
    if plan is None:
        error = RefusedError("layout", "the value is upsampled by different factors")
        return region.refused(program, region.exit, error)
    saving = cost.nodes(program, region.nodes) - cost.plan(plan, root)
    return Candidate(region, plan, saving, len(region.nodes) - plan.operations)


def _too_dear(program: Program, candidate: Candidate) -> Refusal:
    region = candidate.region
    before = sum(macs(program, node) for node in region.nodes)
    after = candidate.plan.macs(program.shape(region.root))
    error = RefusedError(
        "cost",
        f"one convolution would take {after / 1e6:.3g} MMAC instead of {before / 1e6:.3g}",
    )
    return region.refused(program, region.exit, error)


def _replace(program: Program, candidate: Candidate) -> Certificate | Refusal:
    """Prove a candidate, then put its convolution into the graph."""
    region, plan = candidate.region, candidate.plan
    layers = _weighted(program, region)
    fused = plan.build()
    error = residual(program, region, plan, fused)
    if not error <= LIMIT + 64 * plan.form.rounding:
        reason = f"the float64 check differs by {error:.2e} of the output"
        return region.refused(program, region.exit, RefusedError("proof", reason))
    macs_before = sum(macs(program, node) for node in region.nodes)
    nodes = tuple(
        FusedNode(node.name, ops.name_of(program, node), program.source(node))
        for node in region.nodes
    )
    parameters_before = sum(_parameters(program, node) for node in region.nodes)
    fused = fused.to(next(program.get(layers[0]).parameters()).dtype)
    name = _common_path([str(node.target) for node in layers])
    macs_after = plan.macs(program.shape(region.root))
    for node in region.nodes:
        if node.op == "call_module":
            program.module.delete_submodule(str(node.target))
    placed = plan.place(program, region.root, region.exit, name, fused)
    for node in reversed(region.nodes):
        program.graph.erase_node(node)
    return Certificate(
        module=str(placed.target),
        nodes=nodes,
        root=region.root.name,
        source=program.source(placed),
        rules=tuple(sorted(plan.form.rules)),
        residual=error,
        validity="{}x{} only".format(*plan.form.size) if plan.form.size else "all sizes",
        macs_before=macs_before,
        macs_after=macs_after,
        parameters_before=parameters_before,
        parameters_after=sum(p.numel() for p in fused.parameters()),
    )


def _weighted(program: Program, region: Region) -> list[fx.Node]:
    return [node for node in region.nodes if ops.name_of(program, node) in WEIGHTED]


def _parameters(program: Program, node: fx.Node) -> int:
    held = sum(p.numel() for p in program.get(node).parameters()) if node.op == "call_module" else 0
    constants = [program.constant(n) for n in node.all_input_nodes if n.op == "get_attr"]
    return held + sum(c.numel() for c in constants if isinstance(c, nn.Parameter))


def _common_path(paths: list[str]) -> str:
    """Innermost module that holds all paths: the path itself if there is one only."""
    parts = os.path.commonpath([path.replace(".", "/") for path in paths])
    return parts.replace("/", ".") or "fused"
