"""Runs of quantization-aware training by the recipe of `benchmarks.peers.bed`, on our side."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fuseq
import fuseq.qat
from benchmarks import sr_student
from benchmarks.peers import torch_ao
from benchmarks.peers.bed import Batches, Prepared, Run, Student
from fuseq import ops
from fuseq.backends.onnx import OnnxBackend
from fuseq.program import Program

FIRST_SEED = 1_000


def fx(model: nn.Module, version: int) -> Prepared:
    """torch.ao's FX mode; version 0 is `FakeQuantize`, 1 (its default) the fused one."""
    return torch_ao.qat(model, sr_student.calibration(), Path(), version)


def fused_student(program: Program) -> Student:
    """The fused topology as plain layers: what other toolkits and plain float training take."""
    nodes = [n for n in program.graph.nodes if ops.name_of(program, n) == "conv2d"]
    convs = [copy.deepcopy(program.get(node)) for node in nodes]
    student = Student([conv for conv in convs if isinstance(conv, nn.Conv2d)])
    return student.requires_grad_(True)


def training_batches(seed: int) -> Batches:
    """Of the data of QAT."""
    return sr_student.batches(FIRST_SEED + seed)


def ours(model: nn.Module | Program, **options: Any) -> Prepared:
    """`fuseq.qat` on the multi-branch network; `options` are those of `prepare`."""
    images = sr_student.calibration()
    qat = fuseq.qat.prepare(model, images[0], calibration=images, **options)
    return in_stages(qat, lambda: deployed(fuseq.qat.finalize(qat)))


def branches_apart(model: nn.Module) -> Prepared:
    """`fuseq.qat` on the branches, which are fused and calibrated anew after training."""
    images = sr_student.calibration()
    qat = fuseq.qat.prepare(
        model, images[0], calibration=images, passes="recalibrate-bn,fold-bn", unfused=True
    )
    return in_stages(qat, lambda: deployed(ptq(fuseq.fuse(fuseq.qat.float_program(qat)))))


def in_stages(qat: fuseq.qat.QatModel, deploy: Callable[[], Run]) -> Prepared:
    """The stages of one of our models."""
    return Prepared(
        qat,
        freeze_activations=lambda: qat.stage(observing=False, weight_grids_frozen=False),
        freeze_all=lambda: qat.stage(observing=False, weight_grids_frozen=True),
        deploy=deploy,
    )


def ptq(model: nn.Module | Program, observer: str = "minmax") -> Program:
    """Fused and quantized after training."""
    images = sr_student.calibration()
    return fuseq.quantize(model, images[0], calibration=images, observer=observer)


def shipped_psnr(prepared: Prepared) -> float:
    """PSNR in dB of what ships, which is a function of a batch here."""
    deployed = prepared.deploy()
    assert callable(deployed)
    return sr_student.module_psnr(deployed)


def deployed(program: Program) -> Run:
    """A quantized program's ONNX file in ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        fuseq.lower(program, backend="onnx", out=out, check=False)
        runner = OnnxBackend().runner(out / "model.int8.qdq.onnx")
    return lambda x: torch.from_numpy(runner(x.numpy())[0])
