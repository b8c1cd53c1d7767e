"""Any network through a toolkit's `ptq`: prints the file and what it took as JSON.

    PEER/bin/python -m benchmarks.peers.convert TOOLKIT FOLDER

FOLDER holds `network.pt2`, as torch.export saves it, and `calibration.npy` with `[n, 3, H, W]`;
the file goes there too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch


def main(toolkit: str, folder: str) -> None:
    """Convert; what toolkits print goes to stderr."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # those of other projects
    out = Path(folder)
    model = torch.export.load(out / "network.pt2").module()
    images = [torch.from_numpy(x)[None] for x in np.load(out / "calibration.npy")]
    with contextlib.redirect_stdout(sys.stderr):
        route = importlib.import_module(f"benchmarks.peers.{toolkit}")
        started = time.process_time()
        file = route.ptq(model, images, out)
        seconds = time.process_time() - started
    print(json.dumps({"file": str(file.resolve()), "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
