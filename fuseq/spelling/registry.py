"""The table of spelling rules, and how one enters it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fuseq.build import Rule

RULES: dict[Any, Rule] = {}
"""Call target (function, aten overload, or method name) -> rule."""


def spelled(*targets: Any) -> Callable[[Rule], Rule]:
    """Register a rule for call targets: functions, aten overloads, or method names.

    Raises:
        ValueError: if a target has a rule already.
    """

    def register(rule: Rule) -> Rule:
        # A function has several names: torch.relu_ and F.relu_ are one object.
        for target in dict.fromkeys(targets):
            if target in RULES:
                raise ValueError(f"{target} has two spelling rules")
            RULES[target] = rule
        return rule

    return register


def pair(value: Any) -> tuple[Any, Any]:
    """A height and a width, from one number for both or from two."""
    items = tuple(value) if isinstance(value, Sequence) else (value,)
    return (items[0], items[0]) if len(items) == 1 else (items[0], items[1])


def sequence(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes or dimensions, given as `f(2, 3)` or as `f((2, 3))`."""
    if len(values) == 1 and isinstance(values[0], Sequence):
        return tuple(values[0])
    return values
