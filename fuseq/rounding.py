r"""How far float32 rounding may move the outputs of a program, derived from its own arithmetic.

*One sum.* Let float32 add n terms t in some order, with partial sums s_k. Each operation multiplies
by 1 + delta, |delta| <= 2^-24. As in Higham & Mary (A New Approach to Probabilistic Rounding Error
Analysis, SIAM J. Sci. Comput. 41(5), 2019, Model 2.1) the deltas are independent with mean zero;
uniform ones have the standard deviation u = 2^-24 / sqrt(3) at most. So variances add: u^2 sum t^2
for the products, u^2 sum s_k^2 for the additions. Over a random order of the terms, with y the sum
and q = sum t^2,

    sum E s_k^2 = (n + 1) * (y^2 / 3 + q / 6),

so the error of a sum of products has the variance of *exact* arithmetic on operands perturbed
relatively by u*sqrt((n + 1)/6 + 1), plus noise of u*sqrt((n + 1)/3) relative to the result.
Operands are perturbed one by one, and weights once for the whole map: positions that read equal
values are rounded equally, others are not, and either may be worse for what follows. The weights'
noise also holds the rounding of fused weights to float32.

*Other operations.* Sums, differences, products and quotients of two values err by u relative to
the result; moves and selections do not err. What remains (activations, norms with statistics,
foreign ops) is the same in every form of a program: its error is that of the operation itself in
float32, measured against float64 at the same operands, and at least u.

*A whole program.* To first order the error of the outputs is linear in all these errors, hence
close to a Gaussian vector e with a covariance that nobody needs: running the program in float64
with Gaussian noise of those variances at each node gives a sample of e (Monte Carlo arithmetic,
Parker 1997). Cancelling branches, steep functions and depth amplify noise as they amplify rounding.

*The factor.* Let M = max |e_i|, and M_1 .. M_R the same of R runs. By the S-inequality (Latala &
Oleszkiewicz, Ann. Probab. 27(4), 1999) no Gaussian vector, of whatever length and covariance, has
heavier tails of M, relative to its quantiles, than a single number g. Since P(|g| < x) <=
sqrt(2/pi) x,

    P(M > f * max M_r) <= E (sqrt(2/pi) |g| / f)^R = (sqrt(2/pi) / f)^R * (R - 1)!!   for even R,

which `FACTOR` solves for f. No constant of it is fitted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fuseq import ops, verify
from fuseq.program import Program

UNIT = 2.0**-24 / math.sqrt(3)
"""Standard deviation of the relative error of rounding to float32: uniform in +-2^-24."""

RUNS = 4
"""Noisy runs a bound is made of."""

MISSED = 1e-4
"""Largest probability that rounding alone exceeds a bound: that of a single output number."""

FACTOR = math.sqrt(2 / math.pi) * (math.prod(range(1, RUNS, 2)) / MISSED) ** (1 / RUNS)
"""Bound as a multiple of the largest error of the noisy runs."""

_EXACT = frozenset(
    "concat relu clamp max_pool interpolate_nearest pixel_shuffle pixel_unshuffle pad pad_value "
    "reshape permute unsqueeze slice slice_scatter requantize shape".split()
)
_ELEMENTWISE = frozenset("add sub mul div".split())
_SUMS = frozenset(
    "conv2d conv_transpose2d linear matmul batch_norm batch_norm1d avg_pool adaptive_avg_pool "
    "mean".split()
)


def float32_bound(inputs: Sequence[Tensor], *programs: Program) -> list[float]:
    """Limits of the largest rounding error of each output.

    Args:
        inputs: what the programs are run on.
        *programs: one, for the distance of its float32 run from exact arithmetic; or two forms of
            one function, for the distance of their float32 runs from each other.

    Returns:
        One absolute limit per output. A program whose rewrite is wrong does not widen it: noise is
        counted from where each program stands by itself.
    """
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    twins = [program.in_dtype(torch.float64) for program in programs]
    exact = [verify.outputs(twin, wide) for twin in twins]
    largest = [0.0] * len(exact[0])
    for run in range(RUNS):
        noisy = [
            _noisy_outputs(twin, wide, RUNS * number + run) for number, twin in enumerate(twins)
        ]
        errors = (
            [a.double() - b.double() for a, b in zip(*pair, strict=True)]
            for pair in zip(noisy, exact, strict=True)
        )
        sums = (sum(parts) for parts in zip(*errors, strict=True))
        largest = [max(old, _largest(new)) for old, new in zip(largest, sums, strict=True)]
    return [FACTOR * value for value in largest]


def float32_bounds(inputs: Sequence[Tensor], program: Program) -> dict[str, float]:
    """Limits of the largest rounding error of each floating value, by node name.

    Args:
        inputs: what the program is run on.
        program: in float; a table of grids is ignored.
    """
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    twin = program.in_dtype(torch.float64)
    exact = _values(fx.Interpreter(twin.module, garbage_collect_values=False), wide)
    largest = dict.fromkeys(exact, 0.0)
    for run in range(RUNS):
        for name, value in _values(_NoisyRun(twin, run, keep=True), wide).items():
            largest[name] = max(largest[name], _largest(value.double() - exact[name].double()))
    return {name: FACTOR * value for name, value in largest.items()}


def _values(interpreter: fx.Interpreter, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    with torch.no_grad():
        interpreter.run(*inputs)
    env: Mapping[fx.Node, Any] = interpreter.env
    return {
        node.name: value
        for node, value in env.items()
        if isinstance(value, Tensor) and value.is_floating_point() and node.op != "get_attr"
    }


def _largest(error: Any) -> float:
    return float(error.abs().max()) if error.numel() else 0.0


def _noisy_outputs(twin: Program, inputs: tuple[Tensor, ...], seed: int) -> list[Tensor]:
    with torch.no_grad():
        return list(pytree.tree_leaves(_NoisyRun(twin, seed).run(*inputs)))


class _NoisyRun(fx.Interpreter):
    """Runs a float64 program with noise of the size that float32 rounding has at each node."""

    def __init__(self, program: Program, seed: int, keep: bool = False) -> None:
        super().__init__(program.module, garbage_collect_values=not keep)
        self.extra_traceback = False
        self.program = program
        self.generator = torch.Generator().manual_seed(seed)

    def run_node(self, node: fx.Node) -> Any:
        name = ops.name_of(self.program, node)
        if not node.op.startswith("call") or name in _EXACT:
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        module = self.program.get(node) if node.op == "call_module" else None
        state = module.state_dict() if module else {}

        def call(state: Any, args: Any) -> Any:
            if module:
                return torch.func.functional_call(module, state, args, kwargs)
            return getattr(self, node.op)(node.target, args, kwargs)

        if name in _ELEMENTWISE:
            result = call(state, args)
            return self._with_noise(result, UNIT * result.abs())
        if name in _SUMS:
            terms = _terms(name, module, args, kwargs)
            blur = UNIT * math.sqrt((terms + 1) / 6 + 1)
            noisy = _map_floats(lambda x: x + blur * x * self._normal(x.shape), (state, args))
            result = call(*noisy)
            return self._with_noise(result, UNIT * math.sqrt((terms + 1) / 3) * result.abs())
        narrow = _map_floats(Tensor.float, (state, args))
        wide = _map_floats(Tensor.double, narrow)
        return _map_floats(self._with_own_noise, call(state, args), call(*narrow), call(*wide))

    def _with_own_noise(self, value: Tensor, narrow: Tensor, wide: Tensor) -> Tensor:
        """A result with noise of its own float32 error; as it is where all of that is zero."""
        error = (narrow.double() - wide).abs().where(narrow != wide, 0.0)
        if not error.any():
            return value
        return self._with_noise(value, torch.maximum(error, UNIT * wide.abs()))

    def _with_noise(self, value: Tensor, spread: Tensor) -> Tensor:
        """A value with Gaussian errors: independent ones, and ones shared by all positions."""
        shared = [n if d == 1 else 1 for d, n in enumerate(value.shape)]
        noise = spread * (self._normal(value.shape) + self._normal(shared))
        return value + noise.where(spread.isfinite(), 0.0).to(value.dtype)

    def _normal(self, shape: Sequence[int]) -> Tensor:
        # Noise needs few digits, and float32 is drawn several times faster.
        return torch.randn(shape, generator=self.generator, dtype=torch.float32)


def _map_floats(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """A nest of values with its floating tensors mapped."""

    def mapped(x: Any, *y: Any) -> Any:
        return function(x, *y) if isinstance(x, Tensor) and x.is_floating_point() else x

    return pytree.tree_map(mapped, tree, *others)


def _terms(
    name: str, module: nn.Module | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> int:
    """Number of terms of each sum that a node computes."""
    match module:
        case nn.ConvTranspose2d():
            return module.weight[:, 0].numel() // module.groups + 1
        case nn.Conv2d() | nn.Linear():
            return module.weight[0].numel() + 1
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return 3
    x: Tensor = args[0]
    match name:
        case "matmul":
            return int(x.shape[-1])
        case "avg_pool":
            return math.prod(int(n) for n in kwargs["kernel_size"])
        case "mean":
            return math.prod(int(x.shape[d]) for d in kwargs["dim"])
    return x.shape[-2] * x.shape[-1]  # adaptive_avg_pool, at most
