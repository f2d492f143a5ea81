"""Byzantine-robust aggregation of the rows of an (n, d) array or tensor, usable by itself.

>>> import numpy as np
>>> updates = np.ones((6, 1000), dtype=np.float32)
>>> updates[2] *= -50
>>> Pipeline([Clip(), NNM(), GeometricMedian()]).aggregate(updates, f=1)[:3]
array([1., 1., 1.], dtype=float32)
"""

from fedrobust.aggregation.base import AnyRule, Context, CoordinateRule, Layer, PipelinePart, RowRule, Rows, Rule, Stage
from fedrobust.aggregation.byzantine import capped_prior, resolve_f
from fedrobust.aggregation.numerics import ranking
from fedrobust.aggregation.outcome import Aggregated, Decision, Step
from fedrobust.aggregation.pipeline import AggregateOptions, Memory, Pipeline
from fedrobust.aggregation.rules.adaptive import Adaptive
from fedrobust.aggregation.rules.anchored import FLTrust, ZenoPlusPlus
from fedrobust.aggregation.rules.averages import CenteredClipping, GeometricMedian, Mean, NormBound
from fedrobust.aggregation.rules.clusters import ClippedClustering, CosineMajority, Flame
from fedrobust.aggregation.rules.coordinatewise import RLR, Bulyan, MeaMed, Median, SignVote, TrimmedMean
from fedrobust.aggregation.rules.features import Auror
from fedrobust.aggregation.rules.histories import AFA, FedSCS, FLDetector, FoolsGold
from fedrobust.aggregation.rules.layers import LASA, DeepSight
from fedrobust.aggregation.rules.outliers import ASMR, DOS
from fedrobust.aggregation.rules.selection import FABA, MDA, Krum, MoNNA, MultiKrum
from fedrobust.aggregation.rules.signs import SignGuard
from fedrobust.aggregation.rules.spectral import CAF, SMEA, DnC
from fedrobust.aggregation.stages import ARC, NNM, Bucketing, Clip
from fedrobust.options import find_options
from fedrobust.updates import Anchor, Combination, Gram, History, Reduction

# Options that accept any stage and rule are imported after this.
find_options("fedrobust.aggregation")
find_options("fedrobust.aggregation.rules")

from fedrobust.aggregation.settings import Aggregation  # noqa: E402

__all__ = [
    "AFA",
    "ARC",
    "ASMR",
    "CAF",
    "DOS",
    "FABA",
    "LASA",
    "MDA",
    "NNM",
    "RLR",
    "SMEA",
    "Adaptive",
    "AggregateOptions",
    "Aggregated",
    "Aggregation",
    "Anchor",
    "AnyRule",
    "Auror",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clip",
    "ClippedClustering",
    "Combination",
    "Context",
    "CoordinateRule",
    "CosineMajority",
    "Decision",
    "DeepSight",
    "DnC",
    "FLDetector",
    "FLTrust",
    "FedSCS",
    "Flame",
    "FoolsGold",
    "GeometricMedian",
    "Gram",
    "History",
    "Krum",
    "Layer",
    "MeaMed",
    "Mean",
    "Median",
    "Memory",
    "MoNNA",
    "MultiKrum",
    "NormBound",
    "Pipeline",
    "PipelinePart",
    "Reduction",
    "RowRule",
    "Rows",
    "Rule",
    "SignGuard",
    "SignVote",
    "Stage",
    "Step",
    "TrimmedMean",
    "ZenoPlusPlus",
    "capped_prior",
    "ranking",
    "resolve_f",
]
