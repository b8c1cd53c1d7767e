"""A fault: one thing wrong in a file, and the nodes that may be blamed for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fuseq.program import Program

Edit = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Fault:
    """One fault that can be planted in one file.

    Attributes:
        kind: what is wrong, in a few words.
        place: where, for people.
        blamed: names of the program's nodes, one of which a check must name first.
        plant: bytes of a good file -> bytes of a wrong one.
    """

    kind: str
    place: str
    blamed: frozenset[str]
    plant: Callable[[bytes], bytes]


def with_layers(values: frozenset[str], program: Program) -> frozenset[str]:
    """Values, with the layers that compute them: a layer whose activation the target absorbs has
    no value of its own, and is rightly named for a wrong weight."""
    table = program.quantization
    names = dict(zip(program.output_names, program.outputs(), strict=True))
    found = {names[value].name if value in names else value for value in values} | values
    absorbed = table.absorbed if table else {}
    return frozenset(found | {layer for layer, value in absorbed.items() if value in found})


def one_step_more(scale: np.ndarray) -> np.ndarray:
    """Each scale in its last bit."""
    return np.nextafter(scale, np.float32(np.inf), dtype=np.float32)


def next_channel(array: np.ndarray) -> np.ndarray:
    """What belongs to a channel at the channel after it."""
    return np.roll(array, 1, 0)


def _first(change: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Change one element: the one of largest magnitude, which is no padding."""

    def edit(array: np.ndarray) -> np.ndarray:
        flat = array.reshape(-1).copy()
        at = int(np.argmax(np.abs(flat.astype(np.float64))))
        flat[at] = change(flat[at])
        return flat.reshape(array.shape)

    return edit


WEIGHT_EDITS: dict[str, Edit] = {
    "weight: one off by one": _first(lambda w: w - np.sign(w)),
    "weight: one with another sign": _first(lambda w: -w),
    "weight: one is zero": _first(lambda w: w * 0),
    "weight: channels moved by one": next_channel,
    "weight: all with another sign": lambda w: -w,
    "weight: bytes in another order": lambda w: np.ascontiguousarray(w.reshape(-1)[::-1]).reshape(
        w.shape
    ),
}
BIAS_EDITS: dict[str, Edit] = {
    "bias: one off by one": _first(lambda b: b - np.sign(b)),
    "bias: channels moved by one": next_channel,
    "bias: absent": lambda b: b * 0,
    "bias: another sign": lambda b: -b,
}
FINE = ("weight: one off by one", "bias: one off by one")
"""What is a fault of integers only."""

SCALE_EDITS: dict[str, Edit] = {
    "scale: last bit": one_step_more,
    "scale: a thousandth": lambda s: s * np.float32(1.001),
    "scale: twice": lambda s: s * np.float32(2),
}
CHANNEL_SCALE_EDITS: dict[str, Edit] = {
    **SCALE_EDITS,
    "scale: channels moved by one": next_channel,
}


def window_edits(height_axis: int, width_axis: int, mirrored: bool = True) -> dict[str, Edit]:
    """Faults of a kernel's window, whose axes are given."""
    edits: dict[str, Edit] = {
        "axes: height and width exchanged": lambda w: np.ascontiguousarray(
            w.swapaxes(height_axis, width_axis)
        )
    }
    if mirrored:
        edits["axes: window upside down"] = lambda w: np.ascontiguousarray(np.flip(w, height_axis))
        edits["axes: window mirrored"] = lambda w: np.ascontiguousarray(np.flip(w, width_axis))
    return edits


def changes(edit: Edit, array: np.ndarray) -> bool:
    """Whether an edit fits an array and changes it."""
    edited = edit(array)
    return edited.shape == array.shape and not np.array_equal(edited, array)


def spread(faults: Sequence[Fault], count: int, seed: int) -> list[Fault]:
    """So many faults, of all kinds about equally often, drawn without repetition."""
    random = np.random.default_rng(seed)
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    for group in by_kind.values():
        random.shuffle(group)
    found: list[Fault] = []
    while len(found) < count and any(by_kind.values()):
        for group in by_kind.values():
            if group and len(found) < count:
                found.append(group.pop())
    return found
