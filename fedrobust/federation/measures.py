"""The record of an evaluation: a model's metrics, from its probabilities on the held-out patches."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedrobust.attacks import Attack, Backdoor
from fedrobust.data.hospitals import Hospitals
from fedrobust.errors import FederationError
from fedrobust.experiment import Experiment
from fedrobust.failures import reason
from fedrobust.federation.layout import triggered
from fedrobust.metrics import Predictions, attack_success, measured
from fedrobust.records import EvaluationRecord


def evaluation_record(
    round: int, hospitals: Hospitals, experiment: Experiment, found: dict[str, np.ndarray]
) -> EvaluationRecord:
    """The journal's record of a round's evaluation.

    found: as `Hosts.collect_evaluation` returns it.

    With several backdoors, the metrics are those of the most successful one; `triggers` has all of them, by their index
    among the attacks.

    Raises `FederationError` if a user's own metric cannot be computed.
    """
    validation, test = hospitals.indices["validation"], hospitals.indices["test"]
    clean = found["clean"][len(validation) :]
    tested = Predictions(clean, hospitals.labels[test], hospitals.hospital[test])
    figures: dict[str, float] = {}
    if len(validation):
        before = found["clean"][: len(validation)]
        predictions = Predictions(before, hospitals.labels[validation], hospitals.hospital[validation])
        figures |= _figures("validation", predictions, experiment)
    figures |= _figures("test", tested, experiment)
    rates = _success(hospitals, experiment.attacks, clean, found)
    for name in next(iter(rates.values()), {}):
        figures[f"attack/{name}"] = max(rate[name] for rate in rates.values())
    fields = {
        "round": round,
        "metrics": figures,
        "hospitals": tested.by_hospital,
        "confusion": tested.confusion.tolist(),
    }
    return EvaluationRecord.of(fields | ({"triggers": rates} if rates else {}))


def _figures(part: str, predictions: Predictions, experiment: Experiment) -> dict[str, float]:
    try:
        found = measured(predictions, experiment.evaluation.metrics)
    except Exception as error:  # a user's own metric may raise anything
        raise FederationError(f"evaluation.metrics: {reason(error)}") from error
    return {f"{part}/{name}": value for name, value in found.items()}


def _success(
    hospitals: Hospitals, attacks: tuple[Attack, ...], clean: np.ndarray, found: dict[str, np.ndarray]
) -> dict[int, dict[str, float]]:
    """Success rates of each backdoor's trigger, by its index among the attacks."""
    test = hospitals.indices["test"]
    rates = {}
    for index, attack in enumerate(attacks):
        if isinstance(attack, Backdoor):
            positions = triggered(attack, hospitals.labels, test)
            before = clean[np.searchsorted(test, positions)].argmax(1)
            after = found[f"trigger/{index}"].argmax(1)
            rates[index] = attack_success(before, after, hospitals.labels[positions], attack.target)
    return rates


def misread(hospitals: Hospitals, probabilities: np.ndarray, most: int = 24) -> dict[str, list[Any]]:
    """The wrong predictions of which the final model is most certain, among the test patches.

    probabilities: (n, classes) of the test patches.
    most: how many are returned at most.
    """
    test = hospitals.indices["test"]
    truth, predicted = hospitals.labels[test], probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predicted != truth)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return {
        "indices": test[worst].tolist(),
        "truth": truth[worst].tolist(),
        "predicted": predicted[worst].tolist(),
        "confidence": confidence[worst].tolist(),
    }
