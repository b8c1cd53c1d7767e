"""Writes in place, in a recording made by `torch.fx`.

fx records `x.relu_()` as a call that returns a value. That `x` itself changed, and with it every
view of the same memory, is not in the graph: whoever reads one of them later reads the old value.
A recording without such a read computes what the model computes.
"""

from __future__ import annotations

import inspect

from torch import fx

_VIEWS = frozenset(
    "view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose permute movedim "
    "moveaxis swapaxes swapdims t getitem narrow select split chunk unbind tensor_split expand "
    "expand_as broadcast_to contiguous to type type_as float double cpu detach requires_grad_ "
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout".split()
)
"""Calls whose result may share memory with their first operand."""

_WRITING_OPERATORS = frozenset("iadd isub imul itruediv ifloordiv imod ipow imatmul".split())


def stale_read(graph: fx.Graph) -> tuple[fx.Node, fx.Node] | None:
    """First write in place whose old value is read later.

    Returns:
        The write and the read, or None if there is no such pair.
    """
    order = {node: index for index, node in enumerate(graph.nodes)}
    for write in graph.nodes:
        if not _writes(write):
            continue
        for alias in _sharing_memory(write):
            late = [user for user in alias.users if order[user] > order[write]]
            if late:
                return write, min(late, key=order.__getitem__)
    return None


def _sharing_memory(write: fx.Node) -> set[fx.Node]:
    """Every value that may share memory with what `write` writes, but for what it returns."""
    found: set[fx.Node] = set()
    waiting = [write.args[0]]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, fx.Node) or node is write or node in found:
            continue
        found.add(node)
        if _shares(node):
            waiting.append(node.args[0])
        waiting += [user for user in node.users if _shares(user) and user.args[0] is node]
    return found


def _shares(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in ("data", "T", "mT")
    return _name(node) in _VIEWS or _writes(node)


def _writes(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or not node.args:
        return False
    name = _name(node)
    if name in _WRITING_OPERATORS or (name.endswith("_") and not name.endswith("__")):
        return name != "requires_grad_"
    if not inspect.isfunction(node.target):
        return False
    given = inspect.signature(node.target).bind_partial(*node.args, **node.kwargs).arguments
    return bool(given.get("inplace"))


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
