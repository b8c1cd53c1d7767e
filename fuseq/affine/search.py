"""The search for one exit: which of the regions that end there saves most.

Regions are looked at smallest first. Once one pays, larger ones are composed with its convolution,
so that each costs what it adds and not what it holds. After `PATIENCE` regions in a row that are
no better, larger ones are given up: some need several operations together (padding with a bias),
none known needs more. Where the ring rule fails, it fails for every earlier root too, unless that
root is padded by more than the windows behind it read, so such a region counts for several.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import fx, nn

from fuseq import ops
from fuseq.affine.emit import Plan, plans
from fuseq.affine.form import LinForm
from fuseq.affine.operations import WEIGHTED
from fuseq.affine.polyphase import Form
from fuseq.affine.price import CostModel
from fuseq.affine.reading import Given, Reading, after, exactly
from fuseq.affine.refusal import RefusedError
from fuseq.affine.region import Fault, Region, Regions
from fuseq.macs import macs
from fuseq.program import Program

PATIENCE = 12
"""Regions in a row that cannot be, or are no better, before larger ones are given up."""

RING = 4
"""How many of them a region counts for in which the ring rule fails."""

NORMS = ("batch_norm", "batch_norm1d")


class Missed(NamedTuple):
    """A region that stays as it is.

    Attributes:
        region: what could have been replaced.
        fault: why it is not.
    """

    region: Region
    fault: Fault


@dataclass(frozen=True)
class Candidate:
    """A region that one convolution can compute.

    Attributes:
        region: the operations.
        form: of the exit.
        plan: the convolution, and what is around it.
        saving: price before minus price after.
        removed: number of operations fewer.
        read: nodes whose forms the form was read from; a smaller candidate has the others.
        given: what those are relative to.
    """

    region: Region
    form: Form
    plan: Plan
    saving: float
    removed: int
    read: tuple[fx.Node, ...]
    given: Given

    @property
    def pays(self) -> bool:
        """Whether to fuse: cheaper, or as cheap with fewer operations."""
        return self.saving > 0 or (self.saving == 0 and self.removed > 0)

    def beats(self, other: Candidate | None) -> bool:
        """Whether to fuse this rather than another, or nothing."""
        if other is None:
            return self.pays
        return (self.saving, self.removed) > (other.saving, other.removed)


@dataclass(frozen=True)
class Search:
    """What the search looks at.

    Attributes:
        program: that holds the regions.
        regions: of its graph.
        reading: forms of its values.
        prices: of its nodes.
        cost: what decides between regions.
        captured_size_only: also take what holds at the captured size alone.
    """

    program: Program
    regions: Regions
    reading: Reading
    prices: Mapping[fx.Node, float]
    cost: CostModel
    captured_size_only: bool

    def best(self, exit: fx.Node) -> Candidate | Missed | None:
        """The region to replace that ends at a node, or the smallest that would have gained."""
        best: Candidate | None = None
        missed: Missed | None = None
        price, misses, known, names = 0.0, 0, 0, set[str]()
        for region in self.regions.ending_at(exit):
            leaks = region.fault is not None and region.fault.error.code == "leak"
            if region.fault and not leaks:
                return best or missed or self._stopped(region, region.fault)
            added = region.nodes[: len(region.nodes) - known]
            known = len(region.nodes)
            price += sum(self.prices[node] for node in added)
            names.update(ops.name_of(self.program, node) for node in added)
            replaceable = known > 1 and not names.isdisjoint(WEIGHTED) and _one_rank(region)
            found = self._candidate(region, names, price, best) if replaceable else None
            gains = isinstance(found, Candidate) and found.beats(best)
            if region.fault:
                leak = Missed(region, region.fault) if gains else None
                return best or missed or leak or self._stopped(region, region.fault)
            if isinstance(found, Candidate) and gains:
                best, misses = found, 0
            elif found:
                missed = missed or self._missed(region, found)
                ring = isinstance(found, Fault) and found.error.code == "ring"
                misses += RING if ring else 1
            if misses >= PATIENCE:
                break
        return best or missed

    def build(self, candidate: Candidate) -> nn.Module:
        """The layer of a candidate, with float64 weights."""
        self.reading.settle(candidate.read, candidate.given)
        return candidate.plan.build()

    def _stopped(self, region: Region, fault: Fault) -> Missed | None:
        """A region that ends at a batch norm with nothing to fold it into."""
        telling = ops.name_of(self.program, region.exit) in NORMS
        return Missed(region, fault) if telling else None

    def _candidate(
        self, region: Region, names: Collection[str], price: float, smaller: Candidate | None
    ) -> Candidate | Fault:
        """A region as one layer.

        Args:
            region: the operations.
            names: of the operations.
            price: of the operations.
            smaller: the best region so far, which the form is composed with if it is not finer
                than its root.
        """
        base = smaller if smaller and isinstance(smaller.form, LinForm) else None
        read = region.nodes[: len(region.nodes) - (len(base.region.nodes) if base else 0)]
        root, tokens = self.program.shape(region.root), "linear" in names
        givens = [Given(region.root, None, tokens)]
        if self.captured_size_only and len(root) == 4:
            givens.append(Given(region.root, (root[2], root[3]), tokens))
        for given in givens:
            form = self._form(region, read, given, base)
            if not isinstance(form, Fault):
                break
        if isinstance(form, Fault):
            return form
        possible = list(plans(form, transpose="conv_transpose2d" in names))
        fitting = [plan for plan in possible if plan.fits(root)]
        if not fitting:
            reason = "the value is upsampled by different factors"
            if possible:
                reason = "the rows or columns that are cropped are more than the map has"
            return Fault(region.exit, RefusedError("layout", reason))
        plan = min(fitting, key=lambda plan: self.cost.plan(plan, root))
        saving = price - self.cost.plan(plan, root)
        return Candidate(
            region, form, plan, saving, len(region.nodes) - plan.operations, read, given
        )

    def _form(
        self, region: Region, read: Sequence[fx.Node], given: Given, base: Candidate | None
    ) -> Form | Fault:
        form = self.reading.form(read, given, exact=base is None)
        if isinstance(form, Fault) or base is None:
            return form
        assert isinstance(base.form, LinForm)
        if base.given.tokens != given.tokens or (base.given.size and not given.size):
            return Fault(region.exit, RefusedError("layout", "regions of different layouts"))
        self.reading.settle(base.read, base.given)
        try:
            form = after(base.form, form)
            return exactly(form, self.program.shape(region.root), self.program.shape(region.exit))
        except RefusedError as error:
            return Fault(region.exit, error)

    def _missed(self, region: Region, found: Candidate | Fault) -> Missed | None:
        if isinstance(found, Fault):
            return Missed(region, found)
        if found.saving >= 0:
            return None
        before = sum(macs(self.program, node) for node in region.nodes)
        work = found.plan.macs(self.program.shape(region.root))
        error = RefusedError(
            "cost",
            f"one convolution would take {work / 1e6:,.2f} MMAC instead of {before / 1e6:,.2f}",
        )
        return Missed(region, Fault(region.exit, error))


def _one_rank(region: Region) -> bool:
    return len(region.root.meta.get("shape", ())) == len(region.exit.meta["shape"])
