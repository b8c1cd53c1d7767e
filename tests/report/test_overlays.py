"""Node data for Model Explorer, and a copy of the ONNX file for Netron."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import fuseq
from fuseq.bundle import read_bundle
from fuseq.report.find import find
from fuseq.report.overlays import METRICS, model_explorer, netron


def test_node_data_names_nodes_of_the_file(enlarging: Path) -> None:
    bundle = read_bundle(enlarging)
    values = find(bundle).values
    data = model_explorer(bundle, values)
    assert set(data) == set(METRICS)
    file = bundle.file("int8")
    assert file is not None
    graph = onnx.load(file).graph
    for name, content in data.items():
        (key,) = json.loads(content)
        found = json.loads(content)[key]
        assert (key, found["name"]) == (graph.name, name)
        assert set(found["results"]) <= {node.name for node in graph.node}
    sqnr = json.loads(data["sqnr_db"])[graph.name]["results"]
    expected = {v.statistics.node: v.statistics.sqnr_db for v in values}
    assert sqnr["head"]["value"] == pytest.approx(expected["head"], abs=1e-5)
    assert len(sqnr) == len(values)


def test_node_data_of_tflite_names_tensors(classifying: Path) -> None:
    bundle = read_bundle(classifying)
    values = find(bundle).values
    found = json.loads(model_explorer(bundle, values)["error_steps"])["main"]["results"]
    assert set(found) == {value.statistics.node for value in values}


def test_netron_gets_a_copy_that_computes_the_same(enlarging: Path) -> None:
    bundle = read_bundle(enlarging)
    file = bundle.file("int8")
    assert file is not None
    before = file.read_bytes()
    copy = onnx.load_from_string(netron(bundle, find(bundle).values))
    onnx.checker.check_model(copy)
    assert file.read_bytes() == before
    told = {n.name: {p.key: p.value for p in n.metadata_props} for n in copy.graph.node}
    assert set(told["head"]) == {f"fuseq.{name}" for name in METRICS}
    assert float(told["head"]["fuseq.sqnr_db"]) > 10
    feed = {"image": np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)}
    outputs = [
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for data in (before, copy.SerializeToString())
    ]
    assert np.array_equal(*outputs)


def test_what_has_nothing_to_show_is_refused(in_float: Path, classifying: Path) -> None:
    plain, tflite = read_bundle(in_float), read_bundle(classifying)
    with pytest.raises(fuseq.FuseqError, match=r"FQ012.*no quantized program"):
        model_explorer(plain, [])
    with pytest.raises(fuseq.FuseqError, match=r"FQ012.*\.tflite"):
        netron(tflite, find(tflite).values)
