"""`python -m tests.faults.campaign`: how many faults in shipped files a check of the bundle finds.

Networks are lowered, one fault at a time is planted in a file, the manifest is given the new
hash (the writer was wrong, nobody damaged the file), and the bundle is checked as `fuseq check`
does. A fault counts as localized if the first node named is one where it is. Faults that the
runtime refuses to load are drawn again. Clean bundles are then checked on fresh inputs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

import fuseq
from fuseq.bundle import MANIFEST, read_bundle, sha256
from tests.faults.fault import Fault, spread, with_layers
from tests.faults.onnx_faults import FloatFile, QdqFile
from tests.faults.tflite_faults import TfliteFile

NETWORKS = (
    *("decoder", "gated", "mobilenet_v3", "mobileone", "qatie", "qdr"),
    *("repvgg", "resnet", "shufflenet_v2", "unet"),
)
DETECTED, LOCALIZED = 0.99, 0.95
"""Parts of the faults that must be found, and named."""

READERS: dict[tuple[str, str], type[QdqFile] | type[TfliteFile]] = {
    ("onnx", "int8"): QdqFile,
    ("onnx", "float"): FloatFile,
    ("tflite", "int8"): TfliteFile,
}
"""Backend and kind of file -> what finds faults in it."""


@dataclass(frozen=True)
class Outcome:
    """What a check made of one fault.

    Attributes:
        network: whose file it was planted in.
        backend: that wrote the file.
        file: its kind, int8 or float.
        kind: of the fault.
        place: of the fault.
        loaded: whether the runtime takes the file at all.
        detected: whether the check failed.
        named: the first node named, or the empty string.
        blamed: the nodes that would have been right.
    """

    network: str
    backend: str
    file: str
    kind: str
    place: str
    loaded: bool
    detected: bool
    named: str
    blamed: frozenset[str]

    @property
    def localized(self) -> bool:
        """Whether the right node was named."""
        return self.detected and self.named in self.blamed


@cache
def bundle_of(network: str, backend: str) -> Path:
    """A good bundle, made once in each process."""
    torch.manual_seed(0)
    module = importlib.import_module(f"tests.networks.{network}").small()
    x = torch.rand(1, 3, 64, 64)
    out = Path(tempfile.mkdtemp(prefix="fuseq.faults.")) / network
    fuseq.lower(
        module, x, backend=backend, out=out, calibration=[x, torch.rand_like(x)], check=False
    )
    return out


@cache
def faults_of(network: str, backend: str, kind: str) -> tuple[Fault, ...]:
    """Every fault that can be planted in a network's file of a kind."""
    bundle = read_bundle(bundle_of(network, backend))
    program, file = bundle.lowered_program(), bundle.file(kind)
    assert program is not None
    assert file is not None
    found = READERS[backend, kind](file.read_bytes(), program).faults()
    return tuple(replace(f, blamed=with_layers(f.blamed, program)) for f in found)


def planted(network: str, backend: str, kind: str, fault: Fault, place: Path) -> Path:
    """A copy of the bundle with the fault in a file, and that file's hash in its manifest."""
    wrong = Path(shutil.copytree(bundle_of(network, backend), place / "wrong"))
    file = read_bundle(wrong).file(kind)
    assert file is not None
    file.write_bytes(fault.plant(file.read_bytes()))
    manifest = json.loads((wrong / MANIFEST).read_text())
    for entry in manifest["files"]:
        entry["sha256"] = sha256(wrong / entry["path"])
    (wrong / MANIFEST).write_text(json.dumps(manifest))
    return wrong


def outcome(network: str, backend: str, kind: str, fault: Fault) -> Outcome:
    """Plant a fault and check the bundle."""
    told = partial(Outcome, network, backend, kind, fault.kind, fault.place)
    with tempfile.TemporaryDirectory() as place:
        try:
            result = fuseq.check(planted(network, backend, kind, fault, Path(place)))
        except fuseq.FuseqError:
            return told(False, True, "", fault.blamed)
    first = result.first_divergence
    return told(True, not result.passed, first.node if first else "", fault.blamed)


def outcomes(task: tuple[str, str, str, int, int]) -> list[Outcome]:
    """So many outcomes of one file; faults that cannot be loaded are replaced by others."""
    network, backend, kind, count, seed = task
    found: list[Outcome] = []
    drawn = spread(faults_of(network, backend, kind), 3 * count, seed)
    while drawn and sum(o.loaded for o in found) < count:
        found.append(outcome(network, backend, kind, drawn.pop(0)))
    return found


def alarms(task: tuple[str, str, int, int]) -> list[str]:
    """Failing checks of a clean bundle on fresh inputs of several ranges."""
    network, backend, count, seed = task
    found = []
    for index in range(count):
        random = np.random.default_rng((seed, index))
        low, high = sorted(random.uniform(-0.2, 1.2, 2))
        x = random.uniform(low, high, (1, 3, 64, 64)).astype(np.float32)
        result = fuseq.check(bundle_of(network, backend), inputs=[(x,)])
        failed = [check for check in result.checks if not check.passed]
        found += [f"alarm: {network} {backend} {seed} {index}: {check}" for check in failed]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__)
    parser.add_argument("--faults", type=int, default=600)
    parser.add_argument("--clean", type=int, default=1000)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    places = [(n, *place) for n in options.networks for place in READERS]
    bundles = list(dict.fromkeys(place[:2] for place in places))
    share, runs = -(-options.faults // len(places)), -(-options.clean // len(bundles))
    wrong = [(*place, share, options.seed + i) for i, place in enumerate(places)]
    clean = [(*bundle, runs, options.seed + i) for i, bundle in enumerate(bundles)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.jobs, initializer=partial(torch.set_num_threads, 1)) as pool:
        found: list[Outcome] = []
        for batch in pool.imap_unordered(outcomes, wrong):
            found += batch
            print(f"{len(found)} faults", file=sys.stderr, flush=True)
        false = [alarm for batch in pool.imap_unordered(alarms, clean) for alarm in batch]
    print(summary(found, false, runs * len(bundles)), flush=True)
    print(f"{time.perf_counter() - start:.0f} s")
    loaded = [o for o in found if o.loaded]
    enough, named = (
        _detected(loaded) >= 0.99 * len(loaded),
        _localized(loaded) >= 0.95 * len(loaded),
    )
    return int(not (enough and named and not false and len(loaded) >= options.faults))


def summary(found: Sequence[Outcome], false: Sequence[str], clean: int) -> str:
    """The figures, and every fault that was missed or blamed on another node."""
    loaded = [o for o in found if o.loaded]
    lines = ["| fault | planted | detected | localized |", "|---|---|---|---|"]
    for kind in sorted({o.kind for o in loaded}):
        group = [o for o in loaded if o.kind == kind]
        lines.append(f"| {kind} | {len(group)} | {_detected(group)} | {_localized(group)} |")
    detected, localized = _detected(loaded) / len(loaded), _localized(loaded) / len(loaded)
    files = {(o.network, o.backend, o.file) for o in loaded}
    lines += [
        f"| all | {len(loaded)} | {_detected(loaded)} | {_localized(loaded)} |",
        "",
        f"{len(loaded)} faults in {len(files)} files of {len({n for n, *_ in files})} networks: "
        f"{detected:.1%} detected, {localized:.1%} localized; "
        f"{len(found) - len(loaded)} more were refused by the runtime.",
        f"{len(false)} alarms in {clean} clean runs.",
    ]
    lines += [f"missed: {o}" for o in loaded if not o.detected]
    lines += [f"elsewhere: {o}" for o in loaded if o.detected and not o.localized]
    return "\n".join([*lines, *false])


def _detected(outcomes: Sequence[Outcome]) -> int:
    return sum(o.detected for o in outcomes)


def _localized(outcomes: Sequence[Outcome]) -> int:
    return sum(o.localized for o in outcomes)


if __name__ == "__main__":
    sys.exit(main())
