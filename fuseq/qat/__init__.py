"""Quantization-aware training in the integers of the target."""
