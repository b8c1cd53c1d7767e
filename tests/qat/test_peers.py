"""Peers of the benchmarks get the network that we get: none may train the one it was given."""

import copy

import pytest
import torch

from benchmarks.qat_peers import PEERS
from benchmarks.qat_runs import Prepared


class Student(torch.nn.Module):
    """The layers that `qat_runs.Fused` has, smaller."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.convs = torch.nn.ModuleList([torch.nn.Conv2d(4, 4, 3, padding=1)])
        self.head, self.shuffle = torch.nn.Conv2d(4, 27, 3, padding=1), torch.nn.PixelShuffle(3)

    def forward(self, x):
        first = y = self.stem(x)
        for conv in self.convs:
            y = torch.relu(conv(y))
        return self.shuffle(self.head(y + first))


def prepared(name, model, batch) -> Prepared:
    try:
        return PEERS[name](model, batch)
    except ImportError as error:
        pytest.skip(f"not installed: {error}")


@pytest.mark.filterwarnings("ignore")  # those of other projects
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_leaves_the_network_as_it_is(name):
    model, batch = Student(), torch.rand(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    peer = prepared(name, model, batch)
    optimizer = torch.optim.SGD(peer.module.parameters(), lr=0.1)
    peer.module(batch).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
