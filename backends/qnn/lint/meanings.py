"""What each code of the lint means, in words; `docs/qnn.md` has the same table."""

from __future__ import annotations

MEANINGS = {
    "QNN101": (
        "a ReLU or clamp whose grid does not end where it cuts",
        "lose the clip: values leave its interval",
    ),
    "QNN102": (
        "a signed softmax whose zero point is not the smallest integer",
        "be off by up to 128 steps",
    ),
    "QNN103": (
        "16 bits out of a sigmoid, hard sigmoid or tanh on a grid of their own",
        "be on another grid",
    ),
    "QNN104": ("a pad to another grid than its input's", "be wrong"),
    "QNN105": ("a transposed convolution with groups and scales for channels", "be wrong"),
    "QNN106": ("a linear layer with scales along the sum", "be wrong"),
    "QNN107": ("`log`, `cumsum`", "be wrong"),
    "QNN108": (
        "an average pool that rounds its size up, or has a divisor of its own",
        "be wrong at the edge",
    ),
    "QNN201": ("a resize to another grid than its input's", "run in float"),
    "QNN202": ("an instance norm with a float weight", "run in float"),
    "QNN203": ("sums, means and norms outside the vocabulary, SELU, threshold", "run in float"),
    "QNN204": ("a node that was kept float, or that we have no integers for", "run in float"),
    "QNN301": ("a size that is computed at run time", "be refused"),
    "QNN302": ("an input or output that is not float32", "have no grid"),
    "QNN303": ("an operation that HTP or our vocabulary lacks", "be refused"),
    "QNN304": ("values of int16", "be refused for some operations"),
    "QNN305": ("an operation that HTP lacks in this dtype", "be refused"),
    "QNN306": ("a PReLU of 16 bits that no layer computes", "be refused"),
    "QNN307": ("two dtypes around one operation", "be refused"),
    "QNN308": ("a weight that is not int8", "be refused for some activations"),
    "QNN309": ("a weight with zero points for channels", "be refused"),
    "QNN310": ("weight scales along another dimension than output channels", "be refused"),
    "QNN311": ("an input that is an output, or a value that is two", "be refused"),
}
"""Code -> what was found, and what it would do on HTP."""
