"""Which patches are whose, and which are evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from fedrobust.attacks import Attack, Backdoor, DataAttack
from fedrobust.data.hospitals import Hospitals
from fedrobust.experiment import Experiment


@dataclass(frozen=True)
class Layout:
    """What an actor needs to know about the data, besides images and labels."""

    indices: tuple[np.ndarray, ...]
    """For each hospital, the positions of its training patches; last, if there is one, those of the server's root data
    set."""
    held_out: np.ndarray
    """Positions of the patches to evaluate: validation, then test."""
    test: np.ndarray
    """Positions of the test patches."""
    classes: int
    known: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Positions of the coordinator's own patches; none if no attack knows them."""


def layout_of(experiment: Experiment, hospitals: Hospitals) -> Layout:
    """Which patches are whose in an experiment.

    hospitals: have the patches.
    """
    training = [hospitals.training(client) for client in range(experiment.federation.clients)]
    if "root" in experiment.aggregation.pipeline().anchors:
        training.append(hospitals.root(experiment.data.root, experiment.seed))
    held_out = np.concatenate([hospitals.indices["validation"], hospitals.indices["test"]])
    found = Layout(tuple(training), held_out, hospitals.indices["test"], len(hospitals.label_names))
    if any(isinstance(attack, DataAttack) and attack.knows_patches for attack in experiment.attacks):
        return replace(found, known=hospitals.root(experiment.data.root, experiment.seed))
    return found


class Question(NamedTuple):
    """Patches on which the global model is evaluated."""

    key: str
    """`clean`: validation, then test patches; `trigger/<i>`: those that `triggered` returns for attack i."""
    positions: np.ndarray
    attack: Backdoor | None
    """Whose trigger they have."""


def questions(attacks: Sequence[Attack], labels: np.ndarray, layout: Layout) -> list[Question]:
    """All that is evaluated in an experiment with these `attacks`.

    labels: (N,) of all patches.
    layout: which of them are whose.
    """
    asked = [Question("clean", layout.held_out, None)]
    for index, attack in enumerate(attacks):
        if isinstance(attack, Backdoor):
            asked.append(Question(f"trigger/{index}", triggered(attack, labels, layout.test), attack))
    return asked


def triggered(attack: Backdoor, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Positions of the test patches on which a trigger is tried: all that do not have the target label anyway.

    attack: the backdoor.
    labels: (N,) of all patches.
    test: positions of the test patches.
    """
    kept: np.ndarray = test[labels[test] != attack.target]
    return kept
