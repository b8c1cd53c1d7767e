"""A sample of the fault campaign: `make faults` plants hundreds in ten networks."""

from __future__ import annotations

import dataclasses

import pytest

from tests.faults.campaign import (
    READERS,
    Outcome,
    alarms,
    bundle_of,
    faults_of,
    outcome,
    outcomes,
    summary,
)

NETWORK = "unet"


@pytest.mark.parametrize(("backend", "kind"), READERS)
def test_faults_are_found_and_named(backend: str, kind: str) -> None:
    found = [o for o in outcomes((NETWORK, backend, kind, 12, 0)) if o.loaded]
    assert len(found) == 12
    assert len({o.kind for o in found}) >= 11
    assert [o for o in found if not o.localized] == []


@pytest.mark.parametrize("backend", ["onnx", "tflite"])
def test_clean_bundles_raise_no_alarm(backend: str) -> None:
    assert alarms((NETWORK, backend, 2, 7)) == []


def test_a_fault_that_changes_nothing_counts_as_missed() -> None:
    """The campaign can fail: it does not take a changed file for a changed network."""
    fault = faults_of(NETWORK, "onnx", "int8")[0]
    harmless = dataclasses.replace(fault, plant=lambda data: data)
    missed = outcome(NETWORK, "onnx", "int8", harmless)
    assert missed.loaded
    assert not missed.detected
    assert "0.0% detected, 0.0% localized" in summary([missed], [], 1)


def test_another_node_named_is_not_localized() -> None:
    blamed = frozenset({"conv"})
    there = Outcome(NETWORK, "onnx", "int8", "kind", "place", True, True, "conv", blamed)
    elsewhere = dataclasses.replace(there, named="relu")
    assert there.localized
    assert not elsewhere.localized
    assert "100.0% detected, 50.0% localized" in summary([there, elsewhere], [], 1)


def test_every_network_has_faults_of_many_kinds() -> None:
    assert bundle_of(NETWORK, "onnx").name == NETWORK
    kinds = {f.kind for backend, kind in READERS for f in faults_of(NETWORK, backend, kind)}
    words = {kind.split(":")[0] for kind in kinds}
    assert words == {
        *("weight", "bias", "scale", "zero point", "axes", "layout", "padding"),
        *("op", "operands", "dtype", "attribute"),
    }
