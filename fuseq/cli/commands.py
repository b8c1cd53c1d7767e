"""The command line: every group of commands under one name."""

from __future__ import annotations

from typing import Annotated

import typer

import fuseq
from fuseq.cli import file_commands, model_commands, project_commands, registry_commands

app = typer.Typer(
    help="From a trained PyTorch CNN to the INT8 file that ships, with every step proved.",
    epilog="TARGET is model.py[:factory] or package.module:factory; its code is executed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (model_commands, file_commands, registry_commands, project_commands):
    app.add_typer(group.app)


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
