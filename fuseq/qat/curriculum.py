"""`Curriculum`: what moves when, from the first training step to the file.

Weights that follow ranges and ranges that follow weights do not settle together. So first both
move, then the ranges stand, at last the grids of the weights do too: 30, 60 and 60 epochs in
arXiv 2604.20291.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fuseq.errors import FuseqError
from fuseq.plugins import did_you_mean
from fuseq.qat import distribution
from fuseq.qat.model import QatModel


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: for logs.
        length: number of epochs, or of steps where `Curriculum.step` counts these; positive. The
            last stage goes on for as long as training does.
        observing: activation ranges follow the data, or their scales are learned.
        weight_grids_frozen: weights keep the grids they had when the stage began.
        learning_rate_factor: of the learning rate, at least 0.
        trains: globs over the names of the model's parameters; the others stand still.
    """

    name: str
    length: int
    observing: bool
    weight_grids_frozen: bool
    learning_rate_factor: float = 1.0
    trains: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        """Refuse what cannot be a stage.

        Raises:
            FuseqError: FQ012.
        """
        if self.length < 1:
            raise _bad(f"stage '{self.name}' has length {self.length}", "lengths are at least 1")
        if not self.learning_rate_factor >= 0:
            raise _bad(
                f"stage '{self.name}' has the learning rate factor {self.learning_rate_factor}",
                "0 keeps the weights, 1 is the optimizer's own rate",
            )
        if isinstance(self.trains, str):
            raise _bad(f"stage '{self.name}' trains a string", f"a tuple: ('{self.trains}',)")

    def trains_parameter(self, name: str) -> bool:
        """Whether a parameter of this name is trained."""
        return any(fnmatchcase(name, glob) for glob in self.trains)


class Curriculum:
    """The stages of a prepared model's training.

    Attributes:
        model: the prepared model, whatever it was given wrapped in.
        stages: in order.
        position: epoch or step that was begun last.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        observe: int = 30,
        tune: int = 60,
        freeze: int = 60,
        stages: Sequence[Stage] | None = None,
    ) -> None:
        """Plan the training; nothing changes before the first `step`.

        Args:
            model: as `prepare` gives it, or what holds one: `DistributedDataParallel`, a compiled
                model, a Lightning module.
            observe: length of the first stage: weights and ranges follow the data. 0 leaves a
                stage out.
            tune: of the second: grids of activations stand.
            freeze: of the third: those of weights too.
            stages: instead of these three.

        Raises:
            FuseqError: FQ012 for lengths, globs and models that cannot be meant.
        """
        self.model = _prepared(model)
        self.stages = tuple(_usual(observe, tune, freeze) if stages is None else stages)
        self.position = 0
        self._begun: Stage | None = None
        if not self.stages:
            raise _bad("a curriculum has no stages", "give at least one")
        names = [name for name, _ in self.model.named_parameters()]
        _require_known(self.stages, names)
        wrappers = [m for m in model.modules() if isinstance(m, DistributedDataParallel)]
        if not all(wrapper.find_unused_parameters for wrapper in wrappers):
            _require_all_trained(self.model, self.stages, names)

    @property
    def stage(self) -> Stage:
        """The stage of the current position."""
        return self._at(self.position)

    @property
    def epochs(self) -> range:
        """What is left of the plan, for `step`: from the one begun last to the end of all stages.

        Epochs or steps, as the lengths are meant.
        """
        return range(self.position, sum(stage.length for stage in self.stages))

    @property
    def learning_rate_factor(self) -> float:
        """What to multiply the learning rate by at the current position."""
        return self.stage.learning_rate_factor

    def factor(self, position: int) -> float:
        """The learning rate factor of any epoch or step, as `LambdaLR` asks for it."""
        return self._at(position).learning_rate_factor

    def step(self, position: int) -> None:
        """Begin an epoch or a training step: at a boundary, the next stage.

        Call it on every rank. It may jump, and calling it again changes nothing.

        Args:
            position: absolute index from 0; of epochs or of steps, as the lengths are meant.

        Raises:
            FuseqError: FQ012 for a negative index; FQ404 if ranks disagree when a stage begins.
        """
        if position < 0:
            raise _bad(f"step({position})", "count from 0")
        self.position = position
        if self.stage is not self._begun:
            self._apply(self.stage)
            distribution.require_equal(self.model)
            self._begun = self.stage

    def clip_weights(self) -> None:
        """Cut weights to the range of their grids; call it after each step of the optimizer."""
        self.model.clip_weights()

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes; ranges and grids are in the model's own."""
        return {"position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was called; before or after the model loads its own."""
        self.position = state["position"]
        self._apply(self.stage)
        self._begun = None  # the next `step` asks whether all ranks loaded the same

    def _at(self, position: int) -> Stage:
        for stage in self.stages:
            position -= stage.length
            if position < 0:
                break
        return stage

    def _apply(self, stage: Stage) -> None:
        self.model.stage(observing=stage.observing, weight_grids_frozen=stage.weight_grids_frozen)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(stage.trains_parameter(name))
            parameter.grad = None  # an optimizer moves whatever has one


def _usual(observe: int, tune: int, freeze: int) -> list[Stage]:
    plan = [
        ("observe", observe, True, False),
        ("tune", tune, False, False),
        ("freeze", freeze, False, True),
    ]
    return [Stage(*values) for values in plan if values[1] != 0]


def _prepared(model: nn.Module) -> QatModel:
    """The one prepared model in a module."""
    found = [module for module in model.modules() if isinstance(module, QatModel)]
    if len(found) != 1:
        raise _bad(
            f"a {type(model).__name__} holds {len(found)} prepared models",
            "a curriculum is of one: give what fuseq.qat.prepare returned",
        )
    return found[0]


def _require_known(stages: Iterable[Stage], names: Sequence[str]) -> None:
    for stage in stages:
        for glob in stage.trains:
            if not any(fnmatchcase(name, glob) for name in names):
                raise _bad(
                    f"stage '{stage.name}' trains '{glob}', which is no parameter",
                    did_you_mean(glob, names) or f"for example '{names[0]}'",
                )


def _require_all_trained(model: QatModel, stages: Iterable[Stage], names: Sequence[str]) -> None:
    """DistributedDataParallel waits for the gradient of every parameter, unless it is told."""
    for stage in stages:
        learned = stage.observing and not stage.weight_grids_frozen
        still = model.learn_scales and not learned
        if still or not all(map(stage.trains_parameter, names)):
            raise _bad(
                f"stage '{stage.name}' leaves parameters without a gradient",
                "DistributedDataParallel(model, find_unused_parameters=True)",
            )


def _bad(what: str, fix: str) -> FuseqError:
    return FuseqError("FQ012", what, fix=fix)
