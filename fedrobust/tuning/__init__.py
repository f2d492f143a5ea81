"""Sweeps: many experiments, searched for the best or the worst; the only room that knows Optuna."""

from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.pruners import Pruner
from fedrobust.tuning.samplers import Sampler
from fedrobust.tuning.sweep import Plan, Sweep, load_sweep

__all__ = ["Objective", "Plan", "Pruner", "Sampler", "Sweep", "load_sweep"]
