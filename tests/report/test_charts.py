"""Bars are as high as their counts say, and clip lines stand where the grid ends."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from fuseq.report.charts import FOOT, HEIGHT, WIDTH, channels_svg, histogram_svg
from fuseq.report.measured_values import Channels, Histogram


def part(svg: str, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    return [element for element in root if element.get("class") == kind]


def test_a_histogram_is_drawn_to_scale():
    svg = str(histogram_svg(Histogram(-1.0, 3.0, (0, 9, 99, 0), 0.0, 2.0)))
    (bars,) = part(svg, "bars")
    heights = [float(v) for v in re.findall(r"V([\d.]+)", str(bars.get("d")))]
    floor = HEIGHT - FOOT
    assert heights[0] == heights[3] == floor
    assert floor - heights[2] == pytest.approx(floor - 6, abs=0.1)
    assert floor - heights[1] == pytest.approx((floor - 6) * math.log(10) / math.log(100), abs=0.1)
    lines = [line.get("d") for line in part(svg, "clip")]
    assert lines == [f"M{WIDTH / 4:g} 0V{floor:g}", f"M{WIDTH * 3 / 4:g} 0V{floor:g}"]
    assert [float(str(cut.get("width"))) for cut in part(svg, "cut")] == [WIDTH / 4, WIDTH / 4]


def test_an_empty_histogram_is_flat():
    svg = str(histogram_svg(Histogram(0.0, 1.0, (0, 0), 0.0, 1.0)))
    (bars,) = part(svg, "bars")
    assert set(re.findall(r"V([\d.]+)", str(bars.get("d")))) == {f"{HEIGHT - FOOT:g}"}


def test_channels_are_drawn_to_scale():
    svg = str(channels_svg(Channels("conv", (-1.0, 0.0), (2.0, 1.0), (2.0, 4.0), "int8")))
    (ranges,) = part(svg, "ranges")
    middle, half = HEIGHT / 2, HEIGHT / 2 - 4
    pairs = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", str(ranges.get("d")))
    places = [[float(number) for number in pair] for pair in pairs]
    expected = [
        [WIDTH / 4, middle + half / 4, middle - half / 2],
        [WIDTH * 3 / 4, middle, middle - half / 4],
    ]
    for drawn, wanted in zip(places, expected, strict=True):
        assert drawn == pytest.approx(wanted, abs=0.1)


def test_weights_of_zero_are_drawn():
    svg = str(channels_svg(Channels("conv", (0.0,), (0.0,), (0.0,), "int8")))
    assert "nan" not in svg
