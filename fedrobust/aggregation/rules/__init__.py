"""The rules, by what they look at: a new one goes into the room of its kind."""

# In the order in which `fedrobust list` shows them.
from fedrobust.aggregation.rules import averages  # isort: skip
from fedrobust.aggregation.rules import selection  # isort: skip
from fedrobust.aggregation.rules import spectral  # isort: skip
from fedrobust.aggregation.rules import coordinatewise  # isort: skip
from fedrobust.aggregation.rules import signs, layers, features  # isort: skip
from fedrobust.aggregation.rules import clusters, anchored, histories, adaptive  # isort: skip

__all__ = [
    "adaptive",
    "anchored",
    "averages",
    "clusters",
    "coordinatewise",
    "features",
    "histories",
    "layers",
    "selection",
    "signs",
    "spectral",
]
