"""Grids of runs: attacks × defences × settings × seeds, paired, and what they say about each defence."""

from fedrobust.matrix.grid import Grid, Matrix, load_matrix

__all__ = ["Grid", "Matrix", "load_matrix"]
