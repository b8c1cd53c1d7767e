"""Commands that read files and bundles: their options, and nothing that takes time to import."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fuseq.cli.options import Arguments, Debug, Inputs, Json, Quiet, Weights
from fuseq.cli.progress import starting
from fuseq.cli.streams import Result, answer

app = typer.Typer()


class Viewer(StrEnum):
    """Other viewers that take what a report measures."""

    MODEL_EXPLORER = "model-explorer"
    NETRON = "netron"


@app.command("check")
def check(
    *,
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="[REF [CANDIDATE]...]",
            help="Targets, .onnx, .tflite or .bin files, or bundles. A bundle alone is checked in "
            "itself; without any, the checks of fuseq.check.toml.",
            default_factory=list,
            show_default=False,
        ),
    ],
    file: Annotated[
        Path | None, typer.Option("-f", "--file", metavar="FILE", help="A thresholds file.")
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE",
            help="A .npz file, a folder of images, or natural, range, edges, constant. "
            "[default: recorded ones]",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Number of generated batches, or of images.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of generated inputs.")] = None,
    layout: Annotated[
        list[str],
        typer.Option(
            metavar="[FILE=]LAYOUT",
            help="nhwc or nchw: how images lie in a file that does not say it.",
            default_factory=list,
            show_default=False,
        ),
    ],
    max_rel: Annotated[
        float | None, typer.Option(min=0.0, help="Gate of float against float.")
    ] = None,
    min_sqnr_db: Annotated[
        float | None, typer.Option(help="Gate of float against int8; without it only shown.")
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Show how each value fares, worst first.")
    ] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first node that differs.")
    ] = False,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write JUnit XML.", dir_okay=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page of Markdown.", dir_okay=False)
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Annotate the run on GitHub, and add to its summary.")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Write what was measured into the thresholds file.")
    ] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Artifacts only, on recorded inputs: for a commit hook.")
    ] = False,
    weights: Weights = None,
    arg: Arguments,
    input: Inputs,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare models, files or bundles on the same inputs."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import checks

        options = {
            "inputs": inputs,
            "samples": samples,
            "seed": seed,
            "max_rel": max_rel,
            "sqnr_db": min_sqnr_db,
            "layout": layout,
            "arg": arg,
            "input": input,
            "weights": weights,
        }
        given = {name: value for name, value in options.items() if value not in (None, [])}
        requests = checks.requests_of(file, sides, given, fast)
        thresholds = checks.thresholds_file(file, sides) if update else None
        reports = checks.Reports(junit, markdown, github, thresholds)
        return checks.check(requests, reports, layers=layers, bisect=bisect, quiet=quiet)

    answer("check", work, as_json=json, debug=debug)


@app.command("bench")
def bench(
    *,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="An .onnx or .tflite file, or a bundle.")
    ],
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each file.")] = 100,
    warmup: Annotated[int, typer.Option(min=0, help="Runs of each file before those.")] = 10,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the runtimes. [default: 1]")
    ] = None,
    input: Inputs,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time files on this machine, in turn, and compare each with the first."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import bench as command

        return command.bench(files, input, runs=runs, warmup=warmup, threads=threads, quiet=quiet)

    answer("bench", work, as_json=json, debug=debug)


@app.command("report")
def report(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that lower wrote.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="[default: BUNDLE.report.html]"),
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .npz with one array for each input. [default: what the bundle keeps]",
        ),
    ] = None,
    overlay: Annotated[
        list[Viewer],
        typer.Option(
            help="Write files for another viewer too.", default_factory=list, show_default=False
        ),
    ],
    show: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page about a bundle: checks, images, graphs, values, costs."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import report as command

        return command.report(
            bundle, out=out, inputs=inputs, overlays=overlay, open_page=show, quiet=quiet
        )

    answer("report", work, as_json=json, debug=debug)
