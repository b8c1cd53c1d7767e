"""`clear-dead-channels`: weights that make or meet nothing but zeros become zero.

A channel that is zero wherever the calibration data reach (a ReLU that never opens, an input plane
that is empty) hides weights of any size: training does not move them, and a batch norm with almost
no variance multiplies them by up to eps^(-1/2) (Sheng et al. 2018, "A Quantization-Friendly
Separable Convolution for MobileNets", section 3.1). They do nothing, yet their size decides the
scale of a weight: of a whole layer where it has one scale, and of each row that reads such a
channel. With

    dead input channel c of a layer:     W[:, c] <- 0
    dead output channel c, behind ReLU:  W[c] <- 0,  b[c] <- 0

every value stays what it was on the calibration data. On other data a dead channel may wake: it is
then silent in the new network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, fx

import fuseq
from fuseq import ops
from fuseq.channels import channel_ranges, scale_columns, scale_rows, used
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.requirements import batch_norms_folded, not_legalized


@dataclass(frozen=True)
class Cleared:
    """Dead channels of a layer.

    Attributes:
        layer: its name.
        inputs: input channels whose weights are zero now.
        outputs: output channels whose weights and bias are.
    """

    layer: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class ClearDeadChannels(fuseq.Pass):
    """Zero the weights of channels that are always zero on the data.

    Leaves a `Cleared` for each layer with dead channels.

    Attributes:
        calibration: batches of inputs, read once.
        progress: called with the number of batches seen.
    """

    name: ClassVar[str] = "clear-dead-channels"
    promise: ClassVar[fuseq.Promise] = fuseq.NewFunction("channels dead on the data stay silent")
    requires: ClassVar[tuple[fuseq.Predicate, ...]] = (batch_norms_folded, not_legalized)

    calibration: Iterable[Any] | None = field(default=None, repr=False)
    progress: Callable[[int], None] | None = field(default=None, repr=False)

    def run(self, program: Program) -> int:
        """Edit the weights; returns the number of layers that have dead channels.

        Raises:
            FuseqError: FQ202 without data, FQ006 for data that is empty or does not fit, FQ401 for
                a value that is not finite.
        """
        if self.calibration is None:
            raise FuseqError(
                "FQ202", "clear-dead-channels needs data", fix="--calib DIR, or calibration_data()"
            )
        layers = [node for node in program.graph.nodes if _has_channels(program, node)]
        ends = {node: (node.all_input_nodes[0], used(program, node)) for node in layers}
        watched = {value for pair in ends.values() for value in pair}
        ranges = channel_ranges(program, watched, self.calibration, self.progress)
        for node, (source, result) in ends.items():
            found = Cleared(node.name, _dead(ranges[source]), _dead(ranges[result]))
            if found.inputs or found.outputs:
                scale_columns(program.get(node), 0, (ranges[source] > 0).double())
                scale_rows(program.get(node), 0, (ranges[result] > 0).double())
                program.note(found)
        return len(program.notes)


def _dead(largest: Tensor) -> tuple[int, ...]:
    return tuple((largest == 0).nonzero().flatten().tolist())


def _has_channels(program: Program, node: fx.Node) -> bool:
    """Layers whose channels are dimension 1 of what they read and make."""
    dims = {"conv2d": 4, "linear": 2}.get(ops.name_of(program, node))
    return dims is not None and len(program.shape(node)) == dims
