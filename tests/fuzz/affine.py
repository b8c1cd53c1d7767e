"""Affine productions: what regions are made of, and what looks like it."""

from __future__ import annotations

from tests.fuzz.writer import Production, UnfitError, Value, Writer


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


def pointwise(w: Writer, x: Value) -> Value:
    return window(w, x, w.channels(x.channels), 1, 0, kernel=1)


def batch_norm(w: Writer, x: Value) -> Value:
    return w.apply(f"nn.BatchNorm2d({x.channels})", x)


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


def average_pool(w: Writer, x: Value) -> Value:
    kernel = (w.integer(1, 4), w.integer(1, 4))
    padding = tuple(w.integer(0, k // 2) for k in kernel) if w.chance(0.5) else 0
    stride = w.random.choice(("1", "2", "(1, 2)", "None"))
    divisor = w.random.choice(("None", "None", "3"))
    return w.line(
        f"F.avg_pool2d({x.name}, {kernel}, {stride}, {padding}, {w.chance(0.2)}, "
        f"{w.chance(0.8)}, {divisor})"
    )


def pad(w: Writer, x: Value) -> Value:
    """Padding and cropping, by zeros, another number, or the map itself."""
    amounts = tuple(w.integer(-2, 3) for _ in range(4))
    mode = w.random.choice(['"constant"'] * 8 + ['"reflect"', '"replicate"', '"circular"'])
    value = "" if mode != '"constant"' or w.chance(0.8) else ", 0.5"
    if mode != '"constant"':
        amounts = tuple(abs(n) for n in amounts)
    return w.line(f"F.pad({x.name}, {amounts}, {mode}{value})")


def crop(w: Writer, x: Value) -> Value:
    step = w.random.choice(("", "", "", ":2", ":3"))
    ends = w.random.choice(("", "", "-1", "-2"))
    return w.line(
        f"{x.name}[:, :, {w.integer(0, 2)}:{ends}{step}, {w.random.choice(('', '1'))}:{step}]"
    )


def some_channels(w: Writer, x: Value) -> Value:
    start = w.integer(0, x.channels - 1)
    return w.line(f"{x.name}[:, {start}:{w.integer(start + 1, x.channels)}]")


def pixel_unshuffle(w: Writer, x: Value) -> Value:
    return w.line(f"F.pixel_unshuffle({x.name}, 2)")


def earlier_layer(w: Writer, x: Value) -> Value:
    """A layer that is called a second time."""
    known = [name for name, code in w.layers if code.startswith(("nn.Conv2d", "nn.Batch"))]
    if not known:
        raise UnfitError
    return w.line(f"self.{w.random.choice(known)}({x.name})")


# --- values that meet ---


def meeting(w: Writer, x: Value) -> Value:
    """A sum or difference with an earlier value, which may be read elsewhere too."""
    others = [v for v in w.values if v.shape == x.shape]
    if not others:
        raise UnfitError
    other = w.random.choice(others)
    return w.line(f"{x.name} {w.random.choice('++-')} {other.name}")


def concatenation(w: Writer, x: Value) -> Value:
    others = [v for v in w.values if (v.shape[0], *v.shape[2:]) == (x.shape[0], *x.shape[2:])]
    if not others:
        raise UnfitError
    return w.line(f"torch.cat([{x.name}, {w.random.choice(others).name}], 1)")


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


AFFINE: dict[Production, int] = {
    convolution: 3,
    pointwise: 1,
    batch_norm: 2,
    scale_or_shift: 2,
    average_pool: 1,
    pad: 2,
    crop: 2,
    some_channels: 1,
    pixel_unshuffle: 1,
    earlier_layer: 1,
    meeting: 2,
    concatenation: 1,
    block: 6,
}
