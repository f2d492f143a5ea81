"""Byzantine-robust aggregation of the rows of an (n, d) array or tensor, usable by itself.

Pipeline([Clip(), NNM(), GeometricMedian()]).aggregate(updates)
"""

from fedrobust.aggregation.base import AnyRule, Context, CoordinateRule, Layer, Part, Reduction, RowRule, Rule, Stage
from fedrobust.aggregation.clear import Clear
from fedrobust.aggregation.declared import capped_prior, resolve_f
from fedrobust.aggregation.gram import Anchor, Combination, Gram, History
from fedrobust.aggregation.numerics import ranking
from fedrobust.aggregation.pipeline import Decision, Memory, Pipeline, Result, Step
from fedrobust.aggregation.protocol import NotRevealed, Protocol, Rows
from fedrobust.aggregation.rules.adaptive import Adaptive
from fedrobust.aggregation.rules.anchored import FLTrust, ZenoPlusPlus
from fedrobust.aggregation.rules.averages import CenteredClipping, GeometricMedian, Mean, NormBound
from fedrobust.aggregation.rules.clusters import ClippedClustering, CosineMajority, Flame
from fedrobust.aggregation.rules.coordinatewise import RLR, Bulyan, MeaMed, Median, SignVote, TrimmedMean
from fedrobust.aggregation.rules.features import Auror
from fedrobust.aggregation.rules.histories import AFA, FLDetector, FoolsGold
from fedrobust.aggregation.rules.layers import LASA, DeepSight
from fedrobust.aggregation.rules.selection import FABA, MDA, Krum, MoNNA, MultiKrum
from fedrobust.aggregation.rules.signs import SignGuard
from fedrobust.aggregation.rules.spectral import CAF, SMEA, DnC
from fedrobust.aggregation.settings import Aggregation
from fedrobust.aggregation.shards import Sharded, shard_columns
from fedrobust.aggregation.span import Span
from fedrobust.aggregation.stages import ARC, NNM, Bucketing, Clip

__all__ = [
    "AFA",
    "ARC",
    "CAF",
    "FABA",
    "LASA",
    "MDA",
    "NNM",
    "RLR",
    "SMEA",
    "Adaptive",
    "Aggregation",
    "Anchor",
    "AnyRule",
    "Auror",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clear",
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
    "NotRevealed",
    "Part",
    "Pipeline",
    "Protocol",
    "Reduction",
    "Result",
    "RowRule",
    "Rows",
    "Rule",
    "Sharded",
    "SignGuard",
    "SignVote",
    "Span",
    "Stage",
    "Step",
    "TrimmedMean",
    "ZenoPlusPlus",
    "capped_prior",
    "ranking",
    "resolve_f",
    "shard_columns",
]
