"""What is installed: passes, backends, their tools; and the error codes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import platform
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from fuseq import plugins
from fuseq.affine.refusal import CODES as REFUSALS
from fuseq.affine.refusal import FIXES
from fuseq.cli.streams import Result
from fuseq.cli.tables import table
from fuseq.errors import CODES, FuseqError

if TYPE_CHECKING:
    from fuseq.backend import Tool

_NEEDED = ("torch", "numpy", "onnx", "onnxruntime", "onnxsim")
_EXTRAS = {"tflite": "ai-edge-litert", "qnn": "onnxruntime-qnn"}


def listing(kind: plugins.Kind) -> Result:
    """Everything registered of a kind; nothing is imported."""
    found = plugins.available(kind).values()
    shown = table("name", "from", "class", "")
    for plugin in found:
        needs = f"needs {', '.join(plugin.missing)}: {plugin.fix}" if plugin.missing else ""
        shown.add_row(plugin.name, f"{plugin.distribution} {plugin.version}", plugin.value, needs)
    return Result({kind: [dataclasses.asdict(plugin) for plugin in found]}, shown)


def describe(kind: plugins.Kind, name: str) -> Result:
    """One plugin: what it is for, what it promises or runs, its options and chips."""
    from fuseq.pass_spec import option_types

    plugin = plugins.find(kind, name)
    loaded = plugin.load()
    options = {
        key: {"type": _type_name(wanted), "default": _plain(getattr(loaded, key, None))}
        for key, wanted in option_types(loaded).items()
    }
    about = {"promise": str(loaded.promise)} if kind == "passes" else {"pipeline": loaded.pipeline}
    summary = re.split(r"\n\s*\n", (loaded.__doc__ or "").strip())[0]
    shown = table("", "")
    rows = {
        "name": name,
        "from": f"{plugin.distribution} {plugin.version}, {plugin.value}",
        "purpose": summary,
        **about,
    }
    for key, text in rows.items():
        shown.add_row(key, text)
    for key, option in options.items():
        shown.add_row(f"option {key}", f"{option['type']}, by default {option['default']}")
    chips: Mapping[str, Mapping[str, str | int]] = getattr(loaded, "known_chips", {})
    for key, facts in chips.items():
        shown.add_row(f"chip {key}", ", ".join(f"{what} {value}" for what, value in facts.items()))
    document = {"name": name, "value": plugin.value, "purpose": summary, **about}
    known = {"chips": dict(chips)} if chips else {}
    return Result({**document, "options": options, **known}, shown)


def _type_name(wanted: Any) -> str:
    return str(wanted) if typing.get_origin(wanted) else getattr(wanted, "__name__", str(wanted))


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


@dataclass(frozen=True)
class Finding:
    """A tool that something here needs.

    Attributes:
        purpose: what needs it.
        tool: its name.
        found: its version, or the empty string.
        ok: whether it will do.
        note: remark, or how to get it.
    """

    purpose: str
    tool: str
    found: str
    ok: bool = True
    note: str = ""


def doctor(backend: str | None = None) -> Result:
    """Versions of what fuseq stands on, and each backend's own findings; or those of one alone.

    Raises:
        FuseqError: FQ007 for an unknown backend.
    """
    known = plugins.available("backends")
    if backend is not None:
        plugins.load("backends", backend)
        found = _backend(known[backend])
    else:
        found = [Finding("fuseq", "Python", platform.python_version())]
        found += [_package("fuseq", name, f"pip install {name}") for name in _NEEDED]
        for extra, name in _EXTRAS.items():
            found.append(
                _package(f"extra {extra}", name, f"optional: pip install 'fuseq[{extra}]'")
            )
        for plugin in known.values():
            found += _backend(plugin)
    shown = table("for", "tool", "found", "", "note")
    for one in found:
        shown.add_row(one.purpose, one.tool, one.found, "ok" if one.ok else "missing", one.note)
    return Result({"tools": [dataclasses.asdict(one) for one in found]}, shown)


def _package(purpose: str, name: str, fix: str) -> Finding:
    try:
        return Finding(purpose, name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(purpose, name, "", ok=False, note=fix)


def _backend(plugin: plugins.Plugin) -> list[Finding]:
    purpose = f"backend {plugin.name}"
    try:
        tools: list[Tool] = plugin.load()().doctor()
    except FuseqError as error:
        note = f"{error.what}: {error.why or error.fix}"
        return [Finding(purpose, plugin.value, "", ok=False, note=note)]
    return [Finding(purpose, tool.name, tool.found, tool.ok, tool.note) for tool in tools]


def explain(code: str) -> Result:
    """What a code means: of an error, of why branches stay apart, or of a backend's refusal.

    Raises:
        FuseqError: FQ007 for a code that does not exist.
    """
    if code.upper() in CODES:
        return _section(code.upper())
    others = dict(REFUSALS)
    if code.lower() not in REFUSALS and not code.upper().startswith("FQ"):
        others |= _codes_of_backends()
    found = next((known for known in others if known.upper() == code.upper()), None)
    if found is None:
        known = [*CODES, *others]
        raise FuseqError(
            "FQ007",
            f"unknown code '{code}'",
            why=f"errors have {min(CODES)} to {max(CODES)}; fusion and backends have codes of "
            "their own",
            fix=plugins.did_you_mean(code.upper(), known) or plugins.did_you_mean(code, known),
        )
    text = f"{found}: {others[found]}" + (f"\nhelp: {FIXES[found]}" if found in FIXES else "")
    return Result({"code": found, "text": text}, text)


def _codes_of_backends() -> dict[str, str]:
    """Codes of those backends that can be loaded."""
    found: dict[str, str] = {}
    for plugin in plugins.available("backends").values():
        with contextlib.suppress(FuseqError):
            found |= getattr(plugin.load(), "codes", {})
    return found


def _section(code: str) -> Result:
    """The section of an error code in the manual."""
    title, status = CODES[code]
    manual = files("fuseq").joinpath("errors.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {code}\b.*?(?=^## |\Z)", manual, re.DOTALL | re.MULTILINE)
    text = section[0].strip() if section else f"{code}: {title}"
    return Result({"code": code, "title": title, "exit_code": status, "text": text}, text)
