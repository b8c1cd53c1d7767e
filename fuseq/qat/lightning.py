"""`QATCallback`: a curriculum inside a trainer of `lightning` or `pytorch-lightning`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fuseq.qat.curriculum import Curriculum

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback


class QATCallback(Callback):
    """Begins the stages of a curriculum, and clips weights after each step of the optimizer.

    Its state goes into the trainer's checkpoints.

    Attributes:
        curriculum: of the prepared model that the Lightning module trains.
        by_step: lengths of stages count steps of the optimizer instead of epochs.
    """

    def __init__(self, curriculum: Curriculum, *, by_step: bool = False) -> None:
        super().__init__()
        self.curriculum, self.by_step = curriculum, by_step
        self._clipped_at = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch."""
        if not self.by_step:
            self.curriculum.step(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a step."""
        if self.by_step:
            self.curriculum.step(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Clip weights, if the optimizer moved them after this batch."""
        if trainer.global_step != self._clipped_at:
            self.curriculum.clip_weights()
            self._clipped_at = trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        """That of the curriculum."""
        return self.curriculum.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a curriculum."""
        self.curriculum.load_state_dict(state_dict)
