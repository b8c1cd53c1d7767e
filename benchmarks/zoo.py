"""Lower published networks and write what became of them to benchmarks/zoo.md.

`make zoo` installs timm and torchvision and runs the tests on these networks. This command
measures them again and writes the table; with names, it prints their rows only.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

HEADER = """# Published networks

Written by `python benchmarks/zoo.py`. Random weights and batch-norm statistics, images of 96 x 96
(224 x 224 where the network asks for it), calibration on two random batches. Differing counts the
integers of every value that integer ops compute against ONNX Runtime's, at two sizes (values
computed in float and then quantized may differ by one step and are not in it); seconds are for the
whole of `lower`, checks included, one thread. What fusion alone does: docs/zoo.md.

{host}

"""

COLUMNS = [
    "network",
    "front end",
    "conv",
    "BN",
    "float64 error",
    "SQNR dB",
    "float values",
    "runtime's float ops",
    "differing / total",
    "seconds",
]


def row(name: str) -> str:
    """One line of the table."""
    import torch

    import fuseq
    from tests.zoo.networks import NETWORKS
    from tests.zoo.packages import create

    model, side = create(NETWORKS[name]), NETWORKS[name].side
    batches = [torch.rand(2, 3, side, side) for _ in range(2)]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        bundle = fuseq.lower(model, torch.rand(1, 3, side, side), out=out, calibration=batches)
    seconds = time.perf_counter() - start
    assert bundle.result is not None
    checks, manifest = bundle.result.checks, bundle.manifest
    counts = manifest["ops"]
    parity = [check.metrics for check in checks if check.id.startswith("parity-")]
    cells = [
        name,
        manifest["capture"],
        f"{counts['conv_before']} → {counts['conv_after']}",
        f"{counts['bn_before']} → {counts['bn_after']}",
        next(f"{c.metrics['max_rel']:.0e}" for c in checks if c.id == "fused-f64"),
        next(f"{c.metrics['sqnr_db']:.1f}" for c in checks if c.kind == "fidelity"),
        str(len(manifest["float_islands"])),
        ", ".join(f"{n} {op}" for op, n in (manifest["runtime_float_ops"] or {}).items()),
        f"{sum(m['differing'] for m in parity):,.0f} / {sum(m['total'] for m in parity):,.0f}",
        f"{seconds:.1f}",
    ]
    if not bundle.result.passed:
        cells[0] += " (a check failed)"
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print rows as they come; write the file when all networks ran."""
    import onnxruntime
    import torch

    from tests.zoo.test_lowering import LOWERED

    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(LOWERED)
    rows = []
    for name in chosen:
        rows.append(row(name))
        print(rows[-1], flush=True)
    if chosen == list(LOWERED):
        host = (
            f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, "
            f"{platform.machine()}."
        )
        rules = ["---"] * len(COLUMNS)
        lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, rules)]
        text = HEADER.format(host=host) + "\n".join([*lines, *rows]) + "\n"
        (ROOT / "benchmarks" / "zoo.md").write_text(text)


if __name__ == "__main__":
    main()
