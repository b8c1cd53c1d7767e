"""Why two operations stay apart: a code for programs, a sentence and a way out for people."""

from __future__ import annotations

from dataclasses import dataclass

CODES = {
    "nonlinear": "an operation in between is not affine, or not known to be",
    "ring": "a padded intermediate value would have read the input in its padding",
    "border-bias": "a bias is not the value that surrounds the map, so borders differ",
    "pad-mode": "padding with anything but a constant",
    "ceil-mode": "windows that hang over the border",
    "count-include-pad": "an average whose divisor changes at borders",
    "stride-mismatch": "branches with different strides meet",
    "size-mismatch": "branches agree in size only for some input sizes",
    "layout": "operands that are not one map of channels, height and width",
    "leak": "a value inside is read from outside",
    "cost": "one convolution would cost more than the operations it replaces",
    "siblings": "convolutions of one gate that no single convolution computes",
    "proof": "the float64 check of the fused convolution failed",
}

FIXES = {
    "nonlinear": "move the norm or scale next to a convolution, on the same side of the activation",
    "ring": "pad the input once instead of the intermediate value",
    "border-bias": "pad before the bias is added, or pad with the bias",
    "pad-mode": "pad with zeros",
    "ceil-mode": "use ceil_mode=False",
    "count-include-pad": "use count_include_pad=True, or no padding",
    "stride-mismatch": "give the branches one stride",
    "size-mismatch": "pad and crop the branches alike",
    "layout": "keep values as maps of (batch, channels, height, width)",
    "siblings": "give both convolutions one stride, dilation and group count, on one input",
    "leak": "read the value after it instead, or compute it once for each reader",
    "cost": "nothing to mend: apart they are cheaper; element_cost and operation_cost weigh more",
    "proof": "report it: the algebra and the float64 check must agree on finite weights",
}
"""What would make a rule hold, where a reason has no better way out."""


class RefusedError(Exception):
    """A rule of the algebra does not hold.

    Attributes:
        code: a key of `CODES`.
        reason: one sentence, with the numbers.
        fix: what would make it hold; by default that of the code.
    """

    def __init__(self, code: str, reason: str, fix: str = "") -> None:
        assert code in CODES, code
        super().__init__(f"{code}: {reason}")
        self.code, self.reason, self.fix = code, reason, fix or FIXES[code]


@dataclass(frozen=True)
class Refusal:
    """A region that was left as it is.

    Attributes:
        code: a key of `CODES`.
        node: name of the node where the rule fails.
        source: `file:line` of that node, or the empty string.
        root: name of the value the region would have started from.
        exit: name of the value the region would have computed.
        reason: one sentence, with the numbers.
        fix: what would make the region fusable.
    """

    code: str
    node: str
    source: str
    root: str
    exit: str
    reason: str
    fix: str

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return f"`{self.node}`{place}: {self.code}: {self.reason}; {self.fix}"
