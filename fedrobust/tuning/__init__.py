"""Sweeps: many experiments, in search of the best or the worst; the only room that imports Optuna."""

from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.pruners import Pruner
from fedrobust.tuning.samplers import Sampler
from fedrobust.tuning.sweep import Sweep, SweepPlan, load_sweep

__all__ = ["Objective", "Pruner", "Sampler", "Sweep", "SweepPlan", "load_sweep"]
