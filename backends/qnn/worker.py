"""The process that loads the vendor's libraries: one request, one session, then it ends.

It is run as a script in a fresh directory, `python -P worker.py < request`, and imports nothing of
ours: a crash, a hang or a word on stdout stays here. Two sessions for two chips in one process give
wrong or failing runs, and a process that forked after using the libraries hangs.

Request, as JSON on stdin: `action` ("compile", "dlc" or "run"), `model` (path), `soc_model`
(number); for "run" also `names` of inputs, whose values are in `inputs.npz` in that order. Left in
the directory:

    result.json         {"error": null or the runtime's words, "ready": whether the session was
                        made, "peak_rss_mb": ..., "names": [...]}
    model_ctx.onnx      "compile": the context; its binary is model_ctx_qnn.bin
    graphs/*.json       "compile": every graph that was given to the HTP
    dlc/*.dlc           "dlc"
    outputs.npz         "run": in the order of `names` in the result
"""

import json
import sys
from pathlib import Path
from typing import Any

EP = "QNNExecutionProvider"
CONTEXT = "model_ctx.onnx"


def main() -> None:
    """Do what the request on stdin says."""
    import resource  # not on Windows, where other modules read CONTEXT

    request = json.load(sys.stdin)
    answer: dict[str, Any] = {"error": None, "ready": False, "names": []}
    Path("graphs").mkdir()
    try:
        session = _session(request, *_ACTIONS[request["action"]])
        answer["ready"] = True
        if request["action"] == "run":
            answer["names"] = _run(session, request["names"])
    except Exception as raised:  # every failure of the libraries is a plain exception
        answer["error"] = f"{type(raised).__name__}: {raised}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    answer["peak_rss_mb"] = peak
    Path("result.json").write_text(json.dumps(answer))


def _run(session: Any, names: list[str]) -> list[str]:
    import numpy as np

    outputs = [output.name for output in session.get_outputs()]
    with np.load("inputs.npz") as inputs:
        feeds = dict(zip(names, inputs.values(), strict=True))
    np.savez("outputs.npz", *session.run(outputs, feeds))
    return outputs


def _session(request: dict[str, Any], options: dict[str, str], config: dict[str, str]) -> Any:
    import onnxruntime
    import onnxruntime_qnn

    onnxruntime.register_execution_provider_library(EP, onnxruntime_qnn.get_library_path())
    session = onnxruntime.SessionOptions()
    session.log_severity_level = 0  # why a node is refused is said nowhere else
    session.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    for key, value in config.items():
        session.add_session_config_entry(key, value)
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == EP]
    chip = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": str(request["soc_model"]),
    }
    session.add_provider_for_devices(devices, {**chip, **options})
    # Names in a context come from the path of a model file, or from the content of bytes. A
    # context itself is read by path, because its binary lies beside it.
    file = Path(request["model"])
    model = str(file) if file.name == CONTEXT else file.read_bytes()
    return onnxruntime.InferenceSession(model, session, enable_fallback=0)


_ACTIONS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "compile": (
        {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": "graphs"},
        {
            "ep.context_enable": "1",
            "ep.context_embed_mode": "0",
            "ep.context_file_path": CONTEXT,
        },
    ),
    "dlc": ({"dump_qnn_ir_dlc": "1", "dump_qnn_ir_dlc_dir": "dlc"}, {}),
    "run": ({}, {}),
}
"""Options of the provider and entries of the session for each action."""

if __name__ == "__main__":
    main()
