"""fuseq with all its checks: what proving the file costs."""

from functools import partial

from benchmarks.peers import ours

ptq = partial(ours.ptq, check=True)
