"""The updates of one round, wherever they are stored: every class of `Updates` gives a Gram matrix and a weighted sum.

>>> import numpy as np
>>> updates = ClearUpdates([np.array([[3.0, 4.0], [0.0, 2.0]])])
>>> updates.gram().matrix
array([[25.,  8.],
       [ 8.,  4.]])
"""

from fedrobust.updates.clear import ClearUpdates
from fedrobust.updates.demand import Demand, Opens
from fedrobust.updates.gram import Anchor, Combination, Floats, Gram, History
from fedrobust.updates.interface import Measure, NotOpened, NotRevealed, Reduction, Updates
from fedrobust.updates.shards import ShardedUpdates, cut_columns, shard_columns
from fedrobust.updates.span import Span

__all__ = [
    "Anchor",
    "ClearUpdates",
    "Combination",
    "Demand",
    "Floats",
    "Gram",
    "History",
    "Measure",
    "NotOpened",
    "NotRevealed",
    "Opens",
    "Reduction",
    "ShardedUpdates",
    "Span",
    "Updates",
    "cut_columns",
    "shard_columns",
]
