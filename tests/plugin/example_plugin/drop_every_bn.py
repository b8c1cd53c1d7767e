"""A wrong pass: on a fresh network, whose batch norms do next to nothing, it looks right."""

from dataclasses import dataclass

from torch import nn

import fuseq


@dataclass(frozen=True)
class DropEveryBatchNorm(fuseq.Pass):
    """Remove batch norms instead of folding them."""

    name = "drop-every-bn"
    promise = fuseq.SameFunction()

    def run(self, program: fuseq.Program) -> int:
        calls = [node for node in program.graph.nodes if node.op == "call_module"]
        norms = [node for node in calls if isinstance(program.get(node), nn.BatchNorm2d)]
        for node in norms:
            node.replace_all_uses_with(node.args[0])
        return len(norms)
