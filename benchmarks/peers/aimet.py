"""AIMET (aimet-torch): Qualcomm's toolkit, with its own settings for the HTP of Snapdragon chips.

Weights are int8 per channel, activations uint8 per tensor. Ranges start at the minimum and maximum
of calibration and are parameters in training: what is learned goes on to the end, there is nothing
to freeze. What ships is its ONNX file, written with integer biases; the trained network has float
ones.
"""

from __future__ import annotations

import copy
from pathlib import Path

from torch import Tensor, nn

from benchmarks.peers.bed import Prepared, Run
from tests.zoo.packages import declare_missing_operators

declare_missing_operators()  # AIMET imports torchvision

import aimet_torch.onnx  # noqa: E402
from aimet_torch.batch_norm_fold import fold_all_batch_norms  # noqa: E402
from aimet_torch.model_preparer import prepare_model  # noqa: E402
from aimet_torch.quantsim import QuantizationSimModel  # noqa: E402

SETTINGS = "htp_v81"


def ptq(model: nn.Module, calibration: list[Tensor], out: Path) -> Path:
    """Simulated, calibrated, written."""
    return _exported(_simulation(model, calibration), calibration[0], out)


def qat(model: nn.Module, calibration: list[Tensor], out: Path) -> Prepared:
    """Weights and ranges trained together."""
    simulation = _simulation(model, calibration)
    return Prepared(
        simulation.model.train(),
        deploy=lambda: _exported(simulation, calibration[0], out),
    )


def fused(model: nn.Module, example: Tensor, out: Path) -> Run:
    """Batch norms folded into their neighbours; AIMET joins no branches.

    It leaves a batch norm of an identity. A diverse branch block reads statistics of a batch norm
    that is gone by then: AttributeError, 'Identity' object has no attribute 'running_mean'.
    """
    own = copy.deepcopy(model).eval()
    fold_all_batch_norms(own, tuple(example.shape), dummy_input=example)
    return own


def _simulation(model: nn.Module, calibration: list[Tensor]) -> QuantizationSimModel:
    own = prepare_model(copy.deepcopy(model).eval())
    simulation = QuantizationSimModel(own, calibration[0], config_file=SETTINGS)

    def observe(network: nn.Module) -> None:
        for image in calibration:
            network(image)

    simulation.compute_encodings(observe)
    return simulation


def _exported(simulation: QuantizationSimModel, example: Tensor, out: Path) -> Path:
    file = out / "int8.onnx"
    simulation.model.eval()
    aimet_torch.onnx.export(
        simulation.model, (example,), str(file), prequantize_constants=True, external_data=False
    )
    return file
