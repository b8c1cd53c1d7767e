"""A drawing is well-formed, shows every value, and takes no text of the user's for markup."""

import dataclasses
from xml.etree import ElementTree

import torch
from torch import nn

import fuseq
from fuseq.outline import outline
from fuseq.report.drawing import Shade, draw, level, program_svg

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</title><script>alert(1)</script>\"'&<![CDATA["


def program() -> fuseq.Program:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return fuseq.capture(block.eval(), torch.rand(1, 3, 16, 16))


def nodes_of(svg: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    return [g for g in root.iter(f"{SVG}g") if g.get("data-node") is not None]


def test_a_program_is_one_svg_with_a_box_for_each_value():
    found = program()
    boxes = nodes_of(program_svg(found))
    assert [box.get("data-node") for box in boxes] == [n.name for n in outline(found)]
    titles = [box.find(f"{SVG}title") for box in boxes]
    assert all(title is not None and title.text for title in titles)
    tooltip = titles[1].text.splitlines()  # type: ignore[union-attr]
    assert tooltip[1:3] == ["conv2d channels=3->8 kernel=3x3 padding=(1, 1)", "float32 1×8×16×16"]


def test_the_outline_has_costs_and_places():
    conv = outline(program())[1]
    assert (conv.op, conv.operands) == ("conv2d", (outline(program())[0].name,))
    assert conv.macs == 16 * 16 * 8 * 27
    assert conv.parameters == 8 * 27 + 8


def test_a_quantized_program_shows_its_grids():
    quantized = fuseq.quantize(fuseq.fuse(program()), calibration=[torch.rand(1, 3, 16, 16)])
    assert "uint8 scale=" in program_svg(quantized)


def test_colours_follow_the_signal():
    assert [level(x) for x in (None, -3.0, 15.0, 29.9, 40.0)] == [
        "level-none",
        "level-0",
        "level-1",
        "level-3",
        "level-5",
    ]
    drawing = draw(outline(program()), {outline(program())[0].name: Shade(sqnr_db=12.0)})
    box = nodes_of(str(drawing.svg))[0]
    assert box.get("class") == "node level-0"
    assert "12 dB" in "".join(box.itertext())


def test_no_text_of_the_users_becomes_markup():
    first, *rest = outline(program())
    hostile = dataclasses.replace(
        first, name=HOSTILE, op=f"foreign:{HOSTILE}", source=HOSTILE, scope=HOSTILE, dtype=HOSTILE
    )
    shade = Shade(9.0, HOSTILE, HOSTILE, (HOSTILE,), HOSTILE)
    svg = str(draw([hostile, *rest[1:]], {HOSTILE: shade}, label=HOSTILE).svg)
    root = ElementTree.fromstring(svg)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "g", "title", "rect", "text", "path")
    }
    assert nodes_of(svg)[0].get("data-node") == HOSTILE
    assert nodes_of(svg)[0].get("data-anchor") == HOSTILE
