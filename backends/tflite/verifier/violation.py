"""One broken rule of a TFLite file."""

from __future__ import annotations

from dataclasses import dataclass

from fuseq.backends.tflite.graph import Operator, Tensor


@dataclass(frozen=True)
class Violation:
    """What a file has and what its runtime needs.

    Attributes:
        operator: index of the operator in the order of execution, None for the file as a whole.
        code: of the operator, as the schema names it; empty for the file as a whole.
        tensor: name in the file.
        value: name of the program's value in that tensor, or the tensor's own.
        rule: which rule is broken.
        found: what the file has.
        needed: what the rule asks for.
    """

    operator: int | None
    code: str
    tensor: str
    value: str
    rule: str
    found: str
    needed: str

    def __str__(self) -> str:
        """`#4 TANH of 'gate': fixed grid: scale 0.1, needed scale 0.0078125`."""
        owner = "" if self.operator is None else f"#{self.operator} {self.code} of "
        return f"{owner}'{self.value}': {self.rule}: found {self.found}, needed {self.needed}"


def broken(
    operator: Operator, tensor: Tensor, rule: str, found: object, needed: object
) -> Violation:
    """A rule that an operator breaks at one of its tensors."""
    return Violation(
        operator.index,
        operator.code,
        tensor.name,
        tensor.value,
        rule,
        str(found),
        str(needed),
    )
