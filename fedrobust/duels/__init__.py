"""Duels: search for an attack against a defence, tune the defence against the attacks found, and so on.

>>> from fedrobust.experiment import Experiment
>>> plan = load_duel(
...     {
...         "experiment": Experiment(federation={"clients": 10}),
...         "attacks": {"flipped": {"name": "sign_flip", "count": 2}},
...         "attacker": {"space": [{"name": "ipm", "count": 2, "epsilon": {"float": [0.1, 2.0]}}]},
...         "defences": {
...             "median": {
...                 "options": {"aggregation.rule": "median"},
...                 "space": {"aggregation.stages": {"choice": {"none": [], "clip": ["clip"]}}},
...             }
...         },
...         "turns": 1,
...     }
... )
>>> plan.turns
[('fixed', 0, 'median'), ('attacker', 1, 'median'), ('defender', 1, 'median')]
"""

from fedrobust.duels.file import Duel
from fedrobust.duels.match import DuelPlan, load_duel

__all__ = ["Duel", "DuelPlan", "load_duel"]
