"""Replace every region that one convolution computes, and more cheaply.

Nodes are visited from the output backwards. Each affine node that is still there is the exit of
candidate regions; the one that saves most is replaced. If none saves anything, the visit goes on
to its operands, so smaller fusions still happen. Replacing a region changes nothing upstream, so
what is known of regions and forms serves a whole sweep. Sweeps repeat until one finds nothing.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass

from torch import fx

from fuseq import ops
from fuseq.affine.absorb import absorb
from fuseq.affine.operations import WEIGHTED
from fuseq.affine.prepare import merge_equal, read_sizes_early
from fuseq.affine.price import CostModel
from fuseq.affine.prove import ANYWHERE, LIMIT, Certificate, certified, residual
from fuseq.affine.reading import Reading
from fuseq.affine.refusal import Refusal, RefusedError
from fuseq.affine.region import Fault, Regions
from fuseq.affine.remaining import explained
from fuseq.affine.search import Candidate, Missed, Search
from fuseq.program import Program


@dataclass(frozen=True)
class Outcome:
    """What fusing did.

    Attributes:
        certificates: one for each region that was replaced.
        refusals: what is left in the result, and why.
    """

    certificates: tuple[Certificate, ...]
    refusals: tuple[Refusal, ...]


def fuse(program: Program, cost: CostModel, *, captured_size_only: bool = False) -> Outcome:
    """Fuse affine regions of a program in place, until nothing is left to fuse.

    Args:
        program: edited.
        cost: what decides between regions.
        captured_size_only: also fuse what holds at the captured size alone.
    """
    certificates: dict[str, Certificate] = {}
    while True:
        merge_equal(program)
        read_sizes_early(program)
        replaced, missed = _sweep(program, cost, captured_size_only, certificates)
        if not replaced:
            replaced = absorb(program, certificates)
        program.clean()
        if not replaced:
            paths = [str(node.target) for node in program.graph.nodes if node.op == "call_module"]
            left = (certificates[path] for path in paths if path in certificates)
            return Outcome(tuple(left), explained(program, missed))


def _sweep(
    program: Program,
    cost: CostModel,
    captured_size_only: bool,
    certificates: dict[str, Certificate],
) -> tuple[int, list[Missed]]:
    """Replace what pays, note its certificates by module, and say what was not replaced."""
    regions, reading = Regions(program), Reading(program)
    exits = regions.exits()
    prices = cost.nodes(program, reversed(exits))
    search = Search(program, regions, reading, prices, cost, captured_size_only)
    missed: list[Missed] = []
    gone: set[fx.Node] = set()
    for node in exits:
        found = None if node in gone else search.best(node)
        if isinstance(found, Candidate):
            found = _replace(program, search, found, certificates) or found
        if isinstance(found, Candidate):
            gone.update(found.region.nodes)
        elif found:
            missed.append(found)
        reading.forget(node)
    return len(gone), missed


def _replace(
    program: Program, search: Search, candidate: Candidate, certificates: dict[str, Certificate]
) -> Missed | None:
    """Prove a candidate, put its convolution into the graph and note its certificate."""
    region, plan = candidate.region, candidate.plan
    fused = search.build(candidate)
    error = residual(program, region, plan, fused)
    if not error <= LIMIT + 64 * plan.form.rounding:
        reason = f"the float64 check differs by {error:.2e} of the output"
        return Missed(region, Fault(region.exit, RefusedError("proof", reason)))
    parts = [certified(program, node, certificates) for node in region.nodes]
    layers = [node for node in region.nodes if ops.name_of(program, node) in WEIGHTED]
    fused = fused.to(next(program.get(layers[0]).parameters()).dtype)
    name = _common_path([str(node.target) for node in layers])
    root = program.shape(region.root)
    for node in region.nodes:
        if node.op == "call_module":
            certificates.pop(str(node.target), None)
            program.module.delete_submodule(str(node.target))
    placed = plan.place(program, region.root, region.exit, name, fused)
    for node in reversed(region.nodes):
        _erase(program, node)
    anywhere = plan.form.size is None and all(part.validity == ANYWHERE for part in parts)
    certificates[str(placed.target)] = Certificate(
        module=str(placed.target),
        op=ops.name_of(program, placed),
        nodes=tuple(node for part in parts for node in part.nodes),
        root=region.root.name,
        source=program.source(placed),
        rules=tuple(sorted(plan.form.rules.union(*(part.rules for part in parts)))),
        residual=max(error, *(part.residual for part in parts)),
        validity=ANYWHERE if anywhere else f"{root[2]}x{root[3]} only",
        macs_before=sum(part.macs_before for part in parts),
        macs_after=plan.macs(root),
        parameters_before=sum(part.parameters_before for part in parts),
        parameters_after=sum(p.numel() for p in fused.parameters()),
    )
    return None


def _erase(program: Program, node: fx.Node) -> None:
    """Erase a node; what still reads its size serves no one any more."""
    for user in list(node.users):
        _erase(program, user)
    program.graph.erase_node(node)


def _common_path(paths: list[str]) -> str:
    """Innermost module that holds all paths: the path itself if there is one only."""
    parts = os.path.commonpath([path.replace(".", "/") for path in paths])
    return parts.replace("/", ".") or "fused"
