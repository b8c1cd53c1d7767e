"""How images lie in a QDQ file: channels first as in the program, or last, as its metadata says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Dimensions of an image that becomes channels last, and of one that becomes channels first."""

FORMAT = "fuseq.format"
"""Metadata key of every file written here; one without `LAYOUT` has its images channels first."""

LAYOUT = "fuseq.layout"
"""Metadata key of a file whose images lie channels last."""


@dataclass(frozen=True)
class Layout:
    """Between arrays as the program has them and as a file has them.

    Attributes:
        channels_last: whether images, which are arrays of four dimensions, lie so in the file.
    """

    channels_last: bool

    @staticmethod
    def said_by(metadata: Mapping[str, str]) -> Layout:
        """The layout of a file with this metadata."""
        return Layout(metadata.get(LAYOUT) == "nhwc")

    def inward(self, x: np.ndarray) -> np.ndarray:
        """An array for the file."""
        return x.transpose(LAST) if self.channels_last and x.ndim == 4 else x

    def outward(self, y: np.ndarray) -> np.ndarray:
        """An array from the file."""
        return y.transpose(FIRST) if self.channels_last and y.ndim == 4 else y

    def shape(self, sizes: Sequence[int | None]) -> tuple[int | None, ...]:
        """Shape in the program of an array that the file says has these sizes."""
        turned = self.channels_last and len(sizes) == 4
        return tuple(sizes[d] for d in FIRST) if turned else tuple(sizes)
