"""Steps of its grid by which an op on the HTP may differ from exact reals, rounded once.

Each op was started from the HTP's own operands on the emulator of QAIRT 2.51, on chips of both
families (sm8450, sm8750), on noise: `python -m benchmarks.htp_steps`. At 8 bits nothing differs by
more than one step: convolutions in 2 % of the values (v69: 5 %), average pools in 6 %, instance
norms in 6 %, transposed convolutions in 3 % (6 %), resizes and matrix products in 3 %, products in
1 %, quotients and softmax in less; tanh, sigmoid, GELU, hard sigmoid and what moves values nowhere.

At 16 bits the HTP's own precision shows: errors are of many steps, which are small. Twice the
largest difference that was measured is allowed, and that is below one step of 8 bits (256) for
every op. A pattern that is computed wrongly is off by hundreds or thousands.
"""

from __future__ import annotations

LARGEST_OF_16_BITS = {
    "add": 1,
    "avg_pool": 4,
    "conv2d": 26,  # v79: 2, and 14 with a PReLU
    "conv_transpose2d": 15,  # v79: 3
    "div": 18,
    "gelu": 36,
    "hardsigmoid": 1,
    "instance_norm": 1,
    "interpolate": 1,
    "leaky_relu": 1,
    "linear": 23,
    "matmul": 123,
    "mean": 1,
    "mul": 1,
    "sigmoid": 5,
    "softmax": 29,
    "tanh": 4,
}
"""Op -> largest difference on either family, in steps of uint16. Others move values: none."""


def allowed_steps(op: str, dtype: str) -> int:
    """Steps allowed to an op.

    Args:
        op: canonical name.
        dtype: of the grid of its value.
    """
    return 2 * LARGEST_OF_16_BITS.get(op, 1) if dtype.endswith("16") else 1
