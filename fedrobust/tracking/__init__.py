"""The only room that imports MLflow. The journal is authoritative; each of its lines is sent to MLflow once.

>>> flatten({"aggregation": {"rule": {"name": "krum"}, "stages": ["clip", "nnm"]}})
{'aggregation.rule.name': 'krum', 'aggregation.stages': '["clip", "nnm"]'}
"""

from fedrobust.tracking.artifacts import PackedModel, packed_model, save_model
from fedrobust.tracking.entries import StepFigures, flatten, metrics
from fedrobust.tracking.feed import SYNCED
from fedrobust.tracking.store import import_beside, tracking_uri
from fedrobust.tracking.tracker import Tracker, end_children, experiment_of, sync

__all__ = [
    "SYNCED",
    "PackedModel",
    "StepFigures",
    "Tracker",
    "end_children",
    "experiment_of",
    "flatten",
    "import_beside",
    "metrics",
    "packed_model",
    "save_model",
    "sync",
    "tracking_uri",
]
