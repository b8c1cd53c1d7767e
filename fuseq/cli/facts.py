"""`fuseq inspect` of a model: what can be said of it without data, as one document."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fuseq import ops, plugins
from fuseq.affine.islands import Island, islands
from fuseq.affine.prove import Certificate
from fuseq.affine.refusal import Refusal
from fuseq.api import Progress, fusion_warnings, run_passes, structure_counts
from fuseq.errors import FuseqError
from fuseq.large_images import capture_shapes
from fuseq.macs import macs
from fuseq.memory import largest_value, peak_bytes, value_bytes, weight_bytes
from fuseq.outlook import Outlook, outlook
from fuseq.pass_spec import parse_passes
from fuseq.program import Program
from fuseq.receptive_field import ReceptiveField, receptive_fields
from fuseq.target import Target


@dataclass(frozen=True)
class Facts:
    """What was found.

    Attributes:
        program: as captured.
        fused: after `fuse-affine`.
        counts: how often each op stands in the program, most frequent first.
        macs: multiply-accumulates of each op.
        fields: receptive fields.
        islands: affine operations that stay apart.
        outlooks: what each backend would say, or the error it raised, by its name.
    """

    program: Program
    fused: Program
    counts: dict[str, int]
    macs: dict[str, int]
    fields: list[ReceptiveField]
    islands: list[Island]
    outlooks: dict[str, Outlook | FuseqError]

    @property
    def regions(self) -> list[Certificate]:
        """What became one layer."""
        return list(self.fused.details(Certificate))

    @property
    def refusals(self) -> list[Refusal]:
        """What did not."""
        return list(self.fused.details(Refusal))


def find_facts(target: Target, progress: Progress) -> Facts:
    """Capture and fuse a model, and ask every backend about it.

    Raises:
        FuseqError: as capture and fusion raise.
    """
    progress("capture", 0)
    program = capture_shapes(target.model, target.example_inputs)
    fused = run_passes(parse_passes("fuse-affine"), program, progress, prove=False)
    work: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for node in program.graph.nodes:
        name = ops.name_of(program, node)
        if name not in ("input", "output", "constant", "shape"):
            counts[name] += 1
            work[name] += macs(program, node)
    outlooks: dict[str, Outlook | FuseqError] = {}
    for name in plugins.available("backends"):
        progress(name, 0)
        try:
            outlooks[name] = outlook(fused, plugins.load("backends", name)())
        except FuseqError as error:
            outlooks[name] = error
    return Facts(
        program,
        fused,
        dict(counts.most_common()),
        {name: work[name] for name in counts},
        receptive_fields(program),
        islands(fused, fused.details(Refusal)),
        outlooks,
    )


def document(facts: Facts) -> dict[str, Any]:
    """The facts for `--json`."""
    program, largest = facts.program, largest_value(facts.program)
    changes = structure_counts(program, facts.fused)
    return {
        "kind": "model",
        "capture": program.origin.front_end,
        "ops": facts.counts,
        "parameters": changes["parameters"]["before"],
        "macs": {"total": changes["macs"]["before"], "by_op": facts.macs},
        "memory": {
            "weight_bytes": weight_bytes(program),
            "peak_bytes": peak_bytes(program),
            "largest_value": {
                "node": largest.name,
                "source": program.source(largest),
                "shape": list(program.shape(largest)),
                "bytes": value_bytes(program, largest),
            },
        },
        "inputs": _interface(program, program.input_names, program.inputs()),
        "outputs": _interface(program, program.output_names, program.outputs()),
        "receptive_fields": [
            {
                **dataclasses.asdict(field),
                "stride": [None if step is None else float(step) for step in field.stride],
            }
            for field in facts.fields
        ],
        "fused": changes,
        "regions": [dataclasses.asdict(region) for region in facts.regions],
        "refused": [dataclasses.asdict(refusal) for refusal in facts.refusals],
        "affine_islands": [dataclasses.asdict(island) for island in facts.islands],
        "targets": [_target(name, found) for name, found in facts.outlooks.items()],
        "notes": list(program.origin.notes),
        "warnings": fusion_warnings(program, facts.fused),
    }


def _target(name: str, found: Outlook | FuseqError) -> dict[str, Any]:
    if isinstance(found, FuseqError):
        return {"backend": name, "error": {"code": found.code, "what": found.what}}
    return dataclasses.asdict(found)


def _interface(program: Program, names: tuple[str, ...], nodes: list[Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(program.shape(node))}
        for name, node in zip(names, nodes, strict=True)
    ]
