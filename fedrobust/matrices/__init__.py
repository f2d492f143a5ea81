"""Grids of runs: attacks × defences × settings × seeds, paired, and their statistics for each defence.

>>> from fedrobust.experiment import Experiment
>>> plan = load_matrix(
...     {
...         "experiment": Experiment(federation={"clients": 10}),
...         "settings": {"a fifth": {"fraction": 0.2}},
...         "attacks": {"flipped": "sign_flip"},
...         "defences": {"mean": {"aggregation.rule": "mean"}, "median": {"aggregation.rule": "median"}},
...     }
... )
>>> [cell.label for cell in plan.screening()]
['mean | flipped | a fifth | seed 1', 'median | flipped | a fifth | seed 1']
"""

from fedrobust.matrices.grid import Matrix, MatrixPlan, load_matrix

__all__ = ["Matrix", "MatrixPlan", "load_matrix"]
