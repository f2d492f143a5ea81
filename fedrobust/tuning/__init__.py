"""Sweeps: many experiments, in search of the best or the worst; the only room that imports Optuna.

>>> from fedrobust.experiment import Experiment
>>> plan = load_sweep(
...     {
...         "experiment": Experiment(),
...         "space": {
...             "aggregation.rule": {"choice": ["mean", "median"]},
...             "learning.local.optimizer.lr": {"choice": [0.01, 0.1]},
...         },
...         "objectives": [{"metric": "test/balanced_accuracy"}],
...         "sampler": "grid",
...         "trials": 100,
...     }
... )
>>> plan.trials  # a grid has no more points
4
"""

from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.pruners import Pruner
from fedrobust.tuning.samplers import Sampler
from fedrobust.tuning.sweep import Sweep, SweepPlan, load_sweep

__all__ = ["Objective", "Pruner", "Sampler", "Sweep", "SweepPlan", "load_sweep"]
