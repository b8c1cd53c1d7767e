"""Is a program well formed, and do two programs compute the same function?

`problems` is the structural verifier: what must hold of every canonical program, as rules.
`distance` is the numeric one. It compares float64 *twins* whose weights and batch-norm statistics
were moved off their defaults: a correct rewrite then differs by rounding (about 1e-15), a
forgotten epsilon by 1e-5 and a dropped batch norm by more than 1, although the last two hide below
any usual float32 tolerance on fresh weights.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fuseq import ops
from fuseq.errors import first_line
from fuseq.program import Program
from fuseq.quiet import quiet_torch


def problems(program: Program) -> list[str]:
    """Every way in which a program is malformed, one sentence each; empty if it is well formed."""
    try:
        program.graph.lint()
    except Exception as error:
        return [first_line(error)]
    nodes = list(program.graph.nodes)
    calls = Counter(node.target for node in nodes if node.op == "call_module")
    first = {node.target: node for node in reversed(nodes)}
    shared = [
        f"{program.where(first[target])}: module `{target}` is called {count} times"
        for target, count in calls.items()
        if count > 1
    ]
    return shared + [text for node in nodes for text in _node_problems(program, node)]


def _node_problems(program: Program, node: fx.Node) -> Iterator[str]:
    name = ops.name_of(program, node)
    here = program.where(node)
    if node.op == "call_module":
        if program.get(node).training:
            yield f"{here}: module `{node.target}` is in training mode"
        if node.kwargs:
            yield f"{here}: a module call takes no keyword arguments"
    if name in ops.VOCABULARY and node.op == "call_function":
        missing = ops.ATTRIBUTES.get(name, frozenset()) ^ set(node.kwargs)
        if missing:
            yield f"{here}: attributes of {name} differ by {sorted(missing)}"
    tensor = node.op != "output" and name != "shape" and not name.startswith("foreign")
    if tensor and "shape" not in node.meta:
        yield f"{here}: no shape was recorded"


def perturb(program: Program, seed: int = 0) -> None:
    """Move every floating parameter and statistic of a program off its value, in place.

    Variances stay positive; scales change by a factor in [0.5, 1.5]; everything else gets noise
    of a tenth of its own spread.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    norms = (nn.BatchNorm1d, nn.BatchNorm2d)
    with torch.no_grad():
        for module in program.module.modules():
            if isinstance(module, norms) and module.running_mean is not None:
                assert module.running_var is not None
                spread = module.running_var.sqrt()
                module.running_mean += spread * noise(module.running_mean)
                module.running_var *= (0.5 * noise(module.running_var)).exp()
        for module in program.module.modules():
            for tensor in module.parameters(recurse=False):
                if isinstance(module, norms) and tensor is module.weight:
                    tensor.mul_(1 + 0.5 * noise(tensor).tanh())
                elif tensor.is_floating_point():
                    spread = tensor.std(correction=0) if tensor.numel() > 1 else tensor.abs()
                    tensor.add_((0.1 * spread + 0.01) * noise(tensor))


def probe_inputs(program: Program, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Float64 inputs to compare twins on: two sizes where sizes are free, else the captured one.

    Preferred are the captured size cut to 64 and an odd size above it: they cost little, and small
    maps have more border, which is where wrong rewrites show. A program that takes neither is
    probed at the captured size and at the next one that is a multiple of 32 away.

    Returns:
        At least one tuple of inputs, all of which the program can run.
    """
    free = {(i, d) for i, d in program.origin.dynamic if d >= 2}
    captured = [list(x.shape) for x in program.example_inputs]

    def changed(size: Callable[[int, int], int]) -> list[list[int]]:
        return [
            [size(n, d) if (i, d) in free else n for d, n in enumerate(shape)]
            for i, shape in enumerate(captured)
        ]

    candidates = [captured]
    if free:
        cut = changed(lambda n, d: min(n, 64))
        odd = changed(lambda n, d: min(n, 64) + 32 + 3 * d)
        candidates = [cut, odd, captured, changed(lambda n, d: n + 32 * (d - 1))]
    generator = torch.Generator().manual_seed(seed)
    runnable = (shapes for shapes in candidates if takes(program, shapes))
    return [
        tuple(
            torch.randn(shape, generator=generator, dtype=torch.float64)
            if x.is_floating_point()
            else x
            for shape, x in zip(shapes, program.example_inputs, strict=True)
        )
        for shapes in itertools.islice(runnable, 2)
    ]


def takes(program: Program, shapes: Sequence[Sequence[int]]) -> bool:
    """Whether a program runs at these input shapes: at its own it does, at others it is tried."""
    if [tuple(shape) for shape in shapes] == [tuple(x.shape) for x in program.example_inputs]:
        return True
    generator = torch.Generator().manual_seed(0)
    inputs = tuple(
        torch.randn(shape, generator=generator).to(x.dtype)
        if x.is_floating_point()
        else torch.zeros(shape, dtype=x.dtype)
        for shape, x in zip(shapes, program.example_inputs, strict=True)
    )
    try:
        with torch.no_grad(), quiet_torch():
            _forward(program, inputs)
    except Exception:
        return False
    return True


def _forward(program: Program, inputs: tuple[Tensor, ...]) -> Any:
    """Run the generated code itself: calling the module would print a failure before raising it."""
    return type(program.module).forward(program.module, *inputs)


def distance(before: Program, after: Program, inputs: list[tuple[Tensor, ...]]) -> float:
    """Largest difference between two programs, relative to the largest output, over inputs.

    Args:
        before: reference.
        after: candidate, with the same inputs and outputs.
        inputs: what to run both on; the reference takes all of them.

    Returns:
        `max |after - before| / max |before|` over outputs and inputs; infinite if a shape differs,
        a value is not finite, or the candidate cannot run.
    """
    worst = 0.0
    for tensors in inputs:
        expected = outputs(before, tensors)
        try:
            actual = outputs(after, tensors)
        except Exception:
            return float("inf")
        pairs = zip(actual, expected, strict=True)
        worst = max(worst, *(relative_max(a, b) for a, b in pairs))
    return worst


def outputs(program: Program, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Output tensors of a float program, flattened, without gradients."""
    with torch.no_grad():
        return list(pytree.tree_leaves(_forward(program, inputs)))


def relative_max(actual: Tensor, expected: Tensor) -> float:
    """`max |actual - expected| / max |expected|`; infinite if shapes differ or values are NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    largest = expected.double().abs().max().clamp_min(1e-300)
    error = (actual.double() - expected.double()).abs().max() / largest
    return float(error) if torch.isfinite(error) else float("inf")
