"""From trained networks to files and figures: what every example does after training.

Three files are written for each backend: the network as trained, quantized after training (PTQ);
the same after it was trained on in float for as long as QAT takes, which tells what QAT gives apart
from more training; and what QAT trained. Every figure of INT8 is that of the file, run in its
runtime, and every integer of the last one is compared with those of the network that was trained.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from images import Planes
from safetensors.torch import save_file
from torch import Tensor, nn

import fuseq
from fuseq.pass_spec import parse_backend
from fuseq.program import Program
from fuseq.qat import QatModel

Evaluate = Callable[[Callable[[Planes], Planes]], Mapping[str, float]]
Figures = dict[str, float]


def deploy(
    model: nn.Module,
    tuned: Program,
    trained: Mapping[str, QatModel],
    calibration: Sequence[Tensor],
    evaluate: Evaluate,
    out: Path,
) -> dict[str, Any]:
    """Write all files, measure them, and keep the figures in ``out/results.json``.

    Args:
        model: As trained in float.
        tuned: Trained on in float.
        trained: What QAT made of `model`, by backend as the command line spells it.
        calibration: Inputs ``(1, 3, height, width)`` of the size that the files have.
        evaluate: PSNR and SSIM of a function from planes to planes.
        out: Folder of the bundles.

    Returns:
        The figures.

    Raises:
        fuseq.errors.FuseqError: If a check of a bundle fails.
    """
    results: dict[str, Any] = {"backends": {}}
    for backend, qat in trained.items():
        name = backend.partition("{")[0]
        bundles = {
            kind: lowered(network, backend, out / f"{name}-{kind}", calibration, evaluate)
            for kind, network in (("ptq", model), ("tuned-ptq", tuned), ("qat", qat))
        }
        found = {kind: figures(bundle)[1] for kind, bundle in bundles.items()}
        results["float"], results["tuned"] = (
            figures(bundles[kind])[0] for kind in ("ptq", "tuned-ptq")
        )
        results["backends"][name] = {**found, **_compared(qat, bundles["qat"], calibration)}
        print(f"{name}: {json.dumps(results['backends'][name])}", flush=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    return results


def lowered(
    network: nn.Module | Program,
    backend: str,
    out: Path,
    calibration: Sequence[Tensor],
    evaluate: Evaluate,
) -> fuseq.Bundle:
    """Write a bundle with files of one size, and hold it to all its checks."""
    bundle = fuseq.lower(
        network,
        calibration[0],
        backend=parse_backend(backend),
        out=out,
        calibration=calibration,
        evaluate=evaluate,
        force=True,
    )
    assert bundle.result is not None
    bundle.result.raise_for_status()
    return bundle


def figures(bundle: fuseq.Bundle) -> tuple[Figures, Figures]:
    """PSNR and SSIM in float, and those of the file in its runtime."""
    assert bundle.result is not None
    (found,) = (c.metrics for c in bundle.result.checks if c.id == "int8-vs-float")
    before = {name: float(found[name]) for name in ("psnr", "ssim")}
    return before, {name: float(found.get(f"{name}_int8", v)) for name, v in before.items()}


def _compared(trained: QatModel, bundle: fuseq.Bundle, images: Sequence[Tensor]) -> dict[str, int]:
    """Integers of every value: the trained network in evaluation mode against the file."""
    inputs = [(image.numpy(),) for image in images[:4]]
    result = fuseq.check(trained.eval(), bundle, inputs)
    result.raise_for_status()
    return {
        "differing": sum(int(check.metrics["differing"]) for check in result.checks),
        "compared": sum(int(check.metrics["total"]) for check in result.checks),
    }


def save(model: nn.Module, path: Path) -> None:
    """Write weights as safetensors, four-dimensional ones (the convolutions) in float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            name: (tensor.half() if tensor.dim() == 4 else tensor).contiguous()
            for name, tensor in model.state_dict().items()
        },
        path,
    )
