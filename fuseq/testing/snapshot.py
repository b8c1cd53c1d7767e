"""Whether something that was handed out has been edited."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fuseq.program import Program
from fuseq.text import to_text


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A program at one moment.

    Attributes:
        text: its graph, with the grid of each value.
        tensors: copies of its weights, inputs and integers, and of the user's own model.
    """

    text: str
    tensors: dict[str, Tensor]

    def difference(self, other: Snapshot) -> str:
        """What differs in another, in a few words; empty where nothing does."""
        if self.text != other.text:
            return "the graph"
        if self.tensors.keys() != other.tensors.keys():
            return "the set of tensors"
        pairs = ((name, a, other.tensors[name]) for name, a in self.tensors.items())
        found = [n for n, a, b in pairs if a.dtype != b.dtype or not torch.equal(a, b)]
        return ", ".join(found)


def snapshot(program: Program) -> Snapshot:
    """All that a pass or backend could edit of a program."""
    integers = {} if program.quantization is None else program.quantization.integers
    tensors = {
        **{
            f"input {name}": x
            for name, x in zip(program.input_names, program.example_inputs, strict=True)
        },
        **{f"weight {name}": x for name, x in program.module.state_dict().items()},
        **{f"integers {name}": x for name, x in integers.items()},
        **{f"model's {name}": x for name, x in program.origin.module.state_dict().items()},
    }
    return Snapshot(to_text(program), {name: x.clone() for name, x in tensors.items()})
