"""fuseq with TFLite as its target."""

from functools import partial

from benchmarks.peers import ours

ptq = partial(ours.ptq, target="tflite")
qat = partial(ours.qat, target="tflite")
