"""A program as ONNX: plain float, or QDQ from its quantization table.

`graph` collects nodes; `float_ops`, `sized_ops` and `foreign` write ops; `emit` puts them between
quantizers. Several targets read ONNX, each with conventions of its own, so the
translation is here and what a target wants of it is its backend's.
"""
