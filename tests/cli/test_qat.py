"""`fuseq qat`: a loop of the user's trains what ships, and nothing of it is lost."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Answer, edited

FIT = """
import torch


def fit(model, curriculum):
    print("the user's loop prints this")
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for epoch in curriculum.epochs:
        curriculum.step(epoch)
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(2):
            x = torch.rand(2, 3, 16, 16, generator=generator)
            loss = (model(x) - x[:, :2]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curriculum.clip_weights()
"""

EVALUATE = """

def evaluate(run):
    x = example_inputs()[0]
    error = ((run(x.numpy()) - x[:, :2].numpy()) ** 2).mean()
    return {"closeness": float(1 / error)}
"""

LOSS = "loss = (model(x) - x[:, :2]).square().mean()"


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    file = tmp_path / "train.py"
    file.write_text(FIT)
    return file


@pytest.fixture
def qat(run: Callable[..., Answer], model: Path, fit: Path, tmp_path: Path) -> Callable[..., Any]:
    def invoke(*more: object, out: Path = tmp_path / "out", stages: str = "2,1,1") -> Answer:
        where = ("-b", "onnx", "-o", out, "--stages", stages)
        answer: Answer = run("qat", model, "--fit", f"{fit}:fit", *where, *more)
        return answer

    return invoke


def state(file: Path) -> Any:
    return torch.load(file, weights_only=True)


def same_tensors(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_process_trains_and_answers_with_one_document(model, fit, tmp_path):
    model.write_text(model.read_text() + EVALUATE)
    out = tmp_path / "new" / "out"
    command = [sys.executable, "-m", "fuseq", "qat", str(model), "--fit", str(fit), "-b", "onnx"]
    command += ["-o", str(out), "--stages", "2,1,1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["schema"], document["command"]) == ("fuseq/1", "qat")
    assert document["passed"] is True
    assert document["ops"] == {"conv_before": 3, "conv_after": 2, "bn_before": 2, "bn_after": 0}
    parity = [check["metrics"] for check in document["checks"] if check["class"] == "parity"]
    assert all(metrics["differing"] == 0 < metrics["total"] for metrics in parity)
    (closeness,) = document["metrics"]
    assert closeness["int8_after"] > closeness["int8_before"]
    assert abs(closeness["int8_before"] / closeness["float"] - 1) < 0.05
    assert document["checkpoint"] == f"{out}.qat.pt"
    for said in ("the user's loop prints this", "observe ...", "freeze ...", "int8, trained"):
        assert said in done.stderr
    passes = [p["name"] for p in json.loads((out / "fuseq.json").read_text())["passes"]]
    assert passes[-2:] == ["legalize", "qat"]


def test_the_bundle_alone_is_printed(qat, tmp_path):
    answer = qat("--learn-scales", "--observer", "mse", "-q")
    assert answer.status == 0, answer.stderr
    assert answer.stdout == f"{tmp_path / 'out'}\n"
    assert "no evaluate(run)" in answer.stderr
    manifest = json.loads((tmp_path / "out" / "fuseq.json").read_text())
    assert manifest["passes"][-1]["name"] == "qat{observer=mse,learn_scales=True}"


def test_branches_trained_apart_are_fused_afterwards(qat, tmp_path):
    answer = qat("--unfused", "--json")
    assert answer.status == 0, answer.stderr
    assert answer.document["ops"]["conv_after"] == 2
    assert state(tmp_path / "out.qat.pt")["state_dict"].keys() >= {"network.b.0.weight"}


def test_what_failed_continues_where_its_epoch_began(qat, fit, tmp_path):
    whole = qat(out=tmp_path / "whole")
    assert whole.status == 0, whole.stderr
    broken = "        assert epoch < 2, 'no more'\n        for _ in"
    edited(fit, "        for _ in", broken)
    failed = qat()
    assert (failed.status, failed.code) == (2, "FQ003")
    kept = tmp_path / "out.qat.pt"
    assert f"--resume {kept}" in failed.stderr
    assert state(kept)["curriculum"] == {"position": 2}
    edited(fit, broken, "        for _ in")
    refused = qat()
    assert (refused.status, refused.code) == (2, "FQ008")
    assert f"--resume {kept}" in refused.stderr
    answer = qat("--resume", kept)
    assert answer.status == 0, answer.stderr
    assert "observe ..." not in answer.stderr
    expected = state(tmp_path / "whole.qat.pt")
    assert same_tensors(state(kept)["state_dict"], expected["state_dict"])
    file = "model.int8.qdq.onnx"
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_finished_training_is_only_lowered_again(qat, tmp_path):
    assert qat().status == 0
    first = (tmp_path / "out" / "model.int8.qdq.onnx").read_bytes()
    answer = qat("--resume", tmp_path / "out.qat.pt", "--force")
    assert answer.status == 0, answer.stderr
    assert "freeze ..." not in answer.stderr
    assert (tmp_path / "out" / "model.int8.qdq.onnx").read_bytes() == first


def test_ctrl_c_keeps_the_last_state(model, fit, tmp_path):
    edited(fit, LOSS, f"print('waiting', flush=True); __import__('time').sleep(60); {LOSS}")
    command = [sys.executable, "-m", "fuseq", "qat", str(model), "--fit", str(fit), "-b", "onnx"]
    command += ["-o", str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "waiting" in line:
            break
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume {tmp_path / 'out.qat.pt'}" in told
    assert "Traceback" not in told
    assert state(tmp_path / "out.qat.pt")["curriculum"] == {"position": 0}
    assert not (tmp_path / "out").exists()


def test_a_loop_that_ends_early_is_told(qat, fit):
    edited(fit, "curriculum.step(epoch)", "curriculum.step(epoch); break")
    answer = qat()
    assert answer.status == 0, answer.stderr
    assert "warning: the loop ended 3 epochs early, in stage 'observe'" in answer.stderr


@pytest.mark.parametrize(
    ("old", "new", "status", "code", "said"),
    [
        ("def fit(", "def fti(", 2, "FQ002", "def fit(model, curriculum):"),
        ("def fit(model, curriculum)", "def fit(model)", 2, "FQ007", "does not take (model, curr"),
        (LOSS, "raise ValueError('no')", 2, "FQ003", "train.py:13: raise ValueError"),
        (LOSS, "__import__('sys').exit(0)", 2, "FQ003", "train.py:13: "),
        (LOSS, f"{LOSS} * float('nan')", 3, "FQ402", "parameters are not finite"),
        (LOSS, "loss = model(x * float('nan')).mean()", 3, "FQ401", "input `x` has values"),
        ("import torch\n", "import torhc\n", 2, "FQ003", "train.py:2: import torhc"),
    ],
)
def test_loops_that_cannot_be_run(qat, fit, tmp_path, old, new, status, code, said):
    edited(fit, old, new)
    answer = qat("--json")
    assert (answer.status, answer.code) == (status, code)
    assert said in answer.stderr
    assert answer.document["error"]["code"] == code
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.qat.pt").exists()


def test_a_state_that_is_not_finite_is_not_kept(qat, fit, tmp_path):
    edited(fit, LOSS, f"{LOSS} * (float('nan') if epoch == 2 else 1)")
    answer = qat()
    assert (answer.status, answer.code) == (3, "FQ402")
    kept = state(tmp_path / "out.qat.pt")
    assert kept["curriculum"] == {"position": 2}
    assert all(bool(torch.isfinite(x).all()) for x in kept["state_dict"].values())


def test_ctrl_c_keeps_no_state_that_is_not_finite(qat, fit, tmp_path):
    nan = "[p.data.fill_(float('nan')) for p in model.parameters()]"
    edited(fit, LOSS, f"{LOSS}\n            if epoch == 2: {nan}; raise KeyboardInterrupt")
    answer = qat()
    assert answer.status == 130
    assert "this state is not kept: parameters are not finite" in answer.stderr
    assert f"--resume {tmp_path / 'out.qat.pt'}" in answer.stderr
    kept = state(tmp_path / "out.qat.pt")
    assert all(bool(torch.isfinite(x).all()) for x in kept["state_dict"].values())


@pytest.mark.parametrize("stages", ["30,60", "a,b,c", "-1,2,3", "0,0,0", "1,2,3,4", ""])
def test_stages_that_cannot_be_read(qat, stages):
    answer = qat(stages=stages)
    assert (answer.status, answer.code) == (2, "FQ012" if stages == "0,0,0" else "FQ007")


def test_an_empty_calibration_set(qat, model):
    edited(model, "range(4)", "range(0)")
    answer = qat()
    assert (answer.status, answer.code) == (2, "FQ006")


def test_states_that_cannot_be_continued(qat, model, tmp_path):
    missing = qat("--resume", tmp_path / "no.pt")
    assert (missing.status, missing.code) == (2, "FQ004")
    torch.save({"a": torch.ones(1)}, tmp_path / "weights.pt")
    weights = qat("--resume", tmp_path / "weights.pt")
    assert (weights.status, weights.code) == (2, "FQ004")
    assert "is no state of a training" in weights.stderr
    assert qat(out=tmp_path / "first").status == 0
    edited(model, "def get_model(width=4)", "def get_model(width=8)")
    other = qat("--resume", tmp_path / "first.qat.pt")
    assert (other.status, other.code) == (2, "FQ004")
    assert "of another shape" in other.stderr


def test_a_state_that_cannot_be_written(qat, tmp_path):
    (tmp_path / "out.qat.pt.part").mkdir()
    answer = qat()
    assert (answer.status, answer.code) == (2, "FQ008")
    assert "out.qat.pt" in answer.stderr
