"""`fuseq.check.toml`: what a repository commits to, read strictly.

    [[check]]
    id = "int8-vs-float"
    ref = "model.py"
    cand = ["build/sr/model.int8.qdq.onnx", "build/sr/model.int8.tflite"]
    inputs = "natural"
    sqnr_db = 28.0

Paths are relative to the file. A limit is a number, or a table of numbers by output. What is not
known, or not of its type, is refused by file and key: a limit with a typing error would hold
nothing to account.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuseq.equivalence.layouts import parse_layouts
from fuseq.equivalence.limits import BY_OUTPUT, Limit, Limits
from fuseq.errors import FuseqError
from fuseq.plugins import did_you_mean

NAME = "fuseq.check.toml"


@dataclass(frozen=True)
class Request:
    """One check that is asked for.

    Attributes:
        id: names it in every report.
        ref: target, file or bundle.
        cands: others; none for a bundle that is checked in itself.
        inputs: name of a set, a `.npz` file or a folder of images; None for recorded ones.
        samples: number of generated batches, or of images read.
        seed: of generated sets.
        limits: what outputs are held to.
        layouts: as `fuseq.check` takes them.
        layers: tell how each value fares.
        arguments: of the factory of a target, `key=value`.
        shapes: example inputs of a target.
        weights: state dict of a target.
        file: thresholds file that asks for it, if one does.
    """

    id: str
    ref: str
    cands: tuple[str, ...] = ()
    inputs: str | None = None
    samples: int = 4
    seed: int = 0
    limits: Limits = field(default_factory=Limits)
    layouts: Mapping[str, str] = field(default_factory=dict)
    layers: bool = False
    arguments: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    weights: Path | None = None
    file: Path | None = None


def read_thresholds(file: Path) -> list[Request]:
    """The checks of a thresholds file.

    Raises:
        FuseqError: FQ012 naming file and key for whatever is not as it should be, FQ009 for a file
            without a check.
    """
    return _requests(file, text_of(file))


def text_of(file: Path) -> str:
    """Content of a thresholds file.

    Raises:
        FuseqError: FQ012 if it cannot be read.
    """
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FuseqError(
            "FQ012",
            f"cannot read '{file}'",
            why=str(error),
            fix="name two sides, or a bundle; or write the file (docs/checks.md)",
        ) from error


def _requests(file: Path, text: str) -> list[Request]:
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FuseqError(
            "FQ012", f"'{file.name}' is no TOML: {error}", where=str(file), fix="mend the line"
        ) from error
    root = _Table(file, "", document)
    entries = document.get("check", [])
    root.require_known({"check"})
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise root.wrong("check", "tables: [[check]]")
    if not entries:
        raise FuseqError("FQ009", f"'{file}' holds no check", fix="add a [[check]]")
    found = [_request(_Table(file, f"check {n}", entry)) for n, entry in enumerate(entries, 1)]
    ids = [request.id for request in found]
    for id in ids:
        if ids.count(id) > 1:
            raise FuseqError("FQ012", f"two checks have the id '{id}'", where=str(file))
    return found


@dataclass(frozen=True)
class _Table:
    """A table of the file, read key by key."""

    file: Path
    place: str
    content: Mapping[str, Any]

    def wrong(self, key: str, wanted: str) -> FuseqError:
        value = self.content.get(key)
        return FuseqError(
            "FQ012",
            f"`{key}` is {value!r}, not {wanted}",
            where=self.where(key),
            fix="see docs/checks.md",
        )

    def where(self, key: str) -> str:
        return ", ".join(part for part in (str(self.file), self.place, key) if part)

    def require_known(self, keys: set[str]) -> None:
        for key in self.content:
            if key not in keys:
                raise FuseqError(
                    "FQ012",
                    f"unknown key `{key}`",
                    where=self.where(key),
                    why=f"known are {', '.join(sorted(keys))}",
                    fix=did_you_mean(key, keys) or "remove it",
                )

    def get(self, key: str, valid: Callable[[Any], bool], wanted: str, default: Any = None) -> Any:
        if key not in self.content:
            return default
        value = self.content[key]
        if not valid(value):
            raise self.wrong(key, wanted)
        return value

    def text(self, key: str) -> str | None:
        value: str | None = self.get(key, _is_text, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """One string, or a list of them."""
        value = self.get(
            key,
            lambda v: _is_text(v) or (isinstance(v, list) and bool(v) and all(map(_is_text, v))),
            "a string, or a list of strings",
            [],
        )
        return (value,) if isinstance(value, str) else tuple(value)

    def count(self, key: str, default: int, least: int) -> int:
        value: int = self.get(
            key, lambda v: type(v) is int and v >= least, f"a whole number from {least}", default
        )
        return value

    def limit(self, key: str) -> Limit:
        value: Limit = self.get(
            key, lambda v: _is_number(v) or _is_numbers(v), "a number, or numbers by output"
        )
        return value

    def path(self, key: str, value: str) -> str:
        """A target, file or folder, relative to the thresholds file."""
        name = value.removeprefix("torch:")
        file, colon, factory = name.partition(":")
        place = self.file.parent / file
        if not file:
            raise self.wrong(key, "a target, a file or a bundle")
        return f"{place}{colon}{factory}" if file.endswith(".py") or place.exists() else name


def _request(table: _Table) -> Request:
    table.require_known(KEYS)
    for key in ("id", "ref"):
        if not table.text(key):
            raise table.wrong(key, "a string; every check has one")
    table = _Table(table.file, f"check '{table.content['id']}'", table.content)
    given = {SPELLED.get(key, key): table.limit(key) for key in table.content if key in _LIMITS}
    limits = Limits(
        **given,
        data_range=_data_range(table),
        metric_drop=table.get("metric_drop", _is_numbers, "numbers by metric", {}),
    )
    inputs, weights = table.text("inputs"), table.text("weights")
    try:
        layouts = parse_layouts(table.texts("layout"))
    except FuseqError as error:
        raise FuseqError("FQ012", error.what, where=table.where("layout"), fix=error.fix) from None
    return Request(
        table.content["id"],
        table.path("ref", table.content["ref"]),
        tuple(table.path("cand", cand) for cand in table.texts("cand")),
        None if inputs is None else table.path("inputs", inputs),
        table.count("samples", 4, 1),
        table.count("seed", 0, 0),
        limits,
        layouts,
        bool(table.get("layers", lambda v: isinstance(v, bool), "true or false", False)),
        table.texts("arg"),
        table.texts("input"),
        None if weights is None else Path(table.path("weights", weights)),
        table.file,
    )


def _data_range(table: _Table) -> tuple[float, float] | None:
    value = table.get(
        "data_range",
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(_is_number, v)) and v[0] < v[1],
        "two numbers, the smaller one first",
    )
    return None if value is None else (float(value[0]), float(value[1]))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _is_numbers(value: object) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_number, value.values()))


SPELLED = {"lsb_max": "max_lsb"}
"""Other spellings of limits."""

_LIMITS = {*BY_OUTPUT, *SPELLED}

KEYS = {
    *("id", "ref", "cand", "inputs", "samples", "seed", "layout", "layers"),
    *("arg", "input", "weights", "data_range", "metric_drop", *_LIMITS),
}
"""Keys of a check."""
