"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
