"""What training keeps for the backward pass, against the float network: bytes, and no clock."""

import sys
from unittest.mock import patch

import torch

import fuseq
from benchmarks import sr_student
from benchmarks.peers.training_step import Step
from benchmarks.qat_runs import fused_student


def test_the_student_keeps_at_most_a_fifth_more_than_in_float():
    with patch.dict(sys.modules):
        for name in ("data", "model", "train"):  # another example's, if its test ran before
            sys.modules.pop(name, None)
        model = sr_student.network(0)
    batch = torch.rand(4, 3, 64, 64), torch.rand(4, 3, 192, 192)
    limit = 1.2 * Step(fused_student(fuseq.fuse(model, batch[0])).train(), batch).saved_mebibytes()
    assert limit > 20
    trained = fuseq.qat.prepare(model, batch[0], calibration=[batch[0]])
    for observing, frozen in ((True, False), (False, False), (False, True)):
        trained.stage(observing=observing, weight_grids_frozen=frozen)
        assert Step(trained, batch).saved_mebibytes() <= limit
