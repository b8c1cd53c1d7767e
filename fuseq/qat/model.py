"""`QatModel`: a program whose weights are trained in the integers that ship."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fuseq import ops
from fuseq.model_copy import unwrapped
from fuseq.program import PassRecord, Program
from fuseq.qat import distribution
from fuseq.qat.training import TrainingRunner, require_finite, used_intervals
from fuseq.quant.executor import execute
from fuseq.quant.grid import SMALLEST_SCALE, Grid, along
from fuseq.quant.profile import Profile
from fuseq.quant.solve import (
    Layer,
    activation_grids,
    freeze,
    has_one_scale,
    layers,
    output_axis,
    require_scales,
    resolved,
    weight_grid,
)
from fuseq.quant.structure import FloatIslands, Structure, bounds
from fuseq.quant.table import QuantizationTable

LARGEST_GROWTH = 40.0
"""As far as the logarithm of a scale is learned: float32 has its exponential."""

MOMENTUM = 0.01
"""Weight of a training batch in the moving average of a range."""


STILL_OBSERVING = (
    "ranges of activations were still following the data when training ended: "
    "end a curriculum with a stage that does not observe"
)


class QatModel(nn.Module):
    """A prepared model.

    In training mode the forward pass gives the target's integers (as reals), with straight-through
    gradients. In evaluation mode it is the integer executor on the table of this moment: bit for
    bit what is exported now.

    Everything that changes is in `state_dict`: parameters, ranges, grids, stage.

    Attributes:
        program: legalized float program; its graph module is the submodule `network`.
        profile: the target's rules.
        structure: which values share a grid.
        wanted: names of nodes whose reals the forward pass leaves in `features`.
        features: reals by node name, in training with gradients, of the last forward pass.
    """

    program: Program
    ranges: Tensor
    clipping: Tensor
    activation_scale: Tensor
    activation_zero_point: Tensor
    flags: Tensor
    activation_scale_log: Tensor
    learning: Tensor

    def __init__(
        self,
        program: Program,
        profile: Profile,
        structure: Structure,
        ranges: Mapping[str, tuple[float, float]],
        extremes: Mapping[str, tuple[float, float]],
        *,
        learn_scales: bool = False,
        observer: str = "minmax",
    ) -> None:
        """Take over a legalized program.

        Args:
            program: its module becomes ours.
            profile: the target's rules.
            structure: of the program.
            ranges: of each group with a free grid, from calibration.
            extremes: smallest and largest value that calibration saw of each of these groups.
            learn_scales: make scales parameters (LSQ) instead of following ranges.
            observer: how the ranges were measured, for the history.
        """
        super().__init__()
        self.network = program.module
        self.program, self.profile, self.structure = program, profile, structure
        self.learn_scales, self.observer = False, observer
        groups = dict.fromkeys(structure.group.values())
        self.index = {group: i for i, group in enumerate(groups)}
        self._used = used_intervals(program, structure)
        self.wanted: frozenset[str] = frozenset()
        self.features: Mapping[str, Tensor] = {}
        used = torch.tensor([ranges.get(group, (0.0, 0.0)) for group in groups])
        seen = torch.tensor([extremes.get(group, (0.0, 0.0)) for group in groups])
        self.register_buffer("ranges", seen)
        # What the observer cut off, as a share of the extremes: kept while these move.
        self.register_buffer("clipping", torch.where(seen == 0, 1.0, used / seen))
        self.register_buffer("activation_scale", torch.ones(len(groups)))
        self.register_buffer("activation_zero_point", torch.zeros(len(groups), dtype=torch.int32))
        self.register_buffer("flags", torch.tensor([True, False]))
        self._solve([ranges.get(group, (0.0, 0.0)) for group in groups])
        grids = self._activation_grids()
        for path, layer, source in self._layers():
            grid = weight_grid(layer, profile, grids[source].scale)
            own = grid.scale.reshape(-1)[: None if profile.per_channel else 1]
            self.register_buffer(_name(path), own.clone())
        if learn_scales:
            self._make_scales_parameters()

    @property
    def observing(self) -> bool:
        """Whether activation ranges follow the training batches, and with them the grids."""
        return bool(self.flags[0])

    @property
    def weight_grids_frozen(self) -> bool:
        """Whether weights keep the grids they had when this was set, and are cut there.

        If not, each step takes the grids of its weights.
        """
        return bool(self.flags[1])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, *inputs: Tensor) -> Any:
        """Run on integers; `torch.compile` runs it as it is.

        Args:
            *inputs: as the model takes them; floats in any precision.

        Returns:
            Reals, nested as the model nests them, float32.

        Raises:
            FuseqError: FQ401 or FQ402 for NaN or infinity in training.
        """
        inputs = tuple(x.float() if x.is_floating_point() else x for x in inputs)
        with torch.autocast(inputs[0].device.type, enabled=False):
            if not self.training:
                program = self.quantized()
                execution = execute(program, inputs, intermediates=bool(self.wanted))
                self.features = {name: execution.real(program, name) for name in self.wanted}
                return execution.result
            require_finite(self, dict(zip(self.program.input_names, inputs, strict=False)))
            runner = TrainingRunner(
                self.program,
                freeze(self.program, self.profile, self.structure, self._activation_grids(), {}),
                self._weight_grid,
                observe=self.observing and not self.learn_scales,
                features=self.wanted,
            )
            result = runner.run(*inputs)
        self.features = runner.features
        if self.observing and not self.learn_scales:
            self._follow(runner.extremes(self._used))
        return result

    def train(self, mode: bool = True) -> QatModel:
        """Change between training and evaluation; the layers inside stay as they were captured."""
        self.training = mode
        return self

    def stage(self, *, observing: bool, weight_grids_frozen: bool) -> None:
        """Say what follows the data from here on.

        Args:
            observing: activation ranges follow training batches, or their scales are learned.
            weight_grids_frozen: weights keep the grids they have now.
        """
        if weight_grids_frozen and not self.weight_grids_frozen and not self.learn_scales:
            grids = self._activation_grids()
            for path, layer, source in self._layers():
                scale = weight_grid(layer, self.profile, grids[source].scale).scale
                kept = getattr(self, _name(path))
                kept.copy_(scale.reshape(-1)[: len(kept)])
        self.flags.copy_(torch.tensor([observing, weight_grids_frozen]))

    @torch.no_grad()
    def clip_weights(self) -> None:
        """Cut weights to the range of their grids: beyond it they neither act nor learn."""
        grids = self._activation_grids()
        for path, layer, source in self._layers():
            scale = self._weight_grid(path, layer, grids[source]).scale
            limit = 127 * along(scale, layer.weight, output_axis(layer))
            layer.weight.copy_(layer.weight.clamp(-limit, limit))

    @torch.no_grad()
    def table(self) -> QuantizationTable:
        """Grids and integers of this moment: what would ship now.

        Raises:
            FuseqError: FQ401 for a scale that is not finite.
        """
        grids = {name: _constant(grid) for name, grid in self._activation_grids().items()}
        weights = {
            path: _constant(self._weight_grid(path, layer, grids[source]))
            for path, layer, source in self._layers()
        }
        table = freeze(self.program, self.profile, self.structure, grids, weights)
        require_scales(table)
        return table

    def quantized(self) -> Program:
        """A quantized program that shares our weights: for running, not for keeping."""
        return dataclasses.replace(self.program, quantization=self.table())

    def _layers(self) -> Iterator[tuple[str, Layer, str]]:
        return layers(self.program, self.structure)

    def activation_grid(self, name: str) -> Grid:
        """Grid of one value, as it is now."""
        return self._activation_grids()[name]

    def _activation_grids(self) -> dict[str, Grid]:
        scales = self.activation_scale.clamp_min(SMALLEST_SCALE)
        if self.learn_scales:
            learned = torch.where(self.learning, self.activation_scale_log, 0.0)
            scales = _grown(scales, learned, self.observing)
        # Scalars live on the host: kernels take them as numbers, on whatever device values are.
        parts, zero_points = scales.cpu().unbind(), self.activation_zero_point.cpu().unbind()
        grids: Mapping[str, Grid] = {
            group: Grid(parts[i], zero_points[i], self.structure.dtypes[group])
            for group, i in self.index.items()
        }
        if self.learn_scales:
            grids = resolved(self.program, self.structure, grids)
        return {name: grids[group] for name, group in self.structure.group.items()}

    def _weight_grid(self, path: str, layer: Layer, source: Grid) -> Grid:
        if not self.weight_grids_frozen and not self.learn_scales:
            return weight_grid(layer, self.profile, source.scale)
        scale: Tensor = getattr(self, _name(path)).clamp_min(SMALLEST_SCALE)
        if self.learn_scales:
            learned = getattr(self, f"{_name(path)}_log")
            scale = _grown(scale, learned, not self.weight_grids_frozen)
        if has_one_scale(layer, self.profile):
            return Grid(scale[0], torch.tensor(0, dtype=torch.int32), "int8")
        scale = scale.expand(_channels(layer))
        return Grid(scale, torch.zeros_like(scale, dtype=torch.int32), "int8", output_axis(layer))

    @torch.no_grad()
    def _follow(self, extremes: Mapping[str, Sequence[float]]) -> None:
        """Move ranges towards those of this batch, of all ranks, and solve the grids again."""
        indices = [self.index[group] for group in extremes]
        seen = torch.tensor(list(extremes.values()), device=self.ranges.device)
        self.ranges[indices] += MOMENTUM * (distribution.widest(seen) - self.ranges[indices])
        self._solve((self.ranges * self.clipping).tolist())

    def _solve(self, ranges: Sequence[Sequence[float]]) -> None:
        pairs = {group: (ranges[i][0], ranges[i][1]) for group, i in self.index.items()}
        grids = activation_grids(self.program, self.structure, pairs)
        chosen = [grids[group] for group in self.index]
        self.activation_scale.copy_(torch.stack([grid.scale for grid in chosen]))
        self.activation_zero_point.copy_(torch.stack([grid.zero_point for grid in chosen]))

    def _make_scales_parameters(self) -> None:
        self.learn_scales = True
        for name in ("activation_scale", *(_name(path) for path, _, _ in self._layers())):
            start = nn.Parameter(torch.zeros_like(getattr(self, name)))
            self.register_parameter(f"{name}_log", start)
        learning = [_learns(self.program, self.structure, group) for group in self.index]
        self.register_buffer("learning", torch.tensor(learning), persistent=False)


def _name(path: str) -> str:
    """Buffer that holds the weight scale of a layer."""
    return f"{path.replace('.', '_')}_weight_scale"


def _constant(grid: Grid) -> Grid:
    """A grid of its own, which neither learns nor moves."""
    return Grid(grid.scale.detach().clone(), grid.zero_point.clone(), grid.dtype, grid.axis)


def _channels(layer: Layer) -> int:
    return layer.weight.shape[output_axis(layer)]


def _grown(scale: Tensor, log: Tensor, learns: bool) -> Tensor:
    """A scale times the exponential of what it learned: positive, and blind to its own size.

    A step of an optimizer is small or large against a logarithm, whatever the scale (Jain et al.,
    MLSys 2020, arXiv 1903.08066, section 3, where it is the threshold's).
    """
    growth = (log if learns else log.detach()).clamp(-LARGEST_GROWTH, LARGEST_GROWTH).exp()
    return (scale * growth).clamp_min(SMALLEST_SCALE)


def _learns(program: Program, structure: Structure, group: str) -> bool:
    """Whether the target leaves a grid free, and no clamp that it has to stay within."""
    members = [n for n in program.graph.nodes if structure.group.get(n.name) == group]
    clamped = any(n.target is torch.clamp and bounds(n)[1] < math.inf for n in members)
    return group not in structure.fixed and not clamped


def finalize(model: QatModel) -> Program:
    """The quantized program that a prepared model has become, for `fuseq.lower`.

    Args:
        model: stays as it is.

    Returns:
        A program of its own, on the host, whose table is, bit for bit, what the model computes
        with. Its notes say so if the model still observes: weights never trained on these ranges.

    Raises:
        FuseqError: FQ402 if a parameter is not finite, FQ404 if ranks disagree.
    """
    program = _trained(model, (FloatIslands(model.structure.islands),))
    program.quantization = _on_host(model.table())
    if model.observing and not model.learn_scales:
        notes = (*program.origin.notes, STILL_OBSERVING)
        program.origin = dataclasses.replace(program.origin, notes=notes)
    return program


def float_program(model: QatModel) -> Program:
    """The trained weights as a float program, without the target's structure.

    For a graph that was trained unfused: fuse it now, and calibrate it again, for the grids it was
    trained on are those of branches that are gone.

    Args:
        model: stays as it is.

    Returns:
        A program of its own, on the host, for `fuseq.fuse` and `fuseq.quantize`.

    Raises:
        FuseqError: as `finalize`.
    """
    program = _trained(model, ())
    for edge in program.graph.find_nodes(op="call_function", target=ops.requantize):
        edge.replace_all_uses_with(edge.args[0])
    program.clean()
    return program


def _trained(model: QatModel, details: tuple[Any, ...]) -> Program:
    """A clone with the weights of this moment, whose history says that they were trained."""
    require_finite(model, {})
    distribution.require_equal(model)
    program = model.program.clone()
    program.module.requires_grad_(False).cpu()
    record = PassRecord(_spelled(model), len(model.structure.group), details)
    program.history = (*program.history, record)
    return program


def _on_host(table: QuantizationTable) -> QuantizationTable:
    grids = {
        name: Grid(grid.scale.cpu(), grid.zero_point.cpu(), grid.dtype, grid.axis)
        for name, grid in table.grids.items()
    }
    integers = {name: value.cpu() for name, value in table.integers.items()}
    return dataclasses.replace(table, grids=grids, integers=integers)


def _spelled(model: QatModel) -> str:
    """Like a pass, with what differs from a min-max start and the last of the usual stages."""
    usual = {"observer": "minmax", "learn_scales": False}
    usual |= {"observing": False, "weight_grids_frozen": True}
    changed = [f"{k}={getattr(model, k)}" for k, v in usual.items() if getattr(model, k) != v]
    return "qat" + (f"{{{','.join(changed)}}}" if changed else "")


def shipped(model: nn.Module) -> nn.Module | Program:
    """What a prepared model has become, whatever it is wrapped in; any other module as it is.

    Raises:
        FuseqError: as `finalize`.
    """
    inner = unwrapped(model)
    return finalize(inner) if isinstance(inner, QatModel) else model
