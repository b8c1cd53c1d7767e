"""Chips that a context binary can be asked for: our own list, because the tool has none.

The tool takes a chip as a number and believes almost any: numbers of chips without an HTP compile,
and what is no number at all compiles for the oldest HTP with a warning at most. So nothing but a
name from this table reaches it, and what comes back must name the same number.

Numbers, HTP versions and sizes of the tightly coupled memory (VTCM) are those of the BSD-licensed
`backends/qualcomm/serialization/qc_schema.py` in pytorch/executorch. Four chips in it are left out
(numbers 42, 45, 46 and 58): the vendor's own pages give them another HTP version.
"""

from __future__ import annotations

from dataclasses import dataclass

from fuseq import plugins
from fuseq.errors import FuseqError


@dataclass(frozen=True)
class Chip:
    """One system on a chip.

    Attributes:
        name: its part number, in lower case.
        soc_model: the vendor's number for it.
        htp: version of its tensor processor (73 for "v73").
        vtcm_mb: memory beside the processor, in MB.
        product: what a phone's chip is sold as, or what the others are made for.
    """

    name: str
    soc_model: int
    htp: int
    vtcm_mb: int
    product: str


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("qcm6490", 93, 68, 2, "industrial"),
        Chip("qcs9100", 77, 73, 8, "industrial"),
        Chip("sa8255", 52, 73, 8, "cars"),
        Chip("sa8295", 39, 68, 8, "cars"),
        Chip("sa8540", 62, 68, 8, "cars"),
        Chip("sa8797", 72, 81, 16, "cars"),
        Chip("sar2230p", 95, 81, 4, "glasses"),
        Chip("sm8350", 30, 68, 4, "Snapdragon 888"),
        Chip("sm8450", 36, 69, 8, "Snapdragon 8 Gen 1"),
        Chip("sm8550", 43, 73, 8, "Snapdragon 8 Gen 2"),
        Chip("sm8650", 57, 75, 8, "Snapdragon 8 Gen 3"),
        Chip("sm8750", 69, 79, 8, "Snapdragon 8 Elite"),
        Chip("sm8845", 97, 81, 8, "Snapdragon 8 Gen 5"),
        Chip("sm8850", 87, 81, 8, "Snapdragon 8 Elite Gen 5"),
        Chip("sw6100", 96, 81, 4, "watches"),
        Chip("sxr2230p", 53, 69, 8, "headsets"),
        Chip("sxr2330p", 75, 79, 8, "headsets"),
    )
}


def chip(name: str) -> Chip:
    """The chip of a name, in any case.

    Raises:
        FuseqError: FQ007 with the near names if there is none.
    """
    found = CHIPS.get(name.lower())
    if found is None:
        raise FuseqError(
            "FQ007",
            f"unknown chip '{name}'",
            why=f"known are {', '.join(CHIPS)}",
            fix=plugins.did_you_mean(name.lower(), CHIPS) or "fuseq backends qnn lists them",
        )
    return found
