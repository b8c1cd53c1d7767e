"""Lines of the user's own code: of a recorded node, and of an exception."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

import torch
from torch import fx

from fuseq.program import SourceLocation

_TORCH = Path(torch.__file__).parent
_LIBRARIES = [f"{folder}/" for folder in (_TORCH, _TORCH.parent / "sympy", Path(__file__).parent)]
_EXAMPLES = str(Path(__file__).parent / "testing" / "networks.py")  # written as users write theirs
_STANDARD = sysconfig.get_path("stdlib") + "/"
_INSTALLED = sysconfig.get_path("purelib") + "/"
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)[^\n]*\n\s*(?P<code>[^\n]*)')


def recorded_line(node: fx.Node) -> SourceLocation | None:
    """Innermost user's frame of the stack a front end recorded with a node."""
    frames = [
        SourceLocation(m["file"], int(m["line"]), m["code"].strip())
        for m in _FRAME.finditer(node.meta.get("stack_trace") or "")
    ]
    return next((frame for frame in reversed(frames) if _is_users(frame.file)), None)


def raising_line(error: BaseException) -> SourceLocation | None:
    """Innermost user's frame of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    users = (f for f in reversed(frames) if _is_users(f.filename))
    frame = next(users, None)
    return SourceLocation(frame.filename, frame.lineno or 0, frame.line or "") if frame else None


def _is_users(file: str) -> bool:
    standard = file.startswith(_STANDARD) and not file.startswith(_INSTALLED)
    return file == _EXAMPLES or not (standard or file.startswith(("<", *_LIBRARIES)))
