"""The `tflite` backend: NHWC integer files for LiteRT."""
