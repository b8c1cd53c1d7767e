"""Passes, backends and runners by name, found through entry points.

Ours and anybody's come through the same door: a distribution names a class under the entry-point
group `fuseq.passes`, `fuseq.backends` or `fuseq.runners`. Listing imports nothing; this module
imports no torch.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from fuseq.errors import FuseqError

Kind = Literal["passes", "backends", "runners"]
_ONE: dict[Kind, str] = {"passes": "pass", "backends": "backend", "runners": "runner"}


@dataclass(frozen=True)
class Plugin:
    """One registered class, not imported yet.

    Attributes:
        kind: what it is.
        name: as commands and pipelines spell it.
        value: `package.module:Class`.
        distribution: the installed package that registers it.
        version: of that package.
        extras: of that package, whose requirements the class needs.
        missing: those of their requirements that are not installed.
    """

    kind: Kind
    name: str
    value: str
    distribution: str
    version: str
    extras: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def fix(self) -> str:
        """How to install what is missing."""
        return f"pip install '{self.distribution}[{','.join(self.extras)}]'"

    def load(self) -> Any:
        """Import the class.

        Raises:
            FuseqError: FQ502 if a requirement is not installed, FQ011 if the import fails or gives
                something else.
        """
        if self.missing:
            raise FuseqError(
                "FQ502",
                f"{_ONE[self.kind]} '{self.name}' needs {', '.join(self.missing)}",
                fix=self.fix,
            )
        entry = importlib.metadata.EntryPoint(self.name, self.value, f"fuseq.{self.kind}")
        try:
            loaded = entry.load()
        except Exception as error:
            raise self._broken(f"{type(error).__name__}: {error}") from error
        if not isinstance(loaded, type) or getattr(loaded, "name", None) != self.name:
            raise self._broken(f"it is not a class whose `name` is '{self.name}'")
        return loaded

    def _broken(self, why: str) -> FuseqError:
        return FuseqError(
            "FQ011",
            f"{_ONE[self.kind]} '{self.name}' cannot be loaded",
            where=f"{self.value}, registered by {self.distribution} {self.version}",
            why=why,
            fix=f"mend or uninstall {self.distribution}",
        )


def available(kind: Kind, name: str | None = None) -> dict[str, Plugin]:
    """What is registered of one kind, by name in alphabetical order; imports nothing.

    Args:
        kind: what to look for.
        name: only those of this name: a package's metadata takes milliseconds to read.

    Raises:
        FuseqError: FQ010 if two distributions register one name.
    """
    found: dict[str, Plugin] = {}
    entries = importlib.metadata.entry_points(group=f"fuseq.{kind}")
    for entry in entries if name is None else entries.select(name=name):
        owner = entry.dist
        distribution, version = (owner.name, owner.version) if owner else ("?", "?")
        value, extras = f"{entry.module}:{entry.attr}", tuple(entry.extras)
        missing = _missing(owner, extras) if owner and extras else ()
        plugin = Plugin(kind, entry.name, value, distribution, version, extras, missing)
        other = found.setdefault(entry.name, plugin)
        if other is not plugin:
            raise FuseqError(
                "FQ010",
                f"two distributions register the {_ONE[kind]} '{entry.name}'",
                where=f"{other.distribution} ({other.value}) and {distribution} ({entry.value})",
                fix=f"uninstall {other.distribution} or {distribution}, or rename one",
            )
    return dict(sorted(found.items()))


def _missing(owner: importlib.metadata.Distribution, extras: tuple[str, ...]) -> tuple[str, ...]:
    """Requirements of extras, on this kind of machine, that are not installed."""
    from packaging.requirements import Requirement

    names = []
    for text in owner.requires or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and any(marker.evaluate({"extra": extra}) for extra in extras):
            names.append(requirement.name)
    return tuple(name for name in names if not _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find(kind: Kind, name: str) -> Plugin:
    """The plugin of a name.

    Raises:
        FuseqError: FQ007 with close names if there is none; FQ010.
    """
    if name in (found := available(kind, name)):
        return found[name]
    plugins = available(kind)
    raise FuseqError(
        "FQ007",
        f"unknown {_ONE[kind]} '{name}'",
        why=f"known are {', '.join(plugins) or 'none'}",
        fix=did_you_mean(name, plugins) or f"`fuseq {kind}` lists them",
    )


def load(kind: Kind, name: str) -> Any:
    """The class of a name.

    Raises:
        FuseqError: FQ007, FQ010, FQ011.
    """
    return find(kind, name).load()


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The closest known name as a question, if one is close."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = close or [k for k in known if name and k.startswith(name)]
    return f"did you mean '{close[0]}'?" if close else None
