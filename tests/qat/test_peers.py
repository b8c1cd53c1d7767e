"""Peers of the benchmarks get the network that we get: none may train the one it was given."""

import copy
from pathlib import Path

import pytest
import torch

from benchmarks.peers import ours, torch_ao
from benchmarks.peers.bed import student


@pytest.mark.filterwarnings("ignore")  # those of other projects
@pytest.mark.parametrize("toolkit", [ours, torch_ao])
def test_a_peer_leaves_the_network_as_it_is(toolkit):
    model, batch = student(blocks=1), torch.rand(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    peer = toolkit.qat(model, [batch], Path())
    optimizer = torch.optim.SGD(peer.module.parameters(), lr=0.1)
    peer.module(batch).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
