"""Models, local training at a hospital, the server optimiser and evaluation.

Only the options are imported here: they need no torch, so reading an experiment file stays quick. The rest is in
`module`, `training`, `vector`, `networks` and `evaluation`.

>>> LocalTraining(optimizer=SGD(lr=0.1), epochs=2, batch_size=32).steps_for(patches=100)
8
>>> network = Cnn(channels=(8, 16)).build(classes=2, size=32, seed=1)
>>> sum(weights.numel() for weights in network.parameters()) > 1000
True
"""

from fedrobust.learning.local import SGD, Adam, AdamW, LocalOptimizer, LocalTraining
from fedrobust.learning.losses import ClassWeighted, CrossEntropy, LocalLoss, LogitAdjusted
from fedrobust.learning.models import Cnn, Encoder, Model, Timm, model_shorthand
from fedrobust.learning.server import FedAdam, FedAvg, FedAvgM, FedYogi, ServerOptimizer
from fedrobust.options import find_options

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "ClassWeighted",
    "Cnn",
    "CrossEntropy",
    "Encoder",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "LocalLoss",
    "LocalOptimizer",
    "LocalTraining",
    "LogitAdjusted",
    "Model",
    "ServerOptimizer",
    "Timm",
    "model_shorthand",
]

find_options(__name__)
