"""The grammar of random networks.

A *production* gets a `Writer` and a value and writes lines that compute a new value. To teach the
fuzzer a construction, add a function with `@production(kind)`; whatever it raises makes the writer
take the lines back and draw another one. Kinds: "affine" (one root, translation-equivariant),
"near" (affine, but a boundary of regions or nearly so), "nonlinear".
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from tests.fuzz.graphs import NAMES, Graph, live

Production = Callable[["Writer", "Value"], "Value"]
PRODUCTIONS: dict[str, list[Production]] = {"affine": [], "near": [], "nonlinear": []}
MOST_CHANNELS = 24
MOST_ELEMENTS = 30_000


def production(kind: str, weight: int = 1) -> Callable[[Production], Production]:
    def register(function: Production) -> Production:
        PRODUCTIONS[kind] += [function] * weight
        return function

    return register


class UnfitError(Exception):
    """A production does not apply to a value."""


@dataclass(frozen=True)
class Value:
    name: str
    shape: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.shape[1]


@dataclass
class Writer:
    """Writes a graph line by line, and runs each line, so that shapes are known."""

    random: random.Random
    layers: list[tuple[str, str]] = field(default_factory=list)
    lines: list[tuple[str, str]] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    attributes: SimpleNamespace = field(default_factory=SimpleNamespace)

    def input(self, shape: tuple[int, ...]) -> Value:
        value = Value(f"x{len(self.values)}", shape)
        self.values.append(value)
        self.tensors[value.name] = torch.randn(shape)
        return value

    def layer(self, code: str) -> str:
        name = f"m{len(self.layers)}"
        layer = eval(code, dict(NAMES))
        setattr(self.attributes, name, layer.eval() if isinstance(layer, nn.Module) else layer)
        self.layers.append((name, code))
        return f"self.{name}"

    def line(self, expression: str) -> Value:
        names = {**NAMES, **self.tensors, "self": self.attributes}
        with torch.no_grad():
            tensor = eval(expression, names)
        if not 0 < tensor.numel() <= MOST_ELEMENTS or tensor.shape[1] > MOST_CHANNELS:
            raise UnfitError
        name = f"v{len(self.lines)}"
        self.lines.append((name, expression))
        self.tensors[name] = tensor
        return Value(name, tuple(tensor.shape))

    def apply(self, layer: str, x: Value) -> Value:
        return self.line(f"{self.layer(layer)}({x.name})")

    def attempt(self, production: Production, x: Value) -> Value | None:
        lengths = len(self.layers), len(self.lines)
        try:
            return production(self, x)
        except (UnfitError, RuntimeError, ValueError):
            del self.layers[lengths[0] :], self.lines[lengths[1] :]
            return None

    # --- draws ---

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def integer(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def groups(self, inputs: int, outputs: int) -> int:
        common = math.gcd(inputs, outputs)
        return self.random.choice([1, 1, *(g for g in range(1, common + 1) if common % g == 0)])

    def channels(self, inputs: int) -> int:
        return self.random.choice([inputs, inputs, 2 * inputs, self.integer(1, 12)])


def graph_of(seed: int) -> Graph:
    """The graph of a seed: an affine one if it is even, else one of all productions."""
    return random_graph(seed, ("affine", "near", "nonlinear") if seed % 2 else ("affine",))


def random_graph(seed: int, kinds: Sequence[str]) -> Graph:
    """A graph of a few productions of some kinds, from one or several inputs."""
    w = Writer(random.Random(seed))
    torch.manual_seed(seed)
    size = [w.random.choice((1, 3, 6, 8, 9, 12, 13)) for _ in range(2)]
    for _ in range(w.random.choice((1, 1, 1, 1, 1, 2, 3))):
        w.input((w.integer(1, 2), w.integer(1, 12), *size))
    productions = [p for kind in kinds for p in PRODUCTIONS[kind]]
    wanted = w.integer(1, 7)
    for _ in range(4 * wanted):
        x = w.values[-1] if w.chance(0.8) else w.random.choice(w.values)
        value = w.attempt(w.random.choice(productions), x)
        if value is not None:
            w.values.append(value)
            wanted -= 1
        if not wanted:
            break
    inputs = tuple(v.shape for v in w.values if v.name.startswith("x"))
    outputs = [w.values[-1].name]
    if w.chance(0.15):
        outputs.append(w.random.choice(w.values[len(inputs) - 1 :]).name)
    graph = Graph(seed, inputs, tuple(w.layers), tuple(w.lines), tuple(dict.fromkeys(outputs)))
    return live(graph) if w.lines else random_graph(seed + 10**9, kinds)


# --- affine: one operation ---


@production("affine", 3)
def convolution(w: Writer, x: Value) -> Value:
    """Any kernel, stride, dilation, groups and symmetric padding."""
    outputs = w.channels(x.channels)
    kernel = (w.integer(1, 5), w.integer(1, 5)) if w.chance(0.3) else (w.integer(1, 4),) * 2
    dilation = (w.random.choice((1, 1, 1, 2)), w.random.choice((1, 1, 1, 3)))
    stride = (w.random.choice((1, 1, 2)), w.random.choice((1, 1, 3))) if w.chance(0.4) else 1
    padding = tuple(w.integer(0, k) for k in kernel) if w.chance(0.5) else 0
    return w.apply(
        f"nn.Conv2d({x.channels}, {outputs}, {kernel}, stride={stride}, padding={padding}, "
        f"dilation={dilation}, groups={w.groups(x.channels, outputs)}, bias={w.chance(0.5)})",
        x,
    )


@production("affine")
def pointwise(w: Writer, x: Value) -> Value:
    return window(w, x, w.channels(x.channels), 1, 0, kernel=1)


@production("affine", 2)
def batch_norm(w: Writer, x: Value) -> Value:
    return w.apply(f"nn.BatchNorm2d({x.channels})", x)


@production("affine", 2)
def scale_or_shift(w: Writer, x: Value) -> Value:
    gamma = f"nn.Parameter(torch.randn({x.channels}, 1, 1))"
    beta = f"nn.Parameter(torch.randn(1, {x.channels}, 1, 1))"
    form = w.random.choice(
        [
            "{x} * {gamma}",
            "{x} + {beta}",
            "{gamma} - {x}",
            "{x} / 3 - {beta}",
            "-{x}",
            "1 - 0.5 * {x}",
        ]
    )
    text = form.replace("{x}", x.name)
    if "{gamma}" in text:
        text = text.replace("{gamma}", w.layer(gamma))
    if "{beta}" in text:
        text = text.replace("{beta}", w.layer(beta))
    return w.line(text)


@production("affine")
def average_pool(w: Writer, x: Value) -> Value:
    kernel = (w.integer(1, 4), w.integer(1, 4))
    padding = tuple(w.integer(0, k // 2) for k in kernel) if w.chance(0.5) else 0
    stride = w.random.choice(("1", "2", "(1, 2)", "None"))
    divisor = w.random.choice(("None", "None", "3"))
    return w.line(
        f"F.avg_pool2d({x.name}, {kernel}, {stride}, {padding}, {w.chance(0.2)}, "
        f"{w.chance(0.8)}, {divisor})"
    )


@production("affine", 2)
def pad(w: Writer, x: Value) -> Value:
    """Padding and cropping, by zeros, another number, or the map itself."""
    amounts = tuple(w.integer(-2, 3) for _ in range(4))
    mode = w.random.choice(['"constant"'] * 8 + ['"reflect"', '"replicate"', '"circular"'])
    value = "" if mode != '"constant"' or w.chance(0.8) else ", 0.5"
    if mode != '"constant"':
        amounts = tuple(abs(n) for n in amounts)
    return w.line(f"F.pad({x.name}, {amounts}, {mode}{value})")


@production("affine", 2)
def crop(w: Writer, x: Value) -> Value:
    step = w.random.choice(("", "", "", ":2", ":3"))
    ends = w.random.choice(("", "", "-1", "-2"))
    return w.line(
        f"{x.name}[:, :, {w.integer(0, 2)}:{ends}{step}, {w.random.choice(('', '1'))}:{step}]"
    )


@production("affine")
def some_channels(w: Writer, x: Value) -> Value:
    start = w.integer(0, x.channels - 1)
    return w.line(f"{x.name}[:, {start}:{w.integer(start + 1, x.channels)}]")


@production("affine")
def pixel_unshuffle(w: Writer, x: Value) -> Value:
    return w.line(f"F.pixel_unshuffle({x.name}, 2)")


@production("affine")
def earlier_layer(w: Writer, x: Value) -> Value:
    """A layer that is called a second time."""
    known = [name for name, code in w.layers if code.startswith(("nn.Conv2d", "nn.Batch"))]
    if not known:
        raise UnfitError
    return w.line(f"self.{w.random.choice(known)}({x.name})")


# --- affine: values that meet ---


@production("affine", 2)
def meeting(w: Writer, x: Value) -> Value:
    """A sum or difference with an earlier value, which may be read elsewhere too."""
    others = [v for v in w.values if v.shape == x.shape]
    if not others:
        raise UnfitError
    other = w.random.choice(others)
    return w.line(f"{x.name} {w.random.choice('++-')} {other.name}")


@production("affine")
def concatenation(w: Writer, x: Value) -> Value:
    others = [v for v in w.values if (v.shape[0], *v.shape[2:]) == (x.shape[0], *x.shape[2:])]
    if not others:
        raise UnfitError
    return w.line(f"torch.cat([{x.name}, {w.random.choice(others).name}], 1)")


@production("affine", 6)
def block(w: Writer, x: Value) -> Value:
    """Branches of one geometry, as re-parameterizable blocks have them."""
    stride = w.random.choice((1, 1, 1, 2, 3))
    grow = w.random.choice((0, 0, 0, -1, -2, 1, 2))
    return branches(w, x, w.channels(x.channels), stride, grow, depth=2)


def branches(w: Writer, x: Value, outputs: int, stride: int, grow: int, depth: int) -> Value:
    """Sum, difference or concatenation of branches, whose maps have the size of `window`."""
    count = w.integer(1, 3) if depth else 1
    if depth and outputs > 1 and w.chance(0.2):
        first = w.integer(1, outputs - 1)
        parts = [branch(w, x, n, stride, grow, depth - 1).name for n in (first, outputs - first)]
        return w.line(f"torch.cat([{', '.join(parts)}], 1)")
    total = branch(w, x, outputs, stride, grow, depth - 1)
    for _ in range(count - 1):
        next_ = branch(w, x, outputs, stride, grow, depth - 1)
        total = w.line(f"{total.name} {w.random.choice('+++-')} {next_.name}")
    if outputs == x.channels and (stride, grow) == (1, 0) and w.chance(0.4):
        total = w.line(f"{total.name} + {x.name}")
    return total


def branch(w: Writer, x: Value, outputs: int, stride: int, grow: int, depth: int) -> Value:
    """A sequence of one to three operations."""
    kind = w.random.choice(
        ("window", "window", "sequence", "pad first", "nested", "pool", "bias pad")
    )
    if kind == "window" or depth < 0:
        return folded(w, window(w, x, outputs, stride, grow))
    if kind == "nested":
        return folded(w, branches(w, x, outputs, stride, grow, depth))
    if kind == "pool":
        inner = window(w, x, outputs, 1, 0, kernel=1)
        return folded(w, pooled(w, inner, stride, grow))
    hidden = w.channels(x.channels)
    if kind == "sequence":
        middle = folded(w, window(w, x, hidden, 1, 0, kernel=1))
        return folded(w, window(w, middle, outputs, stride, grow, padded=w.chance(0.3)))
    kernel = w.integer(1, 3)
    if kind == "bias pad":
        # The idiom of DBB and ECB: pad with what the bias and norm make of zero.
        layer = w.layer(f"nn.Conv2d({x.channels}, {hidden}, 1)")
        middle = w.line(f"{layer}({x.name}) - {layer}.bias.view(1, -1, 1, 1)")
        framed = split_pad(w, middle, kernel - 1 + grow, kernel - 1 + grow)
        shifted = w.line(f"{framed.name} + {layer}.bias.view(1, -1, 1, 1)")
        return w.apply(f"nn.Conv2d({hidden}, {outputs}, {kernel}, stride={stride})", shifted)
    total = kernel - 1 + grow + 2
    padded = split_pad(w, x, total, total)
    middle = folded(w, w.apply(f"nn.Conv2d({x.channels}, {hidden}, 3)", padded))
    return folded(w, w.apply(f"nn.Conv2d({hidden}, {outputs}, {kernel}, stride={stride})", middle))


def window(
    w: Writer,
    x: Value,
    outputs: int,
    stride: int,
    grow: int,
    *,
    kernel: int = 0,
    padded: bool = True,
) -> Value:
    """A convolution whose map has `floor((n - 1 + grow) / stride) + 1` rows and columns."""
    sizes = (kernel, kernel) if kernel else (w.integer(1, 4), w.integer(1, 4))
    if not padded and grow <= 0:
        sizes = (1 - grow, 1 - grow)
    dilation = w.random.choice((1, 1, 1, 2))
    groups = w.groups(x.channels, outputs)
    vertical, horizontal = (dilation * (k - 1) + grow for k in sizes)
    symmetric = vertical >= 0 and horizontal >= 0 and vertical % 2 == 0 and horizontal % 2 == 0
    padding: tuple[int, int] = (0, 0)
    if symmetric and w.chance(0.8):
        padding = (vertical // 2, horizontal // 2)
    else:
        x = split_pad(w, x, vertical, horizontal)
    return w.apply(
        f"nn.Conv2d({x.channels}, {outputs}, {sizes}, stride={stride}, padding={padding}, "
        f"dilation={dilation}, groups={groups}, bias={w.chance(0.4)})",
        x,
    )


def split_pad(w: Writer, x: Value, vertical: int, horizontal: int) -> Value:
    """Asymmetric padding (or cropping) by these amounts in all."""
    top, left = (w.integer(min(0, n), max(0, n)) for n in (vertical, horizontal))
    amounts = (left, horizontal - left, top, vertical - top)
    return w.line(f"F.pad({x.name}, {amounts})") if any(amounts) else x


def pooled(w: Writer, x: Value, stride: int, grow: int) -> Value:
    kernel = w.integer(2, 3)
    padded = split_pad(w, x, kernel - 1 + grow, kernel - 1 + grow)
    return w.line(f"F.avg_pool2d({padded.name}, {kernel}, {stride})")


def folded(w: Writer, x: Value) -> Value:
    """What often follows a convolution."""
    return w.random.choice((batch_norm, scale_or_shift, lambda _, x: x, lambda _, x: x))(w, x)


# --- nonlinear ---


@production("nonlinear", 4)
def activation(w: Writer, x: Value) -> Value:
    names = ("relu", "sigmoid", "tanh", "silu", "hardswish", "gelu", "leaky_relu", "elu")
    return w.line(f"F.{w.random.choice(names)}({x.name})")


@production("nonlinear")
def selection(w: Writer, x: Value) -> Value:
    return w.line(f"F.max_pool2d({x.name}, {w.integer(1, 3)}, {w.integer(1, 2)})")


@production("nonlinear")
def product(w: Writer, x: Value) -> Value:
    other = w.random.choice([v for v in w.values if v.shape == x.shape] or [x])
    return w.line(f"{x.name} * {other.name}")


@production("nonlinear")
def gate(w: Writer, x: Value) -> Value:
    """Squeeze and excitation."""
    squeezed = w.line(f"{x.name}.mean((2, 3), keepdim=True)")
    weights = w.apply(f"nn.Conv2d({x.channels}, {x.channels}, 1)", squeezed)
    return w.line(f"{x.name} * torch.sigmoid({weights.name})")


@production("nonlinear")
def statistics(w: Writer, x: Value) -> Value:
    return w.apply(f"nn.GroupNorm(1, {x.channels})", x)


# --- near: affine, but other than one convolution of one map ---


@production("near", 2)
def transposed(w: Writer, x: Value) -> Value:
    outputs = w.channels(x.channels)
    kernel, stride = w.integer(1, 4), w.integer(1, 3)
    padding = w.integer(0, (kernel - 1) // 2)
    return w.apply(
        f"nn.ConvTranspose2d({x.channels}, {outputs}, {kernel}, stride={stride}, "
        f"padding={padding}, output_padding={w.integer(0, stride - 1)}, "
        f"groups={w.groups(x.channels, outputs)}, bias={w.chance(0.5)})",
        x,
    )


@production("near", 2)
def upsampled(w: Writer, x: Value) -> Value:
    larger = w.line(f"F.interpolate({x.name}, scale_factor={w.integer(2, 3)}.0)")
    return window(w, larger, w.channels(x.channels), 1, 0) if w.chance(0.7) else larger


@production("near", 2)
def tokens(w: Writer, x: Value) -> Value:
    """Linear and batch norm on tokens, and back to a map."""
    rows = w.line(f"{x.name}.flatten(2).transpose(1, 2)")
    outputs = w.channels(x.channels)
    linear = w.apply(f"nn.Linear({x.channels}, {outputs}, bias={w.chance(0.5)})", rows)
    if w.chance(0.7):
        norm = w.layer(f"nn.BatchNorm1d({outputs})")
        linear = w.line(f"{norm}({linear.name}.flatten(0, 1)).reshape_as({linear.name})")
    size = f"{x.name}.shape[2], {x.name}.shape[3]"
    return w.line(f"{linear.name}.transpose(1, 2).reshape(-1, {outputs}, {size})")


@production("near")
def channels_last(w: Writer, x: Value) -> Value:
    last = w.line(f"{x.name}.permute(0, 2, 3, 1)")
    linear = w.apply(f"nn.Linear({x.channels}, {w.channels(x.channels)})", last)
    return w.line(f"{linear.name}.permute(0, 3, 1, 2)")


@production("near")
def shuffled(w: Writer, x: Value) -> Value:
    n, c, h, width = x.shape
    if c % 2:
        raise UnfitError
    return w.line(f"{x.name}.view({n}, 2, {c // 2}, {h}, {width}).transpose(1, 2).flatten(1, 2)")


@production("near")
def cropped_by_its_size(w: Writer, x: Value) -> Value:
    return w.line(f"{x.name}[:, :, 1:{x.name}.shape[2] - 1, :{x.name}.shape[3] - 1]")


@production("near", 2)
def cropped_ring(w: Writer, x: Value) -> Value:
    """Two padded windows, of which a later crop removes what the first one's padding spoils."""
    first = w.apply(f"nn.Conv2d({x.channels}, {x.channels}, 3, padding=1)", x)
    second = w.apply(f"nn.Conv2d({x.channels}, {w.channels(x.channels)}, 3, padding=1)", first)
    margin = w.integer(1, 2)
    return w.line(f"{second.name}[:, :, {margin}:-{margin}, {margin}:-{margin}]")


@production("near", 2)
def norm_read_by_several(w: Writer, x: Value) -> Value:
    norm = batch_norm(w, x)
    parts = [window(w, norm, n, 1, 0, kernel=1) for n in (w.integer(1, 6), w.integer(1, 6))]
    return w.line(f"torch.cat([{parts[0].name}, torch.relu({parts[1].name})], 1)")
