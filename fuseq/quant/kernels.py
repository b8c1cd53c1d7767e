"""What the executor asks an arithmetic for each op: operands, grids and attributes of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, fx, nn

from fuseq.quant.arithmetic.base import Pair
from fuseq.quant.grid import Grid

if TYPE_CHECKING:
    from fuseq.quant.executor import IntegerInterpreter

Kernel: TypeAlias = Callable[["IntegerInterpreter", fx.Node, Grid], Tensor]


def _conv2d(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,), conv = runner.operands(node), runner.program.get(node)
    assert isinstance(conv, nn.Conv2d)
    geometry: dict[str, Any] = {
        name: getattr(conv, name) for name in ("stride", "padding", "dilation", "groups")
    }
    return runner.arithmetic_of(node, grid).convolve(
        x.q, x.grid, *runner.parameters(node), grid, **geometry
    )


def _conv_transpose2d(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,), layer = runner.operands(node), runner.program.get(node)
    assert isinstance(layer, nn.ConvTranspose2d)
    names = ("stride", "padding", "output_padding", "dilation", "groups")
    geometry: dict[str, Any] = {name: getattr(layer, name) for name in names}
    return runner.arithmetic_of(node, grid).convolve_transposed(
        x.q, x.grid, *runner.parameters(node), grid, **geometry
    )


def _linear(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,) = runner.operands(node)
    return runner.arithmetic_of(node, grid).linear(x.q, x.grid, *runner.parameters(node), grid)


def _binary(name: str) -> Kernel:
    def kernel(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
        a, b = runner.operands(node)
        result: Tensor = getattr(runner.arithmetic_of(node, grid), name)(
            a.q, a.grid, b.q, b.grid, grid
        )
        return result

    return kernel


def _mul(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    first, second = node.args
    if first is second:
        x, _ = runner.operands(node)
        return runner.arithmetic_of(node, grid).square(x.q, x.grid, grid)
    return _binary("mul")(runner, node, grid)


def _unary(name: str, **attributes: str) -> Kernel:
    """A kernel of one operand; `attributes` maps the arithmetic's parameters to node keywords."""

    def kernel(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
        (x,) = runner.operands(node)
        values = {parameter: node.kwargs[key] for parameter, key in attributes.items()}
        result: Tensor = getattr(runner.arithmetic_of(node, grid), name)(
            x.q, x.grid, grid, **values
        )
        return result

    return kernel


def _concat(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    values = runner.operands(node)
    dim: Any = node.kwargs["dim"]
    return runner.arithmetic_of(node, grid).concat(
        [v.q for v in values], [v.grid for v in values], grid, dim
    )


def _mean(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,) = runner.operands(node)
    dim: Any = node.kwargs["dim"]
    dims = tuple(sorted(d % x.q.dim() for d in dim))
    whole_maps = dims == (2, 3) and x.q.dim() == 4
    if not (whole_maps or runner.arithmetic.means_anywhere):
        return runner.rounded_once(node, grid).q
    mean = runner.arithmetic_of(node, grid).mean(x.q, x.grid, grid, dims)
    return mean if node.kwargs["keepdim"] else mean.squeeze(dims)


def _avg_pool(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,), k = runner.operands(node), dict[str, Any](node.kwargs)
    ceil_mode, divisor = k.pop("ceil_mode"), k.pop("divisor_override")
    if divisor is not None or (ceil_mode and _hangs_over(x.q, **k)):
        return runner.rounded_once(node, grid).q
    return runner.arithmetic_of(node, grid).average_pool(x.q, x.grid, grid, **k)


def _hangs_over(
    x: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, count_include_pad: bool
) -> bool:
    """Whether rounding the size of a pool's result up adds windows."""
    sizes = zip(x.shape[2:], kernel_size, stride, padding, strict=True)
    return any((size + 2 * pad - kernel) % step for size, kernel, step, pad in sizes)


def _interpolate(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,) = runner.operands(node)
    k: dict[str, Any] = dict(fx.node.map_arg(node.kwargs, runner.env.__getitem__))
    return runner.arithmetic_of(node, grid).interpolate_bilinear(
        x.q,
        x.grid,
        grid,
        size=k["size"],
        scale_factor=k["scale_factor"],
        align_corners=bool(k["align_corners"]),
    )


def _clamp(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,) = runner.operands(node)
    low, high = (node.kwargs[k] for k in ("min", "max"))
    bounds = (float("-inf") if low is None else low, float("inf") if high is None else high)
    return runner.arithmetic_of(node, grid).clamp(x.q, x.grid, grid, *bounds)  # type: ignore[arg-type]


def _instance_norm(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,), norm = runner.operands(node), runner.program.get(node)
    assert isinstance(norm, nn.InstanceNorm2d)
    return runner.arithmetic_of(node, grid).instance_norm(
        x.q, x.grid, norm.weight, norm.bias, norm.eps, grid
    )


def _prelu(runner: IntegerInterpreter, node: fx.Node, grid: Grid) -> Tensor:
    (x,), layer = runner.operands(node), runner.program.get(node)
    assert isinstance(layer, nn.PReLU)
    return runner.arithmetic_of(node, grid).prelu(x.q, x.grid, layer.weight, grid)


KERNELS: dict[str, Kernel] = {
    "conv2d": _conv2d,
    "conv_transpose2d": _conv_transpose2d,
    "linear": _linear,
    "concat": _concat,
    "mean": _mean,
    "avg_pool": _avg_pool,
    "clamp": _clamp,
    "interpolate": _interpolate,
    "prelu": _prelu,
    "instance_norm": _instance_norm,
    "add": _binary("add"),
    "sub": _binary("sub"),
    "mul": _mul,
    "div": _binary("div"),
    "matmul": _binary("matmul"),
    "relu": _unary("relu"),
    "sigmoid": _unary("sigmoid"),
    "tanh": _unary("tanh"),
    "rsqrt": _unary("rsqrt"),
    "hardsigmoid": _unary("hard_sigmoid"),
    "hardswish": _unary("hard_swish"),
    "silu": _unary("silu"),
    "leaky_relu": _unary("leaky_relu", negative_slope="negative_slope"),
    "gelu": _unary("gelu", approximate="approximate"),
    "softmax": _unary("softmax", dim="dim"),
}
