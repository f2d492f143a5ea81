"""What a run needs before anything starts: its data, attacks that fit the data, and a model that fits both."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from fedrobust.attacks import DataAttack
from fedrobust.data import Outline
from fedrobust.data.hospitals import Hospitals, deal, divide
from fedrobust.data.sources import outline_of
from fedrobust.errors import ExperimentError, Problem, inside
from fedrobust.experiment import Experiment
from fedrobust.machine import memory_limits
from fedrobust.secure import SecretSharing

CACHE = Path("mlruns/cache")
"""Folder of decoded and of normalised patches."""
COPIES = 4
"""Copies of the weights that training keeps in memory at least: weights, gradient, optimiser state, update."""


def check_source(experiment: Experiment) -> None:
    """Check that reading the data could begin. Raises `DataError` with the dotted path of what is wrong."""
    with inside("data.source"):
        experiment.data.source.check()


def hospitals_of(experiment: Experiment) -> Hospitals:
    """Read the data of an experiment and divide them among hospitals. Raises `DataError` with the dotted path of what
    is wrong."""
    data, clients = experiment.data, experiment.federation.clients
    stain = data.stain_shift, data.stain_normalisation
    check_source(experiment)
    with inside("data"):
        return divide(data.source, data.split, data.partition, *stain, clients, experiment.seed, CACHE, data.root)


def dealt(experiment: Experiment) -> tuple[Outline, dict[str, np.ndarray], np.ndarray]:
    """Divide the patches of an experiment before any image is decoded: what the source tells of them, the positions of
    `train`, `validation`, `test` and, if patches are set aside, `root`, and the hospital (N,) of each patch.

    Raises `DataError` with the dotted path of what is wrong.
    """
    data, clients = experiment.data, experiment.federation.clients
    check_source(experiment)
    with inside("data.source"):
        outline = outline_of(data.source, experiment.seed)
    with inside("data"):
        return outline, *deal(outline, data.split, data.partition, clients, experiment.seed, data.root)


def data_key(experiment: Experiment) -> str:
    """Return a key of what determines the division of the patches: experiments with the same key have the same data."""
    resolved = experiment.resolved()
    return json.dumps([resolved["data"], resolved["federation"]["clients"], experiment.seed], sort_keys=True)


class Shelf:
    """The data of the last few (data, hospitals, seed), each read and divided once."""

    def __init__(self, size: int = 3) -> None:
        self._size, self._lock = size, threading.Lock()
        self._held: OrderedDict[str, Future[Hospitals]] = OrderedDict()

    def get(self, experiment: Experiment) -> Hospitals:
        """Return the hospitals of an experiment; if another thread is reading the same data, wait for it."""
        key = data_key(experiment)
        with self._lock:
            held, first = self._held.get(key), key not in self._held
            held = self._held.setdefault(key, Future())
            self._held.move_to_end(key)
            while len(self._held) > self._size:
                self._held.popitem(last=False)
        if first:
            try:
                held.set_result(hospitals_of(experiment))
            except BaseException as error:
                held.set_exception(error)
                if not isinstance(error, ExperimentError):  # that would occur again; a lack of memory may not
                    with self._lock:
                        self._held.pop(key, None)
        return held.result()


def check_attacks(experiment: Experiment, hospitals: Hospitals) -> None:
    """Raise `ExperimentError` for attacks that do not fit the data."""
    for index, attack in enumerate(experiment.attacks):
        if isinstance(attack, DataAttack):
            with inside(f"attacks.{index}"):
                attack.check(len(hospitals.label_names), hospitals.images.shape[1])


def check_protocol(experiment: Experiment, hospitals: Hospitals) -> None:
    """Raise `ExperimentError` if the defence opens more functionals of updates than are allowed, now that the number of
    labels of the coordinator's own patches is known."""
    privacy = experiment.privacy
    if isinstance(privacy, SecretSharing) and experiment.trust.detector.own_patches:
        own = hospitals.root(experiment.data.root, experiment.seed)
        demand = experiment.demand(len(np.unique(hospitals.labels[own])))
        if problem := privacy.exceeded(demand, experiment.federation.rounds):
            raise ExperimentError(problem)


def check_patches(experiment: Experiment, hospitals: Hospitals) -> None:
    """Raise `ExperimentError` for a referee whose patches are of one patient: they are certain of nothing."""
    if experiment.trust.referee is None:
        return
    own = hospitals.root(experiment.data.root, experiment.seed)
    patients = len(own) if hospitals.groups is None else len(np.unique(hospitals.groups[own]))
    if patients < 2:
        reason = "needs patches of two patients at least, of ten or more to decide well"
        hint = "raise data.root.set_aside or data.root.patches"
        raise ExperimentError(Problem(reason, "trust.referee", f"{len(own)} of {patients}", hint=hint))


def check_model(experiment: Experiment, hospitals: Hospitals) -> None:
    """Raise `ExperimentError` if the model does not fit the data, or has more weights than fit into memory."""
    classes, size, model = len(hospitals.label_names), hospitals.images.shape[1], experiment.learning.model
    with inside("learning.model"):
        _refuse_huge(model.parameters(classes, size))
        model.check(classes, size, experiment.seed)


def _refuse_huge(parameters: int) -> None:
    memory = min(memory_limits().values())
    if (needed := COPIES * 4 * parameters) > memory:
        raise ExperimentError(
            f"{parameters:,} weights need {needed / 1e9:,.0f} GB to be trained, and there are {memory / 1e9:,.0f} GB"
        )
