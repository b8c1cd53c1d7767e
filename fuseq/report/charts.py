"""Small charts as SVG: a histogram with what the grid cuts off, and weight ranges by channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from fuseq.report.measured_values import Channels, Histogram

WIDTH, HEIGHT, FOOT = 440.0, 150.0, 18.0


def histogram_svg(histogram: Histogram) -> Markup:
    """Counts of a value's reals, their height on a logarithmic scale, between clip lines."""
    top = math.log1p(max(histogram.counts))
    step = WIDTH / len(histogram.counts)
    floor = HEIGHT - FOOT
    path = f"M0 {_n(floor)}"
    for index, count in enumerate(histogram.counts):
        height = floor - (floor - 6) * math.log1p(count) / top if top else floor
        path += f"V{_n(height)}H{_n((index + 1) * step)}"
    path += f"V{_n(floor)}Z"

    def x(real: float) -> float:
        return (real - histogram.low) / (histogram.high - histogram.low) * WIDTH

    low, high = x(histogram.clip_low), x(histogram.clip_high)
    marks = [(low, histogram.clip_low), (high, histogram.clip_high)]
    if min(high - x(0.0), x(0.0) - low) > 60:
        marks.append((x(0.0), 0.0))
    return Markup("").join(
        (
            _open("how often each value occurs, and the ends of its grid"),
            Markup('<path class="bars" d="{}"/>').format(path),
            _cut_off(0, low),
            _cut_off(high, WIDTH),
            *(_clip_line(x) for x in (low, high)),
            *(_label(x, real) for x, real in marks),
            Markup("</svg>"),
        )
    )


def channels_svg(channels: Channels) -> Markup:
    """Smallest to largest weight of each output channel, and the ends of its grid."""
    top = max((*channels.limits, *channels.highs, *(-low for low in channels.lows)), default=0.0)
    middle, half = HEIGHT / 2, HEIGHT / 2 - 4
    step = WIDTH / max(len(channels.lows), 1)

    def y(real: float) -> str:
        return _n(middle - half * real / top if top else middle)

    centers = [(index + 0.5) * step for index in range(len(channels.lows))]
    bars = "".join(
        f"M{_n(x)} {y(low)}V{y(high)}"
        for x, low, high in zip(centers, channels.lows, channels.highs, strict=True)
    )
    ends = _steps(channels.limits, step, y) + _steps([-v for v in channels.limits], step, y)
    return Markup("").join(
        (
            _open("range of the weights of each output channel"),
            Markup('<path class="zero" d="M0 {}H{}"/>').format(_n(middle), _n(WIDTH)),
            Markup('<path class="ranges" stroke-width="{}" d="{}"/>').format(
                _n(max(min(step * 0.7, 9.0), 0.6)), bars
            ),
            Markup('<path class="ends" d="{}"/>').format(ends),
            Markup('<text x="4" y="12">{}</text>').format(f"{top:.3g}"),
            Markup('<text x="4" y="{}">{}</text>').format(_n(HEIGHT - 5), f"{-top:.3g}"),
            Markup("</svg>"),
        )
    )


def _open(label: str) -> Markup:
    return Markup('<svg class="chart" role="img" aria-label="{}" viewBox="0 0 {} {}">').format(
        label, _n(WIDTH), _n(HEIGHT)
    )


def _cut_off(left: float, right: float) -> Markup:
    return Markup('<rect class="cut" x="{}" y="0" width="{}" height="{}"/>').format(
        _n(left), _n(max(right - left, 0.0)), _n(HEIGHT - FOOT)
    )


def _clip_line(x: float) -> Markup:
    return Markup('<path class="clip" d="M{} 0V{}"/>').format(_n(x), _n(HEIGHT - FOOT))


def _label(x: float, real: float) -> Markup:
    anchor = "start" if x < WIDTH / 4 else "end" if x > WIDTH * 3 / 4 else "middle"
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
        _n(x), _n(HEIGHT - 4), anchor, f"{real:.3g}"
    )


def _steps(values: Sequence[float], step: float, y: Callable[[float], str]) -> str:
    """One horizontal piece for each channel, joined."""
    pieces = [f"V{y(value)}H{_n((index + 1) * step)}" for index, value in enumerate(values)]
    return f"M0 {y(values[0])}" + "".join(pieces) if values else ""


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
