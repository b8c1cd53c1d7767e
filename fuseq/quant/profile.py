"""`Profile`: what a target does with integers, as data. Nothing else in the code knows targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fuseq.errors import FuseqError


@dataclass(frozen=True)
class Profile:
    """Rules of one target.

    Attributes:
        name: of the backend it belongs to.
        arithmetic: rounding of its kernels, a key of `fuseq.quant.arithmetic.ARITHMETICS`.
        activation: dtype of activations where nothing else is asked for.
        wide: dtype of 16 bits that activations may have instead; empty for a target without one.
        symmetric: dtypes whose grids have zero point 0: of int16 in many runtimes.
        one_dtype: whether operands and result of an op must have the same dtype; operands of
            another one are then requantized.
        integer: ops with an integer kernel and a free output grid.
        float_inside: ops that take and give integers but compute in float between them (a lookup
            table, or dequantize -> op -> quantize).
        same_grid: ops whose output has its input's grid: they move or select values, or average
            them in a kernel that keeps the scale.
        tied_inputs: ops whose inputs must be on the output's grid; `legalize` puts a requantize on
            each input edge, so that a value with other users keeps its own grid.
        absorbed: activation -> producers that compute it on their accumulator; the value between
            has no grid. Of a requantize: producers that write onto the grid behind it, where an
            absorbed activation between cuts by itself; it must be among them too.
        fixed: op -> dtype -> (scale, zero point) its output must have on a grid of that dtype.
        decompose: ops that `legalize` spells with others before quantization; of an instance norm
            that the target computes too, the weight and bias only.
        per_channel: whether weights have one scale per output channel.
        per_channel_groups: whether a transposed convolution with groups may have such scales too.
        channel_block: output channels that its integer convolutions compute at a time;
            `fuse-gates` merges two convolutions that leave part of a block empty, or whose concat
            then disappears. 0 for a target where that never pays.
    """

    name: str
    arithmetic: str
    activation: str = "uint8"
    wide: str = ""
    symmetric: frozenset[str] = frozenset()
    one_dtype: bool = False
    integer: frozenset[str] = frozenset()
    float_inside: frozenset[str] = frozenset()
    same_grid: frozenset[str] = frozenset()
    tied_inputs: frozenset[str] = frozenset()
    absorbed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fixed: Mapping[str, Mapping[str, tuple[float, int]]] = field(default_factory=dict)
    decompose: frozenset[str] = frozenset()
    per_channel: bool = True
    per_channel_groups: bool = True
    channel_block: int = 0

    def __post_init__(self) -> None:
        """Refuse rules that contradict each other."""
        known = [name for name in self.absorbed if name != "requantize"]
        loose = [name for name in known if not self.computes(name)]
        if loose:
            raise ValueError(
                f"profile '{self.name}': absorbed {', '.join(loose)} must be in integer or "
                "float_inside too, for where nothing absorbs them"
            )

    def with_choices(
        self, activation: str | None = None, per_channel: bool | None = None
    ) -> Profile:
        """The rules with a user's choices, of those the target has.

        Args:
            activation: dtype of activations, `activation` or `wide`; None to leave it.
            per_channel: whether weights have one scale per output channel; None to leave it.

        Raises:
            FuseqError: FQ012 for what the target does not have.
        """
        has = [dtype for dtype in (self.activation, self.wide) if dtype]
        if activation is not None and activation not in has:
            raise FuseqError(
                "FQ012",
                f"target '{self.name}' has no activations of {activation}",
                fix=f"activation={' or activation='.join(has)}",
            )
        if per_channel and not self.per_channel:
            raise FuseqError(
                "FQ012",
                f"target '{self.name}' has one scale for each weight, not one for each channel",
                fix="per_channel=false",
            )
        return replace(
            self,
            activation=activation or self.activation,
            per_channel=self.per_channel if per_channel is None else per_channel,
        )

    def computes(self, op: str) -> bool:
        """Whether an op takes and gives integers."""
        return op in self.integer or op in self.float_inside or op in self.tied_inputs
