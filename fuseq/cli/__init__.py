"""The command line. Torch is imported by the commands that need it, when they run."""

from __future__ import annotations

from fuseq.cli import streams
from fuseq.cli.commands import app


def main() -> None:
    """Run the command of `sys.argv` and exit with its status."""
    streams.claim_stdout()
    app(prog_name="fuseq")
