"""The page in a real browser: it is operated as a person would, and logs no error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuseq.bundle import read_bundle
from fuseq.report.find import find
from fuseq.report.write import write
from tests.report.browser import NAMES, Tab, browser, found
from tests.report.hostile import hostile_findings

pytestmark = pytest.mark.skipif(
    found() is None, reason=f"no browser here: apt-get install {NAMES[0]}"
)


@pytest.fixture(scope="module")
def page(enlarging: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "page.html"
    return write(find(read_bundle(enlarging)), out).page


@pytest.fixture
def tab(page: Path) -> Iterator[Tab]:
    """The page, light, in a window; afterwards, that nothing went wrong in it."""
    with browser() as opened:
        opened.size(1200, 900)
        opened.prefer("light")
        opened.open(page)
        yield opened
        assert opened.errors() == []
        assert opened.requests() == []


def middle(tab: Tab, selector: str) -> tuple[float, float]:
    """Middle of an element, in the window, once it is scrolled there."""
    tab.run(f"document.querySelector(`{selector}`).scrollIntoView({{block: 'center'}})")
    box = f"document.querySelector(`{selector}`).getBoundingClientRect()"
    x, y, width, height = tab.run(f"(b => [b.x, b.y, b.width, b.height])({box})")
    assert width > 0
    assert height > 0
    return x + width / 2, y + height / 2


def test_the_slider_moves_the_border_between_float_and_int8(tab: Tab) -> None:
    at = "getComputedStyle(document.querySelector('.stage')).getPropertyValue('--at')"
    assert tab.run(at) == "50%"
    x, y = middle(tab, ".compare input")
    width = tab.run("document.querySelector('.compare input').getBoundingClientRect().width")
    tab.pointer("mouseMoved", x, y)
    tab.pointer("mousePressed", x, y, pressed=True)
    tab.pointer("mouseMoved", x + width / 4, y, pressed=True)
    tab.pointer("mouseReleased", x + width / 4, y)
    assert 70 < float(tab.run(at).removesuffix("%")) < 80
    x, y = middle(tab, ".stage")
    tab.click(x, y)
    assert 48 < float(tab.run(at).removesuffix("%")) < 52
    shown = tab.run("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(shown) == 6
    assert all(shown)


def test_a_node_tells_its_source_line_and_lights_up_with_what_it_became(tab: Tab) -> None:
    part = ".graph:nth-child(1) .node[data-node='wide']"
    tab.pointer("mouseMoved", *middle(tab, part))
    tip = tab.run("document.getElementById('tip').hidden ? '' : tip.innerText")
    assert tip.splitlines()[0] == "wide"
    assert "conftest.py:" in tip
    assert "becomes part of fused" in tip
    assert "dB of relu_1" in tip
    lit = tab.run("[...document.querySelectorAll('.lit')].map(n => n.dataset.node)")
    assert {"wide", "narrow", "norm"} <= set(lit)
    after = tab.run("document.querySelectorAll('.graph:nth-child(2) .lit').length")
    assert after == 1
    tab.pointer("mouseMoved", 2, 2)
    assert tab.run("document.getElementById('tip').hidden") is True
    assert tab.run("document.querySelectorAll('.lit').length") == 0


def test_a_click_on_a_layer_opens_its_charts(tab: Tab) -> None:
    assert tab.run("document.querySelectorAll('details.value[open]').length") == 0
    tab.click(*middle(tab, ".graph:nth-child(2) .node[data-node='head']"))
    opened = "document.querySelector('details.value[open]')"
    assert tab.run(f"{opened}.querySelector('.name').innerText").startswith("head")
    assert tab.run(f"{opened}.querySelectorAll('svg').length") == 2
    top, bottom = tab.run(f"(b => [b.top, b.bottom])({opened}.getBoundingClientRect())")
    assert 0 <= top < 900
    assert bottom > top + 100
    tab.click(*middle(tab, "details.value[open] .locate"))
    lit = "document.querySelector('.graph:nth-child(2) .lit')"
    assert tab.run(f"{lit}.dataset.node") == "head"
    top, bottom = tab.run(f"(b => [b.top, b.bottom])({lit}.getBoundingClientRect())")
    assert 0 < top < bottom < 900
    tab.click(*middle(tab, "details.value[open] > summary"))
    assert tab.run("document.querySelectorAll('details.value[open]').length") == 0


def test_graphs_are_scaled_and_moved(tab: Tab) -> None:
    width = "document.querySelector('.graph:nth-child(1) svg').getBoundingClientRect().width"
    before = tab.run(width)
    tab.click(*middle(tab, ".graph:nth-child(1) [data-zoom='1']"))
    assert tab.run(width) == pytest.approx(before * 1.25, rel=0.01)
    tab.click(*middle(tab, ".graph:nth-child(1) [data-zoom='0']"))
    assert tab.run(width) <= tab.run("document.querySelector('.canvas').clientWidth")
    for _ in range(6):
        tab.click(*middle(tab, ".graph:nth-child(1) [data-zoom='1']"))
    canvas = "document.querySelector('.graph:nth-child(1) .canvas')"
    x, y = middle(tab, ".graph:nth-child(1) .canvas")
    start = tab.run(f"{canvas}.scrollTop")
    tab.pointer("mouseMoved", x, y)
    tab.pointer("mousePressed", x, y, pressed=True)
    tab.pointer("mouseMoved", x, y - 80, pressed=True)
    tab.pointer("mouseReleased", x, y - 80)
    assert tab.run(f"{canvas}.scrollTop") == pytest.approx(start + 80, abs=2)


def test_light_and_dark_follow_the_system(tab: Tab) -> None:
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
        " getComputedStyle(document.querySelector('.node rect')).fill]"
    )

    def brightness(colour: str) -> float:
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    paper, ink, _ = map(brightness, tab.run(colours))
    assert paper > 600 > 300 > ink
    light = tab.run(colours)
    tab.prefer("dark")
    paper, ink, _ = map(brightness, tab.run(colours))
    assert paper < 150 < 600 < ink
    assert tab.run(colours)[2] != light[2]


def test_a_phone_shows_it_all_without_scrolling_sideways(tab: Tab) -> None:
    tab.size(360, 740)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    first, second = tab.run(
        "[...document.querySelectorAll('.graph')].map(g => g.getBoundingClientRect().top)"
    )
    assert second > first + 100


def test_a_long_list_of_values_is_shown_on_request(
    tab: Tab, enlarging: Path, tmp_path: Path
) -> None:
    findings = find(read_bundle(enlarging))
    many = dataclasses.replace(findings, values=[*findings.values] * 4)
    tab.open(write(many, tmp_path / "many.html").page)
    shown = "[...document.querySelectorAll('details.value')].filter(d => d.offsetHeight).length"
    assert tab.run(shown) == 20
    tab.click(*middle(tab, "#more"))
    assert tab.run(shown) == len(many.values) > 20
    assert tab.run("document.querySelector('#more').offsetHeight") == 0


def test_hostile_texts_run_nothing(tab: Tab, enlarging: Path, tmp_path: Path) -> None:
    findings = hostile_findings(find(read_bundle(enlarging)))
    tab.open(write(findings, tmp_path / "hostile.html").page)
    tab.pointer("mouseMoved", *middle(tab, ".graph:nth-child(1) .node"))
    assert "</script>" in tab.run("document.getElementById('tip').innerText")
    assert tab.run("window.injected === undefined") is True
    assert tab.run("document.scripts.length") == 1


def test_an_error_and_a_request_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>nowhere()</script>")
    with browser() as tab:
        tab.open(page)
        assert any("nowhere" in str(error) for error in tab.errors())
        assert tab.requests() == ["http://127.0.0.1:9/x.png"]
