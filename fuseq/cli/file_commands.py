"""Commands that read files and bundles: their options, and nothing that takes time to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fuseq.cli.options import Arguments, Debug, Inputs, Json, Quiet, Weights
from fuseq.cli.streams import Result, answer

app = typer.Typer()


@app.command("check")
def check(
    *,
    reference: Annotated[
        str, typer.Argument(metavar="TARGET", help="A target, an .onnx file or a bundle.")
    ],
    candidate: Annotated[
        str | None, typer.Argument(help="The same; none for a bundle, which is checked in itself.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .npz with one array for each input.")
    ] = None,
    max_rel: Annotated[
        float | None, typer.Option(min=0.0, help="Gate of float against float.")
    ] = None,
    min_sqnr_db: Annotated[
        float | None, typer.Option(help="Gate of float against int8; without it only shown.")
    ] = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the first node that differs.")
    ] = False,
    weights: Weights = None,
    arg: Arguments,
    input: Inputs,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two models, files or bundles on the same inputs."""

    def work() -> Result:
        from fuseq.cli import models

        return models.check(
            models.Source(reference, tuple(arg), tuple(input), weights),
            candidate,
            inputs=inputs,
            gates={"max_rel": max_rel, "sqnr_db": min_sqnr_db},
            bisect=bisect,
            quiet=quiet,
        )

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
        from fuseq.cli import bench as command

        return command.bench(files, input, runs=runs, warmup=warmup, threads=threads, quiet=quiet)

    answer("bench", work, as_json=json, debug=debug)
