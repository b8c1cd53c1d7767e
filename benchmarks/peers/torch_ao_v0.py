"""torch.ao's FX mode with `FakeQuantize`, whose grids in training are those it converts to."""

from functools import partial

from benchmarks.peers import torch_ao

qat = partial(torch_ao.qat, version=0)
