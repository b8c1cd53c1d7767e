"""`python -m tests.fuzz.campaign`: thousands of random graphs, and what fusing them came to."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import torch

from tests.fuzz.grammar import graph_of
from tests.fuzz.graphs import Graph, shrunk
from tests.fuzz.verdict import Verdict, judge, judge_publicly, settings_of

LEAST_COLLAPSED = 0.25
"""Part of the affine graphs that must become one convolution: refusing all of them is no pass."""

PUBLIC = 40
"""One graph in so many also goes through `fuseq.fuse`, with both front ends and every proof."""


def judged(seed: int) -> tuple[int, Verdict]:
    graph = graph_of(seed)
    verdict = judge(graph, settings_of(seed))
    if seed % PUBLIC == 0 and not verdict.wrong:
        verdict.wrong = judge_publicly(graph, "export" if seed % (2 * PUBLIC) else "fx")
    return seed, verdict


def reproduction(seed: int, wrong: str) -> str:
    """The smallest graph found that fails alike, as PyTorch code."""
    kind = wrong.split()[0]

    def fails(graph: Graph) -> bool:
        return judge(graph, settings_of(seed)).wrong.startswith(kind)

    graph = graph_of(seed)
    return f"seed {seed}: {wrong}\n\n{shrunk(graph, fails) if fails(graph) else graph}"


def verdicts(seeds: range, jobs: int) -> Iterator[tuple[int, Verdict]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=partial(torch.set_num_threads, 1)) as pool:
        yield from pool.imap_unordered(judged, seeds, chunksize=20)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.campaign", description=__doc__)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first graph")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    start, total, refusals, wrong = time.perf_counter(), Counter[str](), Counter[str](), []
    for seed, verdict in verdicts(range(options.seed, options.seed + options.graphs), options.jobs):
        total.update(verdict.counts())
        refusals.update(verdict.refusals)
        if verdict.wrong:
            wrong.append(seed)
            print(reproduction(seed, verdict.wrong), flush=True)
        if total["graphs"] % 1000 == 0:
            print(f"{total['graphs']} graphs, {len(wrong)} wrong", file=sys.stderr, flush=True)
    for name, count in total.items():
        print(f"{count:8d} {name}")
    print("refusals:", ", ".join(f"{code} {count}" for code, count in refusals.most_common()))
    processor = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{len(wrong)} wrong {wrong[:20]}")
    print(
        f"{time.perf_counter() - start:.0f} s, {processor.ru_utime + processor.ru_stime:.0f} of CPU"
    )
    whole, collapsed = (total[name] for name in total if "one " in name)
    return int(bool(wrong) or collapsed < LEAST_COLLAPSED * whole)


if __name__ == "__main__":
    sys.exit(main())
