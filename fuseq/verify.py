"""Is a program well formed, and do two programs compute the same function?

`problems` is the structural verifier: what must hold of every canonical program, as rules.
`distance` is the numeric one. It compares float64 *twins* whose weights and batch-norm statistics
were moved off their defaults: a correct rewrite then differs by rounding (about 1e-15), a
forgotten epsilon by 1e-5 and a dropped batch norm by more than 1, although the last two hide below
any usual float32 tolerance on fresh weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fuseq import ops
from fuseq.program import Program


def problems(program: Program) -> list[str]:
    """Every way in which a program is malformed, one sentence each; empty if it is well formed."""
    try:
        program.graph.lint()
    except Exception as error:
        return [str(error).splitlines()[0]]
    return [text for node in program.graph.nodes for text in _node_problems(program, node)]


def _node_problems(program: Program, node: fx.Node) -> Iterator[str]:
    name = ops.name_of(program, node)
    here = program.where(node)
    if node.op == "call_module":
        calls = [
            n for n in program.graph.nodes if n.op == "call_module" and n.target == node.target
        ]
        if len(calls) > 1 and calls[0] is node:
            yield f"{here}: module `{node.target}` is called {len(calls)} times"
        if program.get(node).training:
            yield f"{here}: module `{node.target}` is in training mode"
        if node.kwargs:
            yield f"{here}: a module call takes no keyword arguments"
    if name in ops.VOCABULARY and node.op == "call_function":
        missing = ops.ATTRIBUTES.get(name, frozenset()) ^ set(node.kwargs)
        if missing:
            yield f"{here}: attributes of {name} differ by {sorted(missing)}"
    if node.op not in ("output",) and name != "shape" and "shape" not in node.meta:
        if not name.startswith("foreign"):
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
    """Float64 inputs to compare twins on: the captured size, and an odd one if sizes are free.

    Free heights and widths are cut to about 64 so that the proof costs little; small maps have
    more border, which is where wrong rewrites show.
    """
    generator = torch.Generator().manual_seed(seed)
    free = {(i, d) for i, d in program.origin.dynamic if d >= 2}
    probes = []
    for longest, shift in ((64, 0), (64, 1)):
        shapes = [
            [
                min(size, longest) + shift * (32 + 3 * d) if (i, d) in free else size
                for d, size in enumerate(x.shape)
            ]
            for i, x in enumerate(program.example_inputs)
        ]
        probes.append(
            tuple(
                torch.randn(shape, generator=generator, dtype=torch.float64)
                if x.is_floating_point()
                else x
                for shape, x in zip(shapes, program.example_inputs, strict=True)
            )
        )
    return probes if free else probes[:1]


def distance(before: Program, after: Program, inputs: list[tuple[Tensor, ...]]) -> float:
    """Largest difference between two programs, relative to the largest output, over inputs.

    Args:
        before: reference.
        after: candidate, with the same inputs and outputs.
        inputs: what to run both on.

    Returns:
        `max |after - before| / max |before|` over outputs and inputs; infinite if a shape differs,
        a value is not finite, or only one of the two can run.
    """
    worst = 0.0
    for tensors in inputs:
        try:
            expected = outputs(before, tensors)
        except Exception:
            continue  # the model itself does not take this size
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
        return list(pytree.tree_leaves(program.module(*inputs)))


def relative_max(actual: Tensor, expected: Tensor) -> float:
    """`max |actual - expected| / max |expected|`; infinite if shapes differ or values are NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    error = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-300)
    return float(error) if torch.isfinite(error) else float("inf")
