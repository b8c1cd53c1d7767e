"""Environments of the toolkits that are compared: one for each file in `environments`.

    python -m benchmarks.peers.install [NAME ...]

Each is made in build/peers/environments/NAME with the pinned PyTorch and what its file lists. One
that cannot be installed is named with the reason, and its toolkit is left out of the comparison.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTS = Path(__file__).parent / "environments"
PLACE = ROOT / "build" / "peers" / "environments"
TORCH = "torch==2.13.0"


def python(name: str) -> Path:
    """The interpreter of an environment, installed or not."""
    return PLACE / name / "bin" / "python"


def install(name: str) -> str:
    """Make an environment, and say what went wrong, if anything did."""
    venv.create(PLACE / name, with_pip=True, clear=True)
    pip = [str(python(name)), "-m", "pip", "install", "--quiet"]
    requirements = str(LISTS / f"{name}.txt")
    for arguments in ([TORCH], [TORCH, "-r", requirements]):
        done = subprocess.run([*pip, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            python(name).unlink()
            return done.stderr.strip().splitlines()[-1]
    return ""


def main() -> None:
    """Install those that are missing."""
    for name in sys.argv[1:] or sorted(path.stem for path in LISTS.glob("*.txt")):
        if not python(name).exists():
            print(name, end=" ", flush=True)
            print(install(name) or "installed", flush=True)


if __name__ == "__main__":
    main()
