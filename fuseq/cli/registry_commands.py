"""Commands that read what is installed: their options."""

from __future__ import annotations

from typing import Annotated

import typer

from fuseq.cli.options import Debug, Json, Name
from fuseq.cli.progress import starting
from fuseq.cli.streams import Result, answer

app = typer.Typer()


@app.command("passes")
def passes(name: Name = None, json: Json = False, debug: Debug = False) -> None:
    """List the registered passes, or describe one."""

    def work() -> Result:
        from fuseq.cli import registry

        with starting():
            return registry.describe("passes", name) if name else registry.listing("passes")

    answer("passes", work, as_json=json, debug=debug)


@app.command("backends")
def backends(name: Name = None, json: Json = False, debug: Debug = False) -> None:
    """List the registered backends, or describe one."""

    def work() -> Result:
        from fuseq.cli import registry

        with starting():
            return registry.describe("backends", name) if name else registry.listing("backends")

    answer("backends", work, as_json=json, debug=debug)


@app.command("doctor")
def doctor(
    backend: Annotated[
        str | None, typer.Option("-b", "--backend", metavar="NAME", help="This one alone.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which tools were found, and how to get those that are missing."""

    def work() -> Result:
        from fuseq.cli import registry

        with starting():
            return registry.doctor(backend)

    answer("doctor", work, as_json=json, debug=debug)


@app.command("explain")
def explain(
    code: Annotated[str, typer.Argument(help="Such as FQ101, ring or QNN101.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain the code of an error, or of a reason why something was refused."""

    def work() -> Result:
        from fuseq.cli import registry

        with starting():
            return registry.explain(code)

    answer("explain", work, as_json=json, debug=debug)
