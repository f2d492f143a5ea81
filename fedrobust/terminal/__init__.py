"""What the command line shows: progress, tables, lists.

>>> sorted(families()["aggregation.stages"])
['arc', 'bucketing', 'clip', 'nnm']
"""

from fedrobust.terminal.benchmarks import show_advice, show_left_out, show_ranking, show_reproduced, show_suites
from fedrobust.terminal.elements import Screen, console
from fedrobust.terminal.lists import show_jobs, show_machine
from fedrobust.terminal.many import MatrixProgress, show_comparison, show_matrix
from fedrobust.terminal.options import families, show_options
from fedrobust.terminal.runs import Progress, show_code, show_profile, show_result, show_verdict
from fedrobust.terminal.sweeps import DuelProgress, SweepProgress, show_duel, show_sweep

__all__ = [
    "DuelProgress",
    "MatrixProgress",
    "Progress",
    "Screen",
    "SweepProgress",
    "console",
    "families",
    "show_advice",
    "show_code",
    "show_comparison",
    "show_duel",
    "show_jobs",
    "show_left_out",
    "show_machine",
    "show_matrix",
    "show_options",
    "show_profile",
    "show_ranking",
    "show_reproduced",
    "show_result",
    "show_suites",
    "show_sweep",
    "show_verdict",
]
