"""A backend for a format of our own, `.steps`: a .npz of integers, with a list of steps as JSON.

It computes convolutions, sums and pixel shuffles on int8, and ReLU and clamp on what they give.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from example_plugin.steps_runner import StepsRunner
from fuseq import ops
from fuseq.backend import Artifact, Backend, Refusal, Tool
from fuseq.errors import FuseqError
from fuseq.program import Program
from fuseq.quant.profile import Profile

LAYERS = frozenset({"conv2d", "add"})
ACTIVATIONS = frozenset({"relu", "clamp"})
KNOWN = LAYERS | ACTIVATIONS | {"input", "output", "pixel_shuffle"}


@dataclass(frozen=True)
class StepsBackend(Backend):
    """Writes lists of integer steps, which numpy runs.

    Attributes:
        title: written into the file.
    """

    name = "steps"
    pipeline = "drop-unit-mul,fuse-affine,legalize,quantize"
    device = "a computer with numpy and nothing else"
    profile = Profile(
        name="steps",
        arithmetic="ideal",
        activation="int8",
        integer=frozenset({"conv2d", "add"}),
        float_inside=ACTIVATIONS,
        same_grid=frozenset({"pixel_shuffle"}),
        absorbed={"relu": LAYERS, "clamp": LAYERS},
    )

    title: str = "untitled"

    def refusals(self, program: Program) -> list[Refusal]:
        found = []
        for node in program.graph.nodes:
            name, source = ops.name_of(program, node), program.source(node)
            before = [ops.name_of(program, operand) for operand in node.all_input_nodes]
            if name not in KNOWN:
                found.append(Refusal(node.name, source, f"no step for {name}", "leave it out"))
            elif name in ACTIVATIONS and before[0] not in LAYERS:
                reason = f"{name} after {before[0]} is no step"
                found.append(Refusal(node.name, source, reason, "put it after a convolution"))
            elif name == "add" and len(before) < 2:
                found.append(Refusal(node.name, source, "adds a number", "add it to a bias"))
        return found

    def lower(self, program: Program, out: Path) -> list[Artifact]:
        table = program.quantization
        if table is None:
            raise FuseqError(
                "FQ501", "steps are integers, and this program is not quantized", fix="quantize it"
            )
        arrays = {
            **{name: integers.numpy() for name, integers in table.integers.items()},
            **{f"{name}.scale": grid.scale.numpy() for name, grid in table.grids.items()},
            **{f"{name}.zero_point": grid.zero_point.numpy() for name, grid in table.grids.items()},
        }
        nodes = [node for node in program.graph.nodes if node.op != "output"]
        content = {
            "title": self.title,
            "inputs": [
                {"name": node.name, "shape": _open_shape(program, index)}
                for index, node in enumerate(program.inputs())
            ],
            "steps": [_step(program, node) for node in nodes if node.op != "placeholder"],
            "outputs": [node.name for node in program.outputs()],
        }
        text = np.frombuffer(json.dumps(content).encode(), np.uint8)
        with (out / "model.steps").open("wb") as file:
            np.savez(file, **{"program.json": text}, **arrays)
        return [Artifact("model.steps", "int8")]

    def runner(self, file: Path) -> StepsRunner:
        return StepsRunner(file)

    def doctor(self) -> list[Tool]:
        return [Tool("numpy", np.__version__, True, "runs .steps")]


def _step(program, node):
    """One step: what it computes, of which values, and the value on whose grid the result is."""
    table, name = program.quantization, ops.name_of(program, node)
    step = {"op": name, "operands": [operand.name for operand in node.all_input_nodes]}
    step |= {"name": node.name, "grid": table.absorbed.get(node.name, node.name)}
    if name == "conv2d":
        layer = program.get(node)
        geometry = ("stride", "padding", "dilation", "groups")
        step |= {"layer": str(node.target), **{key: getattr(layer, key) for key in geometry}}
    if name == "pixel_shuffle":
        step |= dict(node.kwargs)
    return step


def _open_shape(program, index):
    free = {dimension for i, dimension in program.origin.dynamic if i == index}
    sizes = program.example_inputs[index].shape
    return [None if dimension in free else size for dimension, size in enumerate(sizes)]
