"""fuseq beside other toolkits: quality, exactness, time, memory, structure, on one trained network.

    python -m benchmarks.peers.install        # environments of the others, once
    python -m benchmarks.peers                # measures, and writes benchmarks/peers/results.md

Takes half an hour on two idle cores. With names of toolkits (modules of this package) only those
are measured again; the figures of the others are those of the last time.
"""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks.peers.install import ROOT
from benchmarks.peers.make_bed import made
from benchmarks.peers.measure import Bench, latency, measured
from benchmarks.peers.tables import page
from benchmarks.peers.toolkits import TOOLKITS
from benchmarks.sr_student import say

OUT = ROOT / "build" / "peers"
PAGE = ROOT / "benchmarks" / "peers" / "results.md"


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("toolkits", nargs="*", metavar="TOOLKIT")
    parser.add_argument("--seeds", type=int, default=3, help="of the data of QAT")
    parser.add_argument("--steps", type=int, default=200, help="of QAT")
    parser.add_argument(
        "--rounds", type=int, default=15, help="of training steps; four times of runs"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    say("images, and a float network to start from")
    bed, model = made(OUT / "bed", options.seeds, options.steps)
    bench = Bench(bed, OUT / "files", options.seeds, options.steps, options.rounds)
    kept = OUT / "results.json"
    results = json.loads(kept.read_text()) if options.toolkits and kept.exists() else {}
    names = options.toolkits or [toolkit.module for toolkit in TOOLKITS]
    chosen = [toolkit for toolkit in TOOLKITS if toolkit.module in names]
    for toolkit in chosen:
        if not toolkit.installed:
            say(f"{toolkit.label} is not installed and left out")
    results |= measured(bench, [toolkit for toolkit in chosen if toolkit.installed])
    kept.write_text(json.dumps(results))
    results["latency"] = latency(bench, model, results)
    kept.write_text(json.dumps(results))
    PAGE.write_text(page(results, bench))
    print(PAGE)


if __name__ == "__main__":
    main()
