"""Calibration data by name: images, arrays, a function of the user's, or explicitly random."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fuseq.errors import FuseqError, first_line
from fuseq.target import Target
from fuseq.user_code import load_function, missing, user_code

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_ENDED = object()


@dataclass(frozen=True)
class CalibrationSource:
    """Where batches of model inputs come from; each iteration starts over.

    Attributes:
        origin: where they come from and how images become tensors; file names without their
            directories, since bundles record it and must not depend on where they are made.
        batches: gives the batches anew at each call.
        limit: largest number of batches used.
        synthetic: not real data: whatever is made with it says so.
        count: number of batches, where it is known without reading them.
    """

    origin: str
    batches: Callable[[], Iterable[Any]]
    limit: int
    synthetic: bool = False
    count: int | None = None

    def __iter__(self) -> Iterator[Any]:
        """At most `limit` batches.

        Raises:
            FuseqError: FQ003 if the user's code raises on the way.
        """
        with user_code(f"reading calibration data from {self.origin}"):
            batches = iter(self.batches())
        for _ in range(self.limit):
            with user_code(f"reading calibration data from {self.origin}"):
                batch = next(batches, _ENDED)
            if batch is _ENDED:
                return
            yield batch


def load_calibration(source: str | None, target: Target, limit: int = 128) -> CalibrationSource:
    """Calibration data for a target.

    Args:
        source: a directory of images, a `.npz` file, `file.py[:function]`, `random`, or None for
            the target's own `calibration_data()`.
        target: gives input shapes, `calibration_data()` and `preprocess(image)`.
        limit: largest number of batches to use.

    Raises:
        FuseqError: FQ006 if there is none, nothing in it, or it cannot be read; FQ001 to FQ003 for
            `file.py`.
    """
    found = _open(source, target, limit)
    if next(iter(found), _ENDED) is _ENDED:
        raise FuseqError(
            "FQ006",
            f"the calibration set {found.origin} is empty",
            fix="give at least one batch, better a hundred: --calib DIR",
        )
    return found


def _open(source: str | None, target: Target, limit: int) -> CalibrationSource:
    if source is None:
        own = target.function("calibration_data")
        if own is None:
            raise missing(
                "FQ006",
                f"'{target.name}' has no calibration data",
                "--calib DIR of images, --calib FILE.npz, or --calib random for a trial",
                "calibration_data",
            )
        file = Path(target.name.partition(":")[0]).name
        return CalibrationSource(f"{file}:calibration_data", own, limit)
    if source == "random":
        return CalibrationSource("random", lambda: _random(target), limit, True, limit)
    path = Path(source)
    if os.path.isdir(path):
        return _folder(path, target, limit)
    if path.suffix == ".npz":
        return _arrays(path, target, limit)
    if ".py" in source:
        _, function = load_function(source, "calibration_data")
        return CalibrationSource(path.name, function, limit)
    raise FuseqError(
        "FQ006",
        f"no calibration data at '{source}'",
        fix="a directory of images, a .npz file, file.py:function, or random",
    )


def _random(target: Target) -> Iterator[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield tuple(torch.rand(x.shape, generator=generator) for x in target.example_inputs)


def _folder(path: Path, target: Target, limit: int) -> CalibrationSource:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
    preprocess = target.function("preprocess")
    channels = target.example_inputs[0].shape[1] if target.example_inputs[0].dim() == 4 else 3
    mode = "L" if channels == 1 else "RGB"

    def read(file: Path) -> Tensor:
        if preprocess is None:
            planes = torch.from_numpy(read_image(file, mode))
        else:
            planes = torch.as_tensor(preprocess(_opened(file)))
        return planes if planes.dim() == 4 else planes[None]

    how = "preprocess()" if preprocess else f"{mode}/255, planes, unscaled"
    return CalibrationSource(
        f"{path.resolve().name} ({how})",
        lambda: map(read, files),
        limit,
        count=min(limit, len(files)),
    )


def _opened(file: Path) -> Image:
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
    except OSError as error:
        raise FuseqError(
            "FQ006",
            f"cannot read the image '{file}'",
            why=str(error),
            fix="remove or replace it",
        ) from error
    return image


def read_image(file: Path, mode: str) -> NDArray[np.float32]:
    """Planes of an image file: channels, height and width, in 0..1.

    Args:
        file: in a format that Pillow reads.
        mode: "RGB" or "L" (grey).

    Raises:
        FuseqError: FQ006 if it cannot be read.
    """
    pixels = np.atleast_3d(np.asarray(_opened(file).convert(mode), dtype=np.float32))
    return (pixels / np.float32(255)).transpose(2, 0, 1).copy()


def read_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Float arrays of a `.npz` file by name, in its order.

    Raises:
        FuseqError: FQ006 if it cannot be read or holds something else.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # of zip, of headers, of pickles: numpy has no one error for them
        raise FuseqError(
            "FQ006",
            f"cannot read '{path}'",
            why=first_line(error),
            fix="write it with np.savez",
        ) from error
    for name, array in arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            raise FuseqError(
                "FQ006",
                f"'{name}' in '{path}' is {array.dtype}, not float",
                fix="store what the model takes: preprocessed float32 arrays",
            )
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def _arrays(path: Path, target: Target, limit: int) -> CalibrationSource:
    arrays, count = read_arrays(path), len(target.example_inputs)
    lengths = {len(array) if array.ndim else 0 for array in arrays.values()}
    if len(arrays) != count or len(lengths) != 1:
        held = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise FuseqError(
            "FQ006",
            f"'{path}' does not hold one array for each of {count} inputs, with equal lengths",
            why=f"it holds {held or 'nothing'}",
            fix="np.savez(FILE, x=array), its first axis counting the samples",
        )
    tensors = [torch.from_numpy(array) for array in arrays.values()]
    return CalibrationSource(
        path.name,
        lambda: zip(*(torch.split(t, 1) for t in tensors), strict=True),
        limit,
        count=min(limit, len(tensors[0])),
    )
