"""A pass in ten lines."""

from dataclasses import dataclass

import torch

import fuseq


@dataclass(frozen=True)
class DropUnitMul(fuseq.Pass):
    """Remove multiplications by a number close to one."""

    name = "drop-unit-mul"
    promise = fuseq.SameFunction()
    tolerance: float = 0.0

    def run(self, program: fuseq.Program) -> int:
        units = [
            node
            for node in program.graph.find_nodes(op="call_function", target=torch.mul)
            if isinstance(node.args[1], float) and abs(node.args[1] - 1) <= self.tolerance
        ]
        for node in units:
            node.replace_all_uses_with(node.args[0])
        return len(units)
