"""Whether this machine can run the vendor's tool: what is published for it, and what is installed.

The tool is the optional `onnxruntime-qnn`, a plugin beside `onnxruntime` that changes nothing until
it is registered. Its libraries have a licence of the vendor's own: they are never shipped with ours
and never looked into. Only Linux on x86-64 has the emulator that results are computed on here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys

from fuseq.errors import FuseqError

WHEEL = "onnxruntime-qnn"
MIN_GLIBC = (2, 34)
LICENCE = (
    "its QAIRT libraries have the vendor's own licence (Qualcomm_LICENSE.pdf in the package): read "
    "it before you ship anything made with them"
)
EMULATED = "x86 emulator; not verified on a device; no latency"


def wheel_version() -> str | None:
    """Version of the installed wheel, or None."""
    if importlib.util.find_spec("onnxruntime_qnn") is None:
        return None
    return importlib.metadata.version(WHEEL)


def host_problem() -> str | None:
    """Why no emulator runs on this machine, or None if one does."""
    machine = platform.machine().lower()
    if sys.platform != "linux" or machine not in ("x86_64", "amd64"):
        return f"the emulator exists for Linux on x86-64; this is {platform.system()} on {machine}"
    glibc = glibc_version()
    if glibc < MIN_GLIBC:
        found = ".".join(map(str, glibc)) or "none"
        return f"the wheel needs glibc {'.'.join(map(str, MIN_GLIBC))}; found {found}"
    return None


def glibc_version() -> tuple[int, ...]:
    """Version of the C library; empty where it is another one (musl, say)."""
    name, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".")[:2]) if name == "glibc" else ()


def require_emulator() -> str:
    """Version of the wheel, where it can run.

    Raises:
        FuseqError: FQ503 if this machine cannot run it, FQ502 if it is not installed.
    """
    problem = host_problem()
    if problem:
        raise FuseqError(
            "FQ503",
            "this machine cannot run the HTP emulator",
            why=problem,
            fix="compile on Linux x86-64 with glibc 2.34; files for HTP's own tools are written "
            "anywhere",
        )
    version = wheel_version()
    if version is None:
        raise FuseqError(
            "FQ502",
            f"{WHEEL} is not installed",
            why="it compiles for a chip and emulates it",
            fix=f"pip install 'fuseq[qnn]'; {LICENCE}",
        )
    return version
