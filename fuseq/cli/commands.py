"""The commands: their options, and nothing that takes time to import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import fuseq
from fuseq.cli.streams import Result, answer

app = typer.Typer(
    help="From a trained PyTorch CNN to the INT8 file that ships, with every step proved.",
    epilog="TARGET is model.py[:factory] or package.module:factory; its code is executed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="model.py[:factory] or package.module:factory.")
]
Arguments = Annotated[
    list[str],
    typer.Option(
        "--arg",
        metavar="KEY=VALUE",
        help="Argument of the factory.",
        default_factory=list,
        show_default=False,
    ),
]
Chips = Annotated[
    list[str],
    typer.Option(
        "--chip",
        metavar="NAME",
        help="A chip to compile for; once for each.",
        default_factory=list,
        show_default=False,
    ),
]
Inputs = Annotated[
    list[str],
    typer.Option(
        "--input",
        metavar="[NAME:]SHAPE",
        help="Example input, such as 1x3x224x224.",
        default_factory=list,
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None, typer.Option(metavar="FILE", help="State dict: .safetensors, or .pt of tensors.")
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calib",
        metavar="SOURCE",
        help="Image directory, .npz, file.py:function, or random. [default: calibration_data()]",
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Largest number of calibration batches.")]
Passes = Annotated[
    str | None, typer.Option(metavar="SPEC", help="Float passes: name,name{option=value}.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of an error too.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Show no progress.")]
Name = Annotated[str | None, typer.Argument(help="Describe one.", show_default=False)]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fuseq {fuseq.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


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
        from fuseq.cli import inspection

        return inspection.inspect(target, tuple(arg), tuple(input), weights, graph, quiet)

    answer("inspect", work, as_json=json, debug=debug)


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
            gates={"max_rel": max_rel, "min_sqnr_db": min_sqnr_db},
            bisect=bisect,
            quiet=quiet,
        )

    answer("check", work, as_json=json, debug=debug)


@app.command("passes")
def passes(name: Name = None, json: Json = False, debug: Debug = False) -> None:
    """List the registered passes, or describe one."""

    def work() -> Result:
        from fuseq.cli import registry

        return registry.describe("passes", name) if name else registry.listing("passes")

    answer("passes", work, as_json=json, debug=debug)


@app.command("backends")
def backends(name: Name = None, json: Json = False, debug: Debug = False) -> None:
    """List the registered backends, or describe one."""

    def work() -> Result:
        from fuseq.cli import registry

        return registry.describe("backends", name) if name else registry.listing("backends")

    answer("backends", work, as_json=json, debug=debug)


@app.command("doctor")
def doctor(json: Json = False, debug: Debug = False) -> None:
    """Say which tools were found, and how to get those that are missing."""

    def work() -> Result:
        from fuseq.cli import registry

        return registry.doctor()

    answer("doctor", work, as_json=json, debug=debug)


@app.command("explain")
def explain(
    code: Annotated[str, typer.Argument(help="Such as FQ101.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain an error code."""

    def work() -> Result:
        from fuseq.cli import registry

        return registry.explain(code)

    answer("explain", work, as_json=json, debug=debug)
