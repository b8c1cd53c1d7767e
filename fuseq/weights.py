"""Weights from a file, read as data: safetensors, or a `.pt` that holds nothing but tensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fuseq.errors import FuseqError, first_line

_SHOWN = 8


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a file into a model; every key must match.

    Args:
        model: is edited.
        file: a state dict, alone or under the key `state_dict`; one prefix before all keys
            (`module.`, `model.`), which training wrappers add, is dropped if that makes them match.

    Raises:
        FuseqError: FQ004 if the file cannot be read, or for missing, unexpected or misshapen keys.
    """
    wanted = model.state_dict()
    held = _without_wrapper(_read(file), wanted)
    faults = {
        "missing": [key for key in wanted if key not in held],
        "unexpected": [key for key in held if key not in wanted],
        "of another shape": [
            f"{key} ({_shape(held[key])}, the model has {_shape(wanted[key])})"
            for key in wanted
            if key in held and held[key].shape != wanted[key].shape
        ],
    }
    if any(faults.values()):
        found = {kind: keys for kind, keys in faults.items() if keys}
        raise FuseqError(
            "FQ004",
            f"'{file}' does not match the model: "
            + ", ".join(f"{len(keys)} keys {kind}" for kind, keys in found.items()),
            why="; ".join(
                f"{kind}: {', '.join(keys[:_SHOWN])}" + (", ..." if len(keys) > _SHOWN else "")
                for kind, keys in found.items()
            ),
            fix="build the model that these weights were saved from: --arg name=value",
        )
    try:
        model.load_state_dict(held)
    except RuntimeError as error:
        raise FuseqError(
            "FQ004",
            f"the values in '{file}' cannot be copied into the model",
            why=str(error).strip().splitlines()[-1].strip(),
            fix="save dense tensors of numbers: model.state_dict() on the CPU",
        ) from error


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _read(file: Path) -> dict[str, Tensor]:
    if not os.path.isfile(file):
        raise FuseqError("FQ004", f"no weights file '{file}'", fix=f"ls {file.parent}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise FuseqError(
            "FQ004",
            f"cannot read the weights '{file}'",
            why=first_line(error),
            fix="save tensors only: safetensors.torch.save_file(model.state_dict(), FILE)",
        ) from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(x, Tensor) for key, x in content.items()
    ):
        raise FuseqError(
            "FQ004",
            f"'{file}' holds no state dict",
            fix="torch.save(model.state_dict(), FILE), or a dict with it under 'state_dict'",
        )
    return content


def _without_wrapper(held: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = next(iter(held), "").partition(".")[0] + "."
    if held.keys() & wanted.keys() or not all(key.startswith(prefix) for key in held):
        return held
    stripped = {key.removeprefix(prefix): tensor for key, tensor in held.items()}
    return stripped if stripped.keys() & wanted.keys() else held
