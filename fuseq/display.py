"""How programs, bundles and results show themselves: a line in a terminal, tables in a notebook.

Names, sources and notes come from a user's model or from a file: every text that becomes HTML goes
through `Markup.format`, which escapes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from fuseq import ops
from fuseq.macs import total_macs

if TYPE_CHECKING:
    from fuseq.bundle import Bundle
    from fuseq.equivalence.result import Check, CheckResult
    from fuseq.program import Program

LARGEST_GRAPH = 400
"""Operations above which a notebook shows no drawing: it would be many screens long."""


def program_line(program: Program) -> str:
    """`<Program Net: 12 operations (4 conv2d, ...), 1,234 parameters, int8 for onnx>`."""
    counted = _operations(program)
    most = ", ".join(f"{count} {name}" for name, count in counted.most_common(3))
    rest = ", ..." if len(counted) > 3 else ""
    table = program.quantization
    form = f"integers for {table.profile.name}" if table else "float"
    return (
        f"<Program {type(program.origin.module).__name__}: {counted.total()} operations "
        f"({most}{rest}), {_parameters(program):,} parameters, {form}>"
    )


def bundle_line(bundle: Bundle) -> str:
    """`<Bundle build/sr for onnx: model.int8.qdq.onnx (int8), ...; 7 checks passed>`."""
    files = ", ".join(f"{entry['path']} ({entry['kind']})" for entry in bundle.manifest["files"])
    checked = f"; {_verdict(bundle.result)}" if bundle.result else ""
    return f"<Bundle {bundle.path} for {bundle.manifest.get('backend')}: {files}{checked}>"


def result_line(result: CheckResult) -> str:
    """`<CheckResult: 7 checks passed>`, or how many failed and where it starts."""
    return f"<CheckResult: {_verdict(result)}>"


def program_html(program: Program) -> str:
    """A table of facts, and the graph."""
    counted = _operations(program)
    origin, table = program.origin, program.quantization
    inputs = zip(program.input_names, program.inputs(), strict=True)
    outputs = zip(program.output_names, program.outputs(), strict=True)
    facts = {
        "model": type(origin.module).__name__,
        "captured with": {"fx": "torch.fx", "export": "torch.export"}.get(origin.front_end, "?"),
        "inputs": ", ".join(f"{name} {_sizes(program.shape(node))}" for name, node in inputs),
        "outputs": ", ".join(f"{name} {_sizes(program.shape(node))}" for name, node in outputs),
        "operations": ", ".join(f"{count} {name}" for name, count in counted.most_common()),
        "parameters": f"{_parameters(program):,}",
        "multiply-accumulates": f"{total_macs(program):,}",
        "passes": ", ".join(f"{step.name} ({step.rewrites})" for step in program.history),
        "quantized for": table.profile.name if table else "",
    }
    rows = [(name, text) for name, text in facts.items() if text]
    return str(_table(("", ""), rows) + _graph(program, counted.total()))


def bundle_html(bundle: Bundle) -> str:
    """Its files, its interface, and the checks of its lowering."""
    manifest = bundle.manifest
    facts = [("bundle", bundle.path), ("backend", manifest.get("backend"))]
    for kind in ("inputs", "outputs"):
        facts += [(kind[:-1], _interface(entry)) for entry in manifest[kind]]
    files = [(entry["path"], entry["kind"], entry["sha256"][:16]) for entry in manifest["files"]]
    shown = _table(("", ""), facts) + _table(("file", "kind", "sha256"), files)
    return str(shown) + (result_html(bundle.result) if bundle.result else "")


def result_html(result: CheckResult) -> str:
    """One row for each check, and the first wrong node."""
    head = ("check", "pair", "measured", "allowed", "", "note")
    verdict = Markup("<p><b>{}</b></p>").format(_verdict(result))
    return str(_table(head, [_row(check) for check in result.checks]) + verdict)


def _row(check: Check) -> tuple[str, ...]:
    mark = "reported" if not check.gate else "passed" if check.passed else "FAILED"
    measured, allowed = _numbers(check.metrics), _numbers(check.gate)
    return (check.id, check.pair, measured, allowed, mark, check.note)


def _verdict(result: CheckResult) -> str:
    failed = [check for check in result.checks if not check.passed]
    if not result.checks:
        return "nothing was compared"
    if not failed:
        return f"{len(result.checks)} checks passed"
    first = result.first_divergence
    where = f", first wrong node `{first.node}` {first.source}".rstrip() if first else ""
    return f"{len(failed)} of {len(result.checks)} checks failed, first '{failed[0].id}'{where}"


def _operations(program: Program) -> Counter[str]:
    nodes = [n for n in program.graph.nodes if n.op in ("call_module", "call_function")]
    return Counter(ops.name_of(program, node) for node in nodes)


def _parameters(program: Program) -> int:
    return sum(p.numel() for p in program.module.parameters())


def _sizes(shape: Iterable[object]) -> str:
    return "x".join(map(str, shape)) or "a number"


def _interface(entry: Mapping[str, Any]) -> str:
    grid = entry.get("grid")
    on = f", scale {grid['scale']:.6g}, zero point {grid['zero_point']}" if grid else ""
    return f"{entry['name']}: {entry.get('dtype')} {_sizes(entry['shape'])}{on}"


def _numbers(values: Mapping[str, float | int]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in values.items())


def _graph(program: Program, operations: int) -> Markup:
    from fuseq.report.drawing import program_svg

    if operations > LARGEST_GRAPH:
        return Markup("<p>no drawing of {} operations</p>").format(operations)
    drawing = Markup(program_svg(program))  # escaped where it is made
    return Markup("<details><summary>graph</summary>{}</details>").format(drawing)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    named = Markup("").join(Markup("<th>{}</th>").format(name) for name in head)
    shown = Markup("<thead><tr>{}</tr></thead>").format(named) if any(head) else Markup("")
    body = Markup("").join(
        Markup("<tr>{}</tr>").format(
            Markup("").join(Markup("<td style='text-align:left'>{}</td>").format(c) for c in row)
        )
        for row in rows
    )
    return Markup("<table>{}<tbody>{}</tbody></table>").format(shown, body)
