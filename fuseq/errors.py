"""One error type for everything a user can mend, and the table of its codes.

A code never changes its meaning; `docs/errors.md` has one section for each, with failing and
mended input. A bug of ours is not a `FuseqError`: it keeps its traceback.
"""

from __future__ import annotations

import unicodedata

USAGE, REFUSED, GATE_FAILED, TOOL_MISSING = 2, 3, 1, 4

CODES: dict[str, tuple[str, int]] = {
    "FQ001": ("target not found or not of a known form", USAGE),
    "FQ002": ("no get_model in the target", USAGE),
    "FQ003": ("the user's code raised", USAGE),
    "FQ004": ("weights do not match the model", USAGE),
    "FQ005": ("example inputs missing or of the wrong shape", USAGE),
    "FQ006": ("calibration data missing, empty or unreadable", USAGE),
    "FQ007": ("unknown pass, backend or option value", USAGE),
    "FQ008": ("output exists or cannot be written", USAGE),
    "FQ009": ("nothing was compared", USAGE),
    "FQ010": ("two distributions register the same name", USAGE),
    "FQ011": ("a plugin cannot be loaded", USAGE),
    "FQ012": ("bad options", USAGE),
    "FQ013": ("not a readable artifact or bundle", USAGE),
    "FQ014": ("a program cannot be written to a file", REFUSED),
    "FQ101": ("the model cannot be captured as a graph", REFUSED),
    "FQ102": ("the model raised on its example inputs", REFUSED),
    "FQ103": ("weights or outputs are not finite", REFUSED),
    "FQ104": ("the captured program does not compute what the model computes", REFUSED),
    "FQ201": ("a pass was run without what it requires", REFUSED),
    "FQ202": ("a pass needs data and was given none", USAGE),
    "FQ203": ("a pass left a malformed graph", REFUSED),
    "FQ204": ("a pass changed the program's interface", REFUSED),
    "FQ205": ("a pass did not establish what it ensures", REFUSED),
    "FQ206": ("a pass raised", REFUSED),
    "FQ301": ("a pass broke its numeric promise", GATE_FAILED),
    "FQ302": ("a check failed its gate", GATE_FAILED),
    "FQ303": ("a compiled graph computes in float", GATE_FAILED),
    "FQ304": ("a compiled file is not what was asked for", GATE_FAILED),
    "FQ401": ("a value cannot be quantized", REFUSED),
    "FQ402": ("training left the finite numbers", REFUSED),
    "FQ403": ("branches would be trained apart and shipped together", REFUSED),
    "FQ404": ("ranks of a distributed run disagree", REFUSED),
    "FQ405": ("the program was quantized for another target", REFUSED),
    "FQ501": ("the backend cannot lower the program", REFUSED),
    "FQ502": ("a backend's tool is missing or incompatible", TOOL_MISSING),
    "FQ503": ("this machine cannot run a backend's tool", TOOL_MISSING),
    "FQ504": ("the target's own compiler refuses the file", REFUSED),
    "FQ505": ("a backend's tool crashed or failed", TOOL_MISSING),
    "FQ506": ("a backend's tool ran out of time", TOOL_MISSING),
    "FQ507": ("a backend made a file that breaks a rule of its format", REFUSED),
}


def first_line(error: BaseException) -> str:
    """First line of what an exception says, or its type where it says nothing."""
    try:
        said = str(error).strip()
    except Exception:  # the user's own, whose __str__ fails
        said = ""
    return (said or type(error).__name__).splitlines()[0]


def one_line(text: str) -> str:
    """Text of a model in one line, without what could start a line of its own or hide a part.

    Control and format characters, separators of lines and halves of surrogates become spaces.
    """
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(" " if unicodedata.category(c) in hidden else c for c in text)


class FuseqError(Exception):
    """Something the user can mend: a code, what happened, where, why, and the fix.

    Attributes:
        code: a key of `CODES`.
        what: one sentence, with the quoted name and the numbers.
        where: node, file:line or argument, if known.
        why: the cause, if it is not in `what`.
        fix: what to do.
        exit_code: process exit status for this code.
    """

    def __init__(
        self,
        code: str,
        what: str,
        *,
        where: str | None = None,
        why: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.code, self.what, self.where, self.why, self.fix = code, what, where, why, fix
        self.exit_code = CODES[code][1]
        super().__init__(self.render())

    def render(self) -> str:
        """The error as the command line prints it."""
        lines = [f"error[{self.code}]: {self.what}"]
        if self.where:
            lines.append(f"  --> {self.where}")
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  help: {self.fix}")
        return "\n".join(lines)
