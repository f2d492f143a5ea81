"""Byzantine-robust aggregation of the rows of an (n, d) array or tensor, usable by itself.

Pipeline([Clip(), NNM(), GeometricMedian()]).aggregate(updates)
"""

from fedrobust.aggregation.base import Context, CoordinateRule, Rule, Stage
from fedrobust.aggregation.coordinatewise import Median, TrimmedMean
from fedrobust.aggregation.gram import Anchor, Combination, Gram, gram_matrix
from fedrobust.aggregation.pipeline import Aggregation, Pipeline, Result, capped_prior, resolve_f
from fedrobust.aggregation.preaggregation import NNM, Clip
from fedrobust.aggregation.protocol import Clear, NotRevealed, Protocol
from fedrobust.aggregation.rules import CenteredClipping, GeometricMedian, Krum, Mean, MultiKrum

__all__ = [
    "NNM",
    "Aggregation",
    "Anchor",
    "CenteredClipping",
    "Clear",
    "Clip",
    "Combination",
    "Context",
    "CoordinateRule",
    "GeometricMedian",
    "Gram",
    "Krum",
    "Mean",
    "Median",
    "MultiKrum",
    "NotRevealed",
    "Pipeline",
    "Protocol",
    "Result",
    "Rule",
    "Stage",
    "TrimmedMean",
    "capped_prior",
    "gram_matrix",
    "resolve_f",
]
