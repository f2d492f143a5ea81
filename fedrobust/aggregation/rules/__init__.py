"""The rules, by what they look at: a new one goes into the room of its kind, or into a file of its own."""

# In the order in which `fedrobust list` shows them.
from fedrobust.aggregation.rules import averages, selection, spectral, coordinatewise  # isort: skip # noqa: F401
from fedrobust.aggregation.rules import signs, layers, features  # isort: skip # noqa: F401
from fedrobust.aggregation.rules import clusters, anchored, histories, adaptive  # isort: skip # noqa: F401
