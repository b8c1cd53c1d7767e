"""`fuse-affine`: every affine region that pays becomes one convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fuseq.affine.fuse import fuse
from fuseq.affine.price import CostModel
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.rewrite import Pass, Promise, SameFunction


@dataclass(frozen=True)
class FuseAffine(Pass):
    """Collapse branches, batch norms, scales and linear sequences into single convolutions.

    Leaves a `Certificate` for each fused region, and a `Refusal` for what could not be fused.

    Attributes:
        element_cost: price of reading or writing one activation, in MACs.
        operation_cost: price of one more operation, in MACs.
        sizes: "all" fuses what holds for every input size; "captured" also what holds at the
            captured size alone.
    """

    name: ClassVar[str] = "fuse-affine"
    promise: ClassVar[Promise] = SameFunction()

    element_cost: float = CostModel.element
    operation_cost: float = CostModel.operation
    sizes: str = "all"

    def run(self, program: Program) -> int:
        """Fuse in place; returns the number of regions that became one convolution.

        Raises:
            FuseqError: FQ012 for an unknown value of `sizes`.
        """
        if self.sizes not in ("all", "captured"):
            raise FuseqError(
                "FQ012",
                f"option sizes={self.sizes!r} of pass '{self.name}'",
                fix="use sizes=all or sizes=captured",
            )
        cost = CostModel(self.element_cost, self.operation_cost)
        outcome = fuse(program, cost, captured_size_only=self.sizes == "captured")
        for detail in (*outcome.certificates, *outcome.refusals):
            program.note(detail)
        return len(outcome.certificates)
