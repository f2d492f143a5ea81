"""The rules, sorted by the data that they look at. A new rule goes into a fitting file, or into a new one."""

# In the order in which `fedrobust list` shows them.
from fedrobust.aggregation.rules import averages, selection, spectral, coordinatewise  # isort: skip # noqa: F401
from fedrobust.aggregation.rules import signs, layers, features  # isort: skip # noqa: F401
from fedrobust.aggregation.rules import clusters, anchored, histories, adaptive, outliers  # isort: skip # noqa: F401
