"""`KeptCurriculum`: a training whose state is in a file, so that a failure costs an epoch at most.

The file is kept beside the bundle (`build/sr.qat.pt` for `build/sr`): the model's state dict with
its ranges and grids, and the epoch. What the optimizer remembers is the loop's own.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fuseq.api import Progress
from fuseq.errors import FuseqError, first_line
from fuseq.qat.curriculum import Curriculum
from fuseq.qat.model import QatModel
from fuseq.qat.training import require_finite
from fuseq.weights import load_weights


class KeptCurriculum(Curriculum):
    """A curriculum that keeps the state of the training in a file as each epoch begins.

    Attributes:
        file: of the state.
        kept: whether this run wrote it.
    """

    def __init__(
        self, model: QatModel, lengths: tuple[int, int, int], file: Path, report: Progress
    ) -> None:
        """Plan the three usual stages.

        Args:
            model: prepared.
            lengths: epochs of observe, tune and freeze.
            file: where the state is kept.
            report: called with the stage and the number of epochs done.

        Raises:
            FuseqError: FQ012 for lengths that cannot be meant.
        """
        observe, tune, freeze = lengths
        super().__init__(model, observe=observe, tune=tune, freeze=freeze)
        self.file, self.kept = file, False
        self._report, self._first = report, 0

    def step(self, position: int) -> None:
        """Begin an epoch.

        Raises:
            FuseqError: FQ402 if a parameter is not finite, and as `Curriculum.step`.
        """
        super().step(position)
        if position > self._first:  # before the first one there is nothing to lose
            self.keep()
        self._report(self.stage.name, position)

    def keep(self) -> None:
        """Write the state; the file is never half-written.

        Raises:
            FuseqError: FQ402 for a state that is not worth keeping, FQ008 if it cannot be written.
        """
        require_finite(self.model, {})
        state = {"state_dict": self.model.state_dict(), "curriculum": self.state_dict()}
        part = self.file.with_name(f"{self.file.name}.part")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(state, part)
            os.replace(part, self.file)
            self.kept = True
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            raise FuseqError(
                "FQ008", f"cannot write '{self.file}': {first_line(error)}", fix="choose another -o"
            ) from error

    def resume(self, file: Path) -> None:
        """Continue from a state that was kept.

        Raises:
            FuseqError: FQ004 if it cannot be read, or is that of another model.
        """
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)["curriculum"]
            self._first = int(state["position"])
        except Exception as error:
            raise FuseqError(
                "FQ004",
                f"'{file}' is no state of a training",
                why=first_line(error),
                fix="--resume takes the .qat.pt file that fuseq qat left beside its bundle",
            ) from error
        load_weights(self.model, file)
        self.load_state_dict(state)
