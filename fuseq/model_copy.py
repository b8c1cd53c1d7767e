"""The copy that is traced: both front ends corrupt the module they record.

A copy is in eval, holds no wrappers (`torch.compile`, data parallel) and no parametrizations, and
returns plain containers of tensors. In its *training form* some of its modules have
`training=True`: blocks that fuse themselves in `forward` when in eval show their branches there.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from fuseq.errors import FuseqError, first_line


def require_copyable(model: nn.Module) -> None:
    """Refuse modules that have no Python forward, no weights yet, or weights that are not finite.

    Raises:
        FuseqError: FQ101 or FQ103.
    """
    for path, module in model.named_modules():
        name = f"`{path}`" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise FuseqError(
                "FQ101",
                f"{name} is scripted: it has no Python forward to record",
                fix="pass the module that torch.jit.script or torch.jit.trace was given",
            )
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise FuseqError(
                "FQ101",
                f"{name} is a lazy {type(module).__name__}: it has no weights yet",
                fix="run the model once on an input, then load or train its weights",
            )
        if type(module).__module__.startswith("torch.ao.") and hasattr(module, "scale"):
            raise FuseqError(
                "FQ101",
                f"{name} is quantized already ({type(module).__name__})",
                fix="pass the float model: fuseq.quantize and fuseq.lower choose the integers",
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise FuseqError(
                "FQ101",
                f"`{name}` is on the meta device: it has no values",
                fix="load the weights: --weights FILE",
            )
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise FuseqError(
                "FQ103",
                f"{bad} of {tensor.numel()} values of `{name}` are not finite",
                where=f"parameter `{name}`",
                fix="load a checkpoint from before training diverged",
            )


def copied(model: nn.Module) -> nn.Module:
    """A deep copy in eval, without wrappers.

    Raises:
        FuseqError: FQ101 if something the model holds cannot be copied.
    """
    model = unwrapped(model)
    # Tensors that hooks computed (weight norm) or that a forward kept are copied by value.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in pytree.tree_leaves(vars(module))
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        result = copy.deepcopy(model, computed).eval()
    except Exception as error:
        raise FuseqError(
            "FQ101",
            f"the model cannot be copied: {first_line(error)}",
            why="recording changes a module, so a copy is recorded",
            fix="keep handles, locks and callbacks outside the module, or define __deepcopy__",
        ) from error
    for module in result.modules():
        vars(module).pop("_compiled_call_impl", None)  # of Module.compile()
        for name, child in module.named_children():
            setattr(module, name, unwrapped(child))
    return result


def traceable(
    model: nn.Module, in_training: Collection[type[nn.Module]], plain_outputs: bool
) -> nn.Module:
    """A copy to be recorded, without gradients.

    Args:
        model: any module; not edited.
        in_training: types of the modules that are put into training mode.
        plain_outputs: make `forward` return what `plain` gives.
    """
    result = copied(model)
    for module in list(result.modules()):
        if parametrize.is_parametrized(module):
            _fold_parametrizations(module)
    result.requires_grad_(False)
    for module in result.modules():
        module.training = type(module) in in_training
    if plain_outputs:
        _return_plain(result)
    return result


def plain(result: Any) -> Any:
    """Outputs as nested tuples, lists and dicts, without those that are None.

    Dataclasses and mappings of any type become dicts. A named tuple stays one where it is the whole
    result: generated code cannot spell one inside another.
    """
    parts = _plain(result)
    if isinstance(result, tuple) and hasattr(result, "_make") and len(parts) == len(result):
        return result._make(parts)
    return parts


def _plain(result: Any) -> Any:
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        fields = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
        return _plain(fields)
    if isinstance(result, Mapping):
        return {key: _plain(value) for key, value in result.items() if value is not None}
    if not isinstance(result, tuple | list):
        return result
    kept = [_plain(value) for value in result if value is not None]
    return kept if isinstance(result, list) else tuple(kept)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back what hooks and closures, which a copy shares, write into the model itself."""
    attributes = [vars(module) for module in model.modules()]
    values = [value for held in attributes for value in held.values()]
    held_dicts = [*attributes, *(v for v in values if isinstance(v, dict))]
    dicts = [(held, copy.copy(held)) for held in held_dicts]
    lists = [(v, copy.copy(v)) for v in values if isinstance(v, list)]
    try:
        yield
    finally:
        for held, kept in dicts:
            for name in held.keys() - kept.keys():
                del held[name]
            held.update(kept)
        for items, kept_items in lists:
            items[:] = kept_items


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def _fold_parametrizations(module: nn.Module) -> None:
    """Replace computed weights (weight norm, spectral norm) by their values.

    `parametrize.remove_parametrizations` edits the class, which the user's module shares.
    """
    folded = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = type(module).__bases__[0]
    del module.parametrizations
    for name, value in folded.items():
        module.register_parameter(name, nn.Parameter(value.detach()))


def _return_plain(module: nn.Module) -> None:
    own = type(module)

    @functools.wraps(own.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return plain(own.forward(self, *args, **kwargs))

    module.__class__ = type(own.__name__, (own,), {"forward": forward})
