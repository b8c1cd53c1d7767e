"""Commands that read a model: their options, and nothing that takes time to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from fuseq.cli.options import (
    Arguments,
    Calibration,
    Chips,
    Debug,
    Inputs,
    Json,
    Passes,
    Quiet,
    Samples,
    Target,
    Weights,
)
from fuseq.cli.progress import starting
from fuseq.cli.streams import Result, answer

app = typer.Typer()


@app.command("lower")
def lower(
    *,
    target: Target,
    backend: Annotated[str, typer.Option("-b", "--backend", help="Name, or name{option=value}.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the bundle goes.")],
    chip: Chips,
    passes: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Passes instead of the backend's own; without quantize the bundle is float.",
        ),
    ] = None,
    calib: Calibration = None,
    samples: Samples = 128,
    observer: Annotated[
        str | None,
        typer.Option(help="minmax, moving-average, percentile or mse. [default: minmax]"),
    ] = None,
    weights: Weights = None,
    arg: Arguments,
    input: Inputs,
    force: Annotated[bool, typer.Option("--force", help="Replace an older bundle.")] = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fuse, quantize, write and check: TARGET becomes a bundle for a backend."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import models

        return models.lower(
            models.Source(target, tuple(arg), tuple(input), weights, calib, samples),
            backend=backend,
            chips=chip,
            out=out,
            passes=passes,
            observer=observer,
            force=force,
            quiet=quiet,
        )

    answer("lower", work, as_json=json, debug=debug)


@app.command("fuse")
def fuse(
    *,
    target: Target,
    passes: Passes = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of each region why it was fused or not.")
    ] = False,
    calib: Calibration = None,
    samples: Samples = 128,
    weights: Weights = None,
    arg: Arguments,
    input: Inputs,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Fuse the branches of TARGET, and show what became of them and how exact it is."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import models

        return models.fuse(
            models.Source(target, tuple(arg), tuple(input), weights, calib, samples),
            passes=passes,
            explain=explain,
            quiet=quiet,
        )

    answer("fuse", work, as_json=json, debug=debug)


@app.command("ptq")
def ptq(
    *,
    target: Target,
    backend: Annotated[str, typer.Option("-b", "--backend", help="Name, or name{option=value}.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the bundle goes.")],
    calib: Calibration = None,
    samples: Samples = 128,
    observer: Annotated[
        str, typer.Option(help="minmax, moving-average, percentile or mse.")
    ] = "mse",
    aids: Annotated[
        str,
        typer.Option(metavar="SPEC", help="Passes around quantize: name,name{option=value}."),
    ] = "equalize,round-weights",
    keep: Annotated[
        list[str],
        typer.Option(
            metavar="NODE|worst:N",
            help="Nodes that do not get 8 bits, or how many of those that cost most.",
            default_factory=list,
            show_default=False,
        ),
    ],
    form: Annotated[
        Literal["float", "int16"], typer.Option("--as", help="What they get instead.")
    ] = "float",
    weights: Weights = None,
    arg: Arguments,
    input: Inputs,
    force: Annotated[bool, typer.Option("--force", help="Replace an older bundle.")] = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantize TARGET as well as data alone can, and show its values that fare worst."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import models
            from fuseq.cli import ptq as command

        return command.ptq(
            models.Source(target, tuple(arg), tuple(input), weights, calib, samples),
            backend=backend,
            out=out,
            aids=aids,
            observer=observer,
            keep=keep,
            form=form,
            force=force,
            quiet=quiet,
        )

    answer("ptq", work, as_json=json, debug=debug)


@app.command("qat")
def qat(
    *,
    target: Target,
    fit: Annotated[
        str, typer.Option(metavar="FILE.py[:FUNCTION]", help="Your loop: fit(model, curriculum).")
    ],
    backend: Annotated[str, typer.Option("-b", "--backend", help="Name, or name{option=value}.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where the bundle goes.")],
    stages: Annotated[
        str, typer.Option(metavar="N,N,N", help="Epochs of observe, tune and freeze.")
    ] = "30,60,60",
    calib: Calibration = None,
    samples: Samples = 128,
    observer: Annotated[
        str, typer.Option(help="Of the first ranges: minmax, moving-average, percentile or mse.")
    ] = "minmax",
    learn_scales: Annotated[
        bool, typer.Option("--learn-scales", help="Train scales by gradients (LSQ).")
    ] = False,
    unfused: Annotated[
        bool,
        typer.Option(
            "--unfused",
            help="Train branches apart and fuse afterwards: slower, and the grids trained on are "
            "not those that ship. The baseline to compare with.",
        ),
    ] = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Continue from DIR.qat.pt.")
    ] = None,
    weights: Weights = None,
    arg: Arguments,
    input: Inputs,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an older bundle and training."),
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train TARGET in the integers that ship, with a loop of yours, and write the bundle."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import models, training

        return training.qat(
            models.Source(target, tuple(arg), tuple(input), weights, calib, samples),
            fit=fit,
            backend=backend,
            out=out,
            stages=stages,
            observer=observer,
            learn_scales=learn_scales,
            unfused=unfused,
            resume=resume,
            force=force,
            quiet=quiet,
        )

    answer("qat", work, as_json=json, debug=debug)


@app.command("inspect")
def inspect(
    *,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="A target, an .onnx file or a bundle.")
    ],
    graph: Annotated[bool, typer.Option("--graph", help="Print each node.")] = False,
    weights: Weights = None,
    arg: Arguments,
    input: Inputs,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say of TARGET what can be said without data: ops, costs, fusion, what backends refuse."""

    def work() -> Result:
        with starting(quiet):
            from fuseq.cli import inspection

        return inspection.inspect(target, tuple(arg), tuple(input), weights, graph, quiet)

    answer("inspect", work, as_json=json, debug=debug)
