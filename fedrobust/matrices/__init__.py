"""Grids of runs: attacks × defences × settings × seeds, paired, and their statistics for each defence."""

from fedrobust.matrices.grid import Matrix, MatrixPlan, load_matrix

__all__ = ["Matrix", "MatrixPlan", "load_matrix"]
