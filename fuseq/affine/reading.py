"""The form of a value, given a root: each is worked out once, from the forms of its operands.

The convolution that a smaller region came to is an operation like any other. So a region grows by
composing what is new with what is there, and long sequences are never read again from the start:

    form(exit, given root) = form(exit, given middle) after form(middle, given root).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import fx

from fuseq.affine.form import LinForm
from fuseq.affine.kernel import group_start
from fuseq.affine.operations import form_of, operands
from fuseq.affine.polyphase import Form, PolyphaseForm
from fuseq.affine.refusal import RefusedError
from fuseq.affine.region import Fault
from fuseq.program import Program


class Given(NamedTuple):
    """What a form is relative to.

    Attributes:
        root: the value that is read.
        size: its height and width if the form need hold at that size only, else None.
        tokens: its channels are the last dimension.
    """

    root: fx.Node
    size: tuple[int, int] | None
    tokens: bool


class Reading:
    """Forms of values that were asked for."""

    def __init__(self, program: Program) -> None:
        """Start with nothing read.

        Args:
            program: that holds the values.
        """
        self.program = program
        self._forms: dict[fx.Node, dict[Given, Form | Fault]] = {}

    def form(self, nodes: Sequence[fx.Node], given: Given, *, exact: bool) -> Form | Fault:
        """Form of the last of some nodes, or why it has none.

        Args:
            nodes: of a region without boundaries, in graph order.
            given: its root.
            exact: refuse a form that is not its value everywhere.
        """
        value, root = nodes[-1], self.program.shape(given.root)
        channels = root[-1] if given.tokens else root[1]
        forms: dict[fx.Node, Form] = {
            given.root: LinForm.root(channels, given.size, tokens=given.tokens)
        }
        needed = {value}
        for node in reversed(nodes):
            if node in needed:
                needed.update(operands(node))
        for node in nodes:
            if node not in needed:
                continue
            known = self._forms.setdefault(node, {})
            if given not in known:
                known[given] = self._applied(node, forms)
            form = known[given]
            if isinstance(form, Fault):
                return form
            forms[node] = form
        try:
            return exactly(forms[value], root, self.program.shape(value)) if exact else forms[value]
        except RefusedError as error:
            return Fault(_culprit(forms, value, error), error)

    def settle(self, nodes: Sequence[fx.Node], given: Given) -> None:
        """Compute kernels in graph order, so that none waits for a long chain of others."""
        for node in nodes:
            form = self._forms.get(node, {}).get(given)
            if isinstance(form, PolyphaseForm):
                form = form.repeated or form.coarse
            if isinstance(form, LinForm):
                form.kernel()

    def forget(self, node: fx.Node) -> None:
        """Drop what is known of a value that no later region holds."""
        self._forms.pop(node, None)

    def _applied(self, node: fx.Node, forms: Mapping[fx.Node, Form]) -> Form | Fault:
        try:
            return form_of(self.program, node, forms)
        except RefusedError as error:
            return Fault(_culprit(forms, node, error), error)


def after(outer: LinForm, inner: Form) -> Form:
    """What a convolution makes of a value, as a form of that value's root.

    Args:
        outer: exact form of the result, given the value; its kernel is computed.
        inner: form of the value.

    Raises:
        RefusedError: as `LinForm.convolved`.
    """
    groups = outer.groups()
    first = group_start(outer.in_channels, outer.channels, groups)
    weight = outer.dense(first, outer.in_channels // groups)
    form = inner.convolved(weight, outer.bias, groups, outer.axes)
    if isinstance(form, PolyphaseForm):
        return replace(form, coarse=_resting_on(form.coarse, outer))
    return _resting_on(form, outer)


def exactly(form: Form, root: tuple[int, ...], shape: tuple[int, ...]) -> Form:
    """A form, if it is its value everywhere.

    Args:
        form: of the value.
        root: shape of the root.
        shape: of the value; broadcasting can change it in ways no form has.

    Raises:
        RefusedError: ring, border-bias, layout.
    """
    form.require_exact()
    if form.shape(root) != shape:
        raise RefusedError("layout", f"an operand is repeated to shape {shape}")
    return form


def _resting_on(form: LinForm, outer: LinForm) -> LinForm:
    rounding = max(form.rounding, outer.rounding)
    return replace(form, rules=form.rules | outer.rules, rounding=rounding)


def _culprit(forms: Mapping[fx.Node, Form], node: fx.Node, error: RefusedError) -> fx.Node:
    """The node that made a margin which was never cropped, else the node that refuses."""
    for earlier, form in forms.items():
        margin = (form.coarse if isinstance(form, PolyphaseForm) else form).margin
        if margin and margin.error is error:
            return earlier
    return node
