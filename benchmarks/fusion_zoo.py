"""Fuse the networks of tests/zoo and write what became of them to docs/zoo.md.

`make zoo` installs their packages and tests them against the same table. This command measures
them and writes the page; with names, it prints their rows only.
"""

from __future__ import annotations

import copy
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

HEADER = """# Networks that were fused

Written by `python benchmarks/fusion_zoo.py`; `make zoo` tests the same structure. {total} networks,
of {families} families and plain ones, as their packages build them (`tests` are written after the
papers, in [tests/networks](../tests/networks/)): random weights, biases and scales (seeds 0 and 1),
batch-norm statistics of random images, one square image of the side given (seed 2).

- **front end**: which one recorded it. A star marks the {starred} networks that plain
  `torch.fx.symbolic_trace` cannot record: control flow on shapes, assignment to slices, sizes read
  from kernels.
- **conv**, **BN**: two-dimensional convolutions and batch norms, before and after. A refusal names
  each batch norm that is left ([codes](fusion.md#refusals)).
- **own**: what the network's own hand-written fusion leaves: counted as it runs, or (paper) as the
  paper deploys it. **own error**: relative to the network itself, in float64, or what it raised.
- **float64**: largest difference over largest output, of the fused network from the network, at two
  sizes. **float32**: largest difference in float32, and the most that rounding explains
  ([derivation](checks.md)).
- **MMAC**: millions of multiply-accumulates for one image. Seconds are of CPU time, one thread.

{versions}; {host}.

"""

COLUMNS = (
    "network", "side", "front end", "conv", "BN", "own conv/BN", "own error", "float64",
    "float32", "regions", "MMAC", "capture s", "fuse s",
)  # fmt: skip


def row(name: str) -> list[str]:
    """Cells of one network."""
    import torch

    import fuseq
    from fuseq.macs import total_macs
    from tests.zoo.networks import NETWORKS
    from tests.zoo.own_fusion import own_fusion
    from tests.zoo.packages import create

    network = NETWORKS[name]
    model = create(network)
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(1, 3, network.side, network.side, generator=generator)
    start = time.process_time()
    before = fuseq.capture(model, image)
    captured = time.process_time()
    fused = fuseq.fuse(before)
    seconds = (captured - start, time.process_time() - captured)
    report = fused.report
    assert report is not None
    counts = report["ops"]
    own = own_fusion(model, image)
    if own is not None:
        left = "crashes" if own.conv is None else f"{own.conv}/{own.bn}"
        error = own.error64 if isinstance(own.error64, str) else f"{own.error64:.0e}"
    elif network.own is not None:
        left, error = "{}/{} (paper)".format(*network.own), ""
    else:
        left = error = "none"
    return [
        name,
        str(network.side),
        report["capture"] + ("" if _fx_traces(model) else " *"),
        f"{counts['conv_before']} → {counts['conv_after']}",
        f"{counts['bn_before']} → {counts['bn_after']}",
        left,
        error,
        f"{report['max_rel_error_f64']:.0e}",
        f"{report['max_abs_error_f32']:.0e} / {report['float32_bound']:.0e}",
        str(len(report["regions"])),
        " → ".join(f"{total_macs(program) / 1e6:.4g}" for program in (before, fused)),
        *(f"{s:.1f}" for s in seconds),
    ]


def _fx_traces(model: object) -> bool:
    import torch

    try:
        torch.fx.symbolic_trace(copy.deepcopy(model))  # type: ignore[arg-type]
    except Exception:
        return False
    return True


def line(cells: list[str]) -> str:
    """A row of a table."""
    return f"| {' | '.join(cells)} |"


def page(rows: dict[str, list[str]]) -> str:
    """The text of docs/zoo.md, from a row for each network."""
    from tests.zoo.networks import FAMILIES

    packages = ("torch", "timm", "torchvision", "birder", "resselt", "spandrel")
    text = HEADER.format(
        total=len(rows),
        families=len(FAMILIES) - 1,
        starred=sum(cells[2].endswith("*") for cells in rows.values()),
        versions=", ".join(f"{package} {version(package)}" for package in packages),
        host=platform.machine(),
    )
    for family, networks in FAMILIES.items():
        table = [line(list(COLUMNS)), line(["---"] * len(COLUMNS))]
        table += [line(rows[network.name]) for network in networks]
        text += f"## {family}\n\n" + "\n".join(table) + "\n\n"
    return text.rstrip() + "\n"


def main() -> None:
    """Print rows as they come; write the page when all networks ran."""
    import torch

    from tests.zoo.networks import NETWORKS

    warnings.simplefilter("ignore")  # of packages, while they build their networks
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {}
    for name in sys.argv[1:] or NETWORKS:
        rows[name] = row(name)
        print(line(rows[name]), flush=True)
    if not sys.argv[1:]:
        (ROOT / "docs" / "zoo.md").write_text(page(rows))


if __name__ == "__main__":
    main()
