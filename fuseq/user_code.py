"""Running the user's own code: find a function in a file or package, and name the line that raised.

**A file that is loaded is executed.**
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from fuseq.errors import FuseqError, first_line
from fuseq.plugins import did_you_mean

STUBS = {
    "get_model": "def get_model():\n    return MyNetwork()",
    "example_inputs": "def example_inputs():\n    return (torch.rand(1, 3, 224, 224),)",
    "calibration_data": "def calibration_data():\n"
    "    for image in my_images:\n        yield image[None]  # a tensor like example_inputs()",
    "preprocess": "def preprocess(image):  # a PIL image\n    return tensor  # (3, height, width)",
    "evaluate": "def evaluate(run):  # run(array) returns an array\n    return {'psnr': 30.0}",
    "fit": "def fit(model, curriculum):\n"
    "    optimizer = torch.optim.Adam(model.parameters(), 1e-4)\n"
    "    for epoch in curriculum.epochs:\n        curriculum.step(epoch)\n"
    "        for x, y in my_batches:\n            optimizer.zero_grad()\n"
    "            (model(x) - y).abs().mean().backward()\n"
    "            optimizer.step()\n            curriculum.clip_weights()",
}
"""The functions fuseq looks for in the user's files, each as it could be written."""


def load_function(name: str, default: str) -> tuple[ModuleType, Any]:
    """A function, and the module it was found in.

    Args:
        name: `file.py[:function]` or `package.module:function`.
        default: function of a file that names none.

    Raises:
        FuseqError: FQ001 if the form is unknown or nothing is there, FQ002 if the module lacks the
            function, FQ003 if importing it raises.
    """
    place, _, function = name.rpartition(":") if ":" in name else (name, "", "")
    if place.endswith(".py"):
        module = _import_file(Path(place))
    elif function and all(part.isidentifier() for part in place.split(".")):
        module = _import_package(place)
    else:
        raise FuseqError(
            "FQ001",
            f"'{name}' is not a target",
            why="a target is model.py, model.py:factory or package.module:factory",
            fix=_better_use(name),
        )
    found: Any = module
    for part in (function or default).split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise _missing(module, place, function or default)
    return module, found


def _better_use(name: str) -> str | None:
    path = Path(name)
    if path.suffix in (".pt", ".pth", ".ckpt", ".safetensors"):
        return f"weights go with the model that has them: model.py --weights {name}"
    if path.suffix == ".onnx" or os.path.isfile(path / "fuseq.json"):
        return "an artifact can be inspected and checked, not fused or lowered"
    return f"name the factory: {name}:get_model" if name.replace(".", "").isidentifier() else None


def _import_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        guess = did_you_mean(str(path), siblings)
        raise FuseqError("FQ001", f"no file '{path}'", fix=guess or f"ls {path.parent}")
    path = path.resolve()
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    name = path.stem if loaded is None else str(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As if the file were run as a script: it can import its neighbours, and they it.
    sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        with user_code(f"importing '{path.name}'", module):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_package(name: str) -> ModuleType:
    sys.path.append("")  # the working directory, after everything installed
    try:
        with user_code(f"importing '{name}'"):
            return importlib.import_module(name)
    except FuseqError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{name}.".startswith(f"{cause.name}."):
            raise FuseqError(
                "FQ001",
                f"no module named '{cause.name}'",
                where=name,
                fix="install the package, or run from the directory that holds it",
            ) from cause
        raise


def _missing(module: ModuleType, place: str, name: str) -> FuseqError:
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    return FuseqError(
        "FQ002",
        f"'{place}' has no function '{name}'",
        why=f"it defines {', '.join(own) or 'no function and no class'}",
        fix=(did_you_mean(name, own) or f"name another: {place}:NAME") + _paste(name),
    )


def _paste(name: str) -> str:
    return f"\n  or paste into the file:\n\n{STUBS[name]}\n" if name in STUBS else ""


def missing(code: str, what: str, option: str, function: str) -> FuseqError:
    """The error for a function that the user's file could have: an option instead, or a stub."""
    return FuseqError(code, what, fix=option + _paste(function))


@contextmanager
def user_code(doing: str, module: ModuleType | None = None) -> Iterator[None]:
    """Turn what the user's code raises into an FQ003 that names its line.

    Args:
        doing: what was going on: "importing 'model.py'".
        module: whose innermost line is named; if none is in it, the innermost of all.

    Raises:
        FuseqError: FQ003; one that was raised inside passes unchanged.
    """
    try:
        yield
    except FuseqError:
        raise
    except (Exception, SystemExit) as error:
        said = first_line(error)
        raise FuseqError(
            "FQ003",
            f"{doing} raised {type(error).__name__}",
            where=_line_of(error, getattr(module, "__file__", None)),
            why=said if said != type(error).__name__ else None,
            fix="mend the line; --debug shows the whole traceback",
        ) from error


def _line_of(error: BaseException, file: str | None) -> str | None:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_shown(error.filename)}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    others = [f for f in frames if f.filename != __file__ and not f.filename.startswith("<frozen")]
    own = [f for f in others if f.filename == file]
    frame = next(reversed(own or others), None)
    return f"{_shown(frame.filename)}:{frame.lineno}: {frame.line}" if frame else None


def _shown(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
