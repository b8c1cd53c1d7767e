"""Runs a script of an example on a few small images: what it takes is then its network, not them.

python tests/examples/few_images.py examples/qdr/train.py --out build/qdr
"""

import importlib
import runpy
import sys
from pathlib import Path

script = Path(sys.argv[1])
sys.argv = sys.argv[1:]
sys.path[:0] = [str(script.parent), str(script.parents[1] / "common")]

vars(importlib.import_module("images"))["HELD_OUT"] = 2
vars(importlib.import_module("model")).update(
    SIZE=64,  # no patch is larger; super-resolution has its own size, which is the same
    CALIBRATION_SEEDS=range(80_000, 80_008),
    HELD_OUT_SEEDS=range(90_000, 90_004),
)
runpy.run_path(str(script), run_name="__main__")
