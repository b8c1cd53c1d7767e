"""Productions around affine regions: nonlinear ones, and affine ones of another kind."""

from __future__ import annotations

from tests.fuzz.affine import batch_norm, window
from tests.fuzz.writer import Production, UnfitError, Value, Writer


def activation(w: Writer, x: Value) -> Value:
    names = ("relu", "sigmoid", "tanh", "silu", "hardswish", "gelu", "leaky_relu", "elu")
    return w.line(f"F.{w.random.choice(names)}({x.name})")


def selection(w: Writer, x: Value) -> Value:
    return w.line(f"F.max_pool2d({x.name}, {w.integer(1, 3)}, {w.integer(1, 2)})")


def product(w: Writer, x: Value) -> Value:
    other = w.random.choice([v for v in w.values if v.shape == x.shape] or [x])
    return w.line(f"{x.name} * {other.name}")


def gate(w: Writer, x: Value) -> Value:
    """Squeeze and excitation."""
    squeezed = w.line(f"{x.name}.mean((2, 3), keepdim=True)")
    weights = w.apply(f"nn.Conv2d({x.channels}, {x.channels}, 1)", squeezed)
    return w.line(f"{x.name} * torch.sigmoid({weights.name})")


def statistics(w: Writer, x: Value) -> Value:
    return w.apply(f"nn.GroupNorm(1, {x.channels})", x)


# --- affine, but other than one convolution of one map ---


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


def upsampled(w: Writer, x: Value) -> Value:
    larger = w.line(f"F.interpolate({x.name}, scale_factor={w.integer(2, 3)}.0)")
    return window(w, larger, w.channels(x.channels), 1, 0) if w.chance(0.7) else larger


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


def channels_last(w: Writer, x: Value) -> Value:
    last = w.line(f"{x.name}.permute(0, 2, 3, 1)")
    linear = w.apply(f"nn.Linear({x.channels}, {w.channels(x.channels)})", last)
    return w.line(f"{linear.name}.permute(0, 3, 1, 2)")


def shuffled(w: Writer, x: Value) -> Value:
    n, c, h, width = x.shape
    if c % 2:
        raise UnfitError
    return w.line(f"{x.name}.view({n}, 2, {c // 2}, {h}, {width}).transpose(1, 2).flatten(1, 2)")


def cropped_by_its_size(w: Writer, x: Value) -> Value:
    return w.line(f"{x.name}[:, :, 1:{x.name}.shape[2] - 1, :{x.name}.shape[3] - 1]")


def cropped_ring(w: Writer, x: Value) -> Value:
    """Two padded windows, of which a later crop removes what the first one's padding spoils."""
    first = w.apply(f"nn.Conv2d({x.channels}, {x.channels}, 3, padding=1)", x)
    second = w.apply(f"nn.Conv2d({x.channels}, {w.channels(x.channels)}, 3, padding=1)", first)
    margin = w.integer(1, 2)
    return w.line(f"{second.name}[:, :, {margin}:-{margin}, {margin}:-{margin}]")


def norm_read_by_several(w: Writer, x: Value) -> Value:
    norm = batch_norm(w, x)
    parts = [window(w, norm, n, 1, 0, kernel=1) for n in (w.integer(1, 6), w.integer(1, 6))]
    return w.line(f"torch.cat([{parts[0].name}, torch.relu({parts[1].name})], 1)")


def transposed_branches(w: Writer, x: Value) -> Value:
    """Transposed convolutions of one geometry that meet, with norms on either side."""
    outputs, kernel, stride = w.channels(x.channels), w.integer(2, 4), w.integer(1, 2)
    code = f"nn.ConvTranspose2d({x.channels}, {outputs}, {kernel}, stride={stride}, bias=%s)"
    first = w.apply(code % w.chance(0.5), batch_norm(w, x) if w.chance(0.3) else x)
    second = batch_norm(w, w.apply(code % False, x))
    return w.line(f"{first.name} + {second.name}")


def upsampled_sum(w: Writer, x: Value) -> Value:
    """Upsampled branches that meet, as in decoders."""
    outputs = w.channels(x.channels)
    parts = [window(w, x, outputs, 1, 0) for _ in range(2)]
    first, second = (w.line(f"F.interpolate({p.name}, scale_factor=2.0)") for p in parts)
    return batch_norm(w, w.line(f"{first.name} - {second.name}"))


def rearranged(w: Writer, x: Value) -> Value:
    inner = window(w, x, 4 * w.integer(1, 4), 1, 0)
    return w.line(f"F.pixel_shuffle({inner.name}, 2)")


def vector(w: Writer, x: Value) -> Value:
    """Linear layers and norms on vectors."""
    outputs = w.channels(x.channels)
    pooled = w.line(f"{x.name}.mean((2, 3))")
    linear = w.apply(f"nn.Linear({x.channels}, {outputs}, bias={w.chance(0.5)})", pooled)
    norm = w.line(f"{w.layer(f'nn.BatchNorm1d({outputs})')}({linear.name})")
    second = w.apply(f"nn.Linear({outputs}, {x.channels})", norm)
    return w.line(f"{x.name} + {second.name}[:, :, None, None]")


NONLINEAR: dict[Production, int] = {
    activation: 4,
    selection: 1,
    product: 1,
    gate: 1,
    statistics: 1,
}

NEAR: dict[Production, int] = {
    transposed: 2,
    upsampled: 2,
    tokens: 2,
    channels_last: 1,
    shuffled: 1,
    cropped_by_its_size: 1,
    cropped_ring: 2,
    norm_read_by_several: 2,
    transposed_branches: 2,
    upsampled_sum: 1,
    rearranged: 1,
    vector: 1,
}
