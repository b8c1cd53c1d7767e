"""Quantization: grids, observers, the table of parameters, and the integer executor."""
