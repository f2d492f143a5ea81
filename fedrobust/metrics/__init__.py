"""How good a model is: figures of its predictions on held-out patches.

A metric is one class. In MLflow it is called by its `name`, after the part of the data that it is measured on. Its
docstring says what it measures. Every run has the metrics of this room; `evaluation.metrics` names a user's own.
Reports, comparisons, matrices and the objectives of sweeps take them from here.

>>> import numpy as np
>>> from fedrobust.metrics import BalancedAccuracy, Predictions
>>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], dtype=np.float32)
>>> predictions = Predictions(probabilities, np.array([0, 1, 1]), hospitals=np.array([0, 0, 1]))
>>> BalancedAccuracy().of(predictions)
0.75
"""

from fedrobust.metrics.metric import Metric, Predictions, attack_success, decided, in_tables, measured, own
from fedrobust.options import find_options

find_options(__name__)

from fedrobust.metrics.classification import (  # noqa: E402
    Accuracy,
    Auroc,
    BalancedAccuracy,
    CalibrationError,
    Loss,
    MacroF1,
    WorstHospitalAccuracy,
)

__all__ = [
    "Accuracy",
    "Auroc",
    "BalancedAccuracy",
    "CalibrationError",
    "Loss",
    "MacroF1",
    "Metric",
    "Predictions",
    "WorstHospitalAccuracy",
    "attack_success",
    "decided",
    "in_tables",
    "measured",
    "own",
]
