"""`fuseq report`: one page about a bundle, and the same for viewers of model files."""

from __future__ import annotations

import shlex
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from fuseq.bundle import read_bundle
from fuseq.calibration import read_arrays
from fuseq.cli.progress import progress
from fuseq.cli.streams import Result, message
from fuseq.report.find import find
from fuseq.report.write import default_page, require_page, write


def report(
    path: Path,
    *,
    out: Path | None,
    inputs: Path | None,
    overlays: Sequence[str],
    open_page: bool,
    quiet: bool,
) -> Result:
    """Write the report of a bundle.

    Args:
        path: of the bundle.
        out: where the page goes; beside the bundle by default.
        inputs: a `.npz` file to measure on instead of what the bundle keeps.
        overlays: for which other viewers files are written too.
        open_page: show the page in a browser.
        quiet: show no progress.

    Raises:
        FuseqError: as reading the bundle, running its files and writing raise.
    """
    start = time.perf_counter()
    page = default_page(path) if out is None else out
    require_page(page)
    bundle = read_bundle(path)
    given = tuple(read_arrays(inputs).values()) if inputs else None
    with progress(quiet, {}) as tell:
        findings = find(bundle, given, tell)
        tell("draw", 0)
        written = write(findings, page, overlays)
    verdict = findings.verdict
    failed = ", ".join(row.id for row in verdict.failed)
    message(f"failed: {failed}" if failed else f"{len(verdict.rows)} checks, no limit broken")
    file = bundle.file("int8")
    if "model-explorer" in overlays and file is not None:
        data = ",".join(str(path) for path in written.overlays if path.suffix == ".json")
        reader = ["--extensions=model_explorer_onnx"] if file.suffix == ".onnx" else []
        message(shlex.join(["model-explorer", str(file), *reader, f"--node_data_paths={data}"]))
    if open_page:
        webbrowser.open(page.resolve().as_uri())
    document = {
        "report": str(page),
        "overlays": [str(file) for file in written.overlays],
        "passed": verdict.passed,
        "checks": [
            {"id": row.id, "state": row.state, "metrics": dict(row.measured)}
            for row in verdict.rows
        ],
        "bytes": page.stat().st_size,
        "seconds": round(time.perf_counter() - start, 3),
    }
    return Result(document, str(page))
