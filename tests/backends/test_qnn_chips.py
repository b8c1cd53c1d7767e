"""The table of chips."""

from __future__ import annotations

import pytest

from fuseq import plugins
from fuseq.backends.qnn.chips import CHIPS, chip
from fuseq.errors import FuseqError

DOUBTFUL = {42, 45, 46, 58}  # the vendor's own pages disagree with the source of the table


def test_each_chip_has_a_number_of_its_own() -> None:
    numbers = [each.soc_model for each in CHIPS.values()]
    assert len(set(numbers)) == len(numbers)
    assert not DOUBTFUL.intersection(numbers)
    assert all(name == each.name == name.lower() for name, each in CHIPS.items())


def test_a_name_in_any_case() -> None:
    assert chip("SM8750") is CHIPS["sm8750"]


@pytest.mark.parametrize(
    ("name", "near"), [("sm8570", "sm8"), ("qcs6490", "qcm6490"), ("69", "fuseq backends qnn")]
)
def test_unknown_names(name: str, near: str) -> None:
    with pytest.raises(FuseqError, match="FQ007") as raised:
        chip(name)
    assert near in (raised.value.fix or "")
    assert plugins.did_you_mean("sm875", CHIPS) == "did you mean 'sm8750'?"
