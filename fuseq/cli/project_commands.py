"""Commands that start a project."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fuseq.cli.options import Debug, Json
from fuseq.cli.streams import Result, answer

app = typer.Typer()


@app.command("init")
def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Made if need be.")] = Path(),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model file, thresholds for fuseq check, and a workflow that runs it on GitHub."""

    def work() -> Result:
        from fuseq.cli import starter

        return starter.init(directory)

    answer("init", work, as_json=json, debug=debug)
