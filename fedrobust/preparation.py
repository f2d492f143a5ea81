"""What a run needs before anything is started: its data, attacks that fit them, and a model that fits both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fedrobust.attacks import DataAttack
from fedrobust.data.hospitals import Hospitals, divide
from fedrobust.errors import ExperimentError, inside
from fedrobust.experiment import Experiment
from fedrobust.machine import memory_limits

if TYPE_CHECKING:
    from torch import nn

CACHE = Path("mlruns/cache")
"""Where normalised patches are kept."""
COPIES = 4
"""Of its weights, that a training has in memory at least: they, their gradient, the optimiser's state, the update."""


def hospitals_of(experiment: Experiment) -> Hospitals:
    """The data of an experiment, read and divided. Raises `DataError`, with the dotted path of what is wrong."""
    data, clients = experiment.data, experiment.federation.clients
    stain = data.stain_shift, data.stain_normalisation
    with inside("data.source"):
        data.source.check()
    with inside("data"):
        return divide(data.source, data.split, data.partition, *stain, clients, experiment.seed, CACHE)


def check_attacks(experiment: Experiment, hospitals: Hospitals) -> None:
    """Raise `ExperimentError` for attacks that do not fit the data."""
    for index, attack in enumerate(experiment.attacks):
        if isinstance(attack, DataAttack):
            with inside(f"attacks.{index}"):
                attack.check(len(hospitals.label_names), hospitals.images.shape[1])


def network_of(experiment: Experiment, hospitals: Hospitals) -> nn.Module:
    """The model on the CPU, with its initial weights.

    Raises `ExperimentError` where it does not fit the data, or has more weights than the memory can hold.
    """
    classes, size = len(hospitals.label_names), hospitals.images.shape[1]
    with inside("learning.model"):
        _refuse_huge(experiment.learning.model.parameters(classes, size))
        return experiment.learning.model.build(classes, size, experiment.seed)


def _refuse_huge(parameters: int) -> None:
    memory = min(memory_limits().values())
    if (needed := COPIES * 4 * parameters) > memory:
        raise ExperimentError(
            f"{parameters:,} weights need {needed / 1e9:,.0f} GB to be trained, and there are {memory / 1e9:,.0f} GB"
        )
