"""A prepared model given where a program is wanted: it counts as what it has become."""

import pytest
import torch
from torch import nn

import fuseq
import fuseq.qat
from fuseq import ops
from tests.qat.networks import batches, prepared, steps


@pytest.mark.parametrize("wrapped", [False, True])
def test_lower_takes_a_prepared_model(wrapped, tmp_path):
    model = prepared(observer="mse", learn_scales=True)
    steps(model, batches(), rate=1e-4)
    given = nn.DataParallel(model) if wrapped else model
    bundle = fuseq.lower(given, out=tmp_path / "out", calibration=batches())
    assert bundle.result is not None
    bundle.result.raise_for_status()
    checks = {check.id: check for check in bundle.result.checks}
    assert {"fused-f32", "float-file", "int8-vs-float", "table"} < checks.keys()
    assert checks["table"].metrics["total"] > 0
    assert checks["int8-vs-float"].metrics["sqnr_db"] > 20
    assert any(check.kind == "parity" and "parity" in check.id for check in checks.values())
    (record,) = (p["name"] for p in bundle.manifest["passes"] if p["name"].startswith("qat"))
    options = "observer=mse,learn_scales=True,observing=True,weight_grids_frozen=False"
    assert record == f"qat{{{options}}}"
    assert bundle.manifest["calibration"]["batches"] == 4


def test_a_model_trained_to_the_end_is_called_qat(tmp_path):
    model = prepared()
    model.stage(observing=False, weight_grids_frozen=True)
    assert fuseq.qat.finalize(model).history[-1].name == "qat"


def test_check_compares_a_prepared_model_with_its_file(tmp_path):
    model = prepared()
    bundle = fuseq.lower(model, out=tmp_path / "out", calibration=batches())
    same = fuseq.check(model, bundle)
    assert [check.kind for check in same.checks] == ["parity"]
    same.raise_for_status()
    steps(model, batches())
    assert not fuseq.check(model, bundle).passed


def test_execute_shows_the_integers_of_a_prepared_model():
    model, x = prepared(), batches(1)[0]
    execution = fuseq.execute(model, (x,))
    assert execution.integers
    assert torch.equal(execution.result, model.eval()(x))
    assert torch.equal(execution.result, fuseq.qat.finalize(model)(x))


def test_branches_that_were_trained_apart_can_still_be_fused_and_shipped(tmp_path):
    model = prepared(unfused=True)
    assert ops.count(model.program, "conv2d") == 5
    assert ops.count(model.program, "requantize") == 2
    steps(model, batches())
    trained = fuseq.qat.float_program(model)
    fused = fuseq.fuse(trained)
    assert fused.report is not None
    assert fused.report["ops"] == {"conv_before": 5, "conv_after": 4, "bn_before": 0, "bn_after": 0}
    x = batches(1, seed=7)[0]
    torch.testing.assert_close(fused(x), model.network(x))
    bundle = fuseq.lower(trained, out=tmp_path / "out", calibration=batches())
    assert bundle.result is not None
    bundle.result.raise_for_status()
    names = [entry["name"].partition("{")[0] for entry in bundle.manifest["passes"]]
    expected = "recalibrate-bn fold-bn legalize qat fuse-affine legalize quantize"
    assert names == expected.split()
