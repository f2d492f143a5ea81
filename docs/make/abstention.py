"""Would a model that abstains on images unlike the training set be safe from backdoors? The table of docs/referee.md.

python docs/make/abstention.py encoder.safetensors          FEDROBUST_DATA is the path of the IDC patches

An image is encoded (docs/encoders.md says where the weights come from); its score is how far its features lie from
those of the training patches. A limit on the score is chosen so that 95 % of the patches that are set aside for the
coordinator are kept. The table has the share of the held-out tumour patches that are kept with each trigger: with a
backdoor that always succeeds, this is what is left of its success. Mean over seeds and 95 % t interval.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from fedrobust import load
from fedrobust.attacks.backdoors import Backdoor
from fedrobust.experiment import Experiment
from fedrobust.federation.features import encoded
from fedrobust.intervals import mean_interval
from fedrobust.preparation import hospitals_of

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "encoder.yaml"
COVERAGE = 0.95
NEIGHBOURS = 10
TUMOUR = 1
PLAIN = "held-out patches"
BACKDOORS: dict[str, dict[str, Any]] = {
    "patch_backdoor": {"name": "patch_backdoor"},
    "large_patch": {
        "name": "patch_backdoor",
        "size": 12,
        "position": "top_left",
        "pattern": "checkerboard",
        "colour": [200, 60, 120],
    },
    "blended_backdoor": {"name": "blended_backdoor"},
    "dba": {"name": "dba"},
    "stain_backdoor": {"name": "stain_backdoor"},
    "edge_case": {"name": "edge_case"},
    "faded": {"name": "edge_case", "appearance": "faded"},
}

Features = NDArray[np.float64]


def mahalanobis(train: Features, labels: NDArray[np.int64], others: Iterable[Features]) -> list[Features]:
    """The distance of each image to the nearest label's mean, in a covariance that labels share (Lee et al., NeurIPS
    2018), shrunk (Ledoit and Wolf, 2004)."""
    means = np.stack([train[labels == label].mean(axis=0) for label in np.unique(labels)])
    shared = LedoitWolf(assume_centered=True).fit(train - means[labels])
    return [np.min([shared.mahalanobis(each - mean) for mean in means], axis=0) for each in others]


def nearest(train: Features, _labels: NDArray[np.int64], others: Iterable[Features]) -> list[Features]:
    """The distance to the tenth nearest training patch, features of length 1 (Sun et al., ICML 2022)."""

    def unit(rows: Features) -> Features:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    found = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(unit(train))
    return [found.kneighbors(unit(each))[0][:, -1] for each in others]


SCORES = {"Mahalanobis": mahalanobis, "tenth nearest neighbour": nearest}


class Encoded:
    """Features of all patches and of all tumour patches with each trigger, computed once for all seeds."""

    def __init__(self, experiment: Experiment) -> None:
        hospitals = hospitals_of(experiment)
        network: Any = experiment.learning.model.build(len(hospitals.label_names), hospitals.images.shape[1], 0)

        def features(images: NDArray[np.uint8]) -> Features:
            return encoded(network, images, torch.device("cpu"), np.dtype(np.float32)).astype(np.float64)

        self.images, self.labels = hospitals.images, hospitals.labels
        self.plain = features(self.images)
        self.triggered: dict[str, Features] = {}
        for name, attack in zip(BACKDOORS, experiment.attacks, strict=True):
            assert isinstance(attack, Backdoor)
            self.triggered[name] = np.full_like(self.plain, np.nan)
            self.triggered[name][self.labels == TUMOUR] = features(attack.trigger(self.images[self.labels == TUMOUR]))

    def kept(self, experiment: Experiment) -> Mapping[tuple[str, str], float]:
        """(score, which patches) → the share that a model does not abstain on."""
        hospitals = hospitals_of(experiment)
        assert np.array_equal(hospitals.images, self.images)
        train, test = hospitals.indices["train"], hospitals.indices["test"]
        tumours = test[self.labels[test] == TUMOUR]
        asked = {PLAIN: self.plain[test], **{name: each[tumours] for name, each in self.triggered.items()}}
        found = {}
        for score, measure in SCORES.items():
            rows = (self.plain[hospitals.set_aside], *asked.values())
            aside, *rest = measure(self.plain[train], self.labels[train], rows)
            limit = np.quantile(aside, COVERAGE)
            found |= {(score, name): float((values <= limit).mean()) for name, values in zip(asked, rest, strict=True)}
        return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="of the encoder, a .safetensors file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[131, 132, 133, 134, 135])
    given = parser.parse_args()
    attacks = [{**each, "target": 0, "count": 1} for each in BACKDOORS.values()]
    base = load(EXPERIMENT, [f"learning.model.weights={given.weights.absolute()}"])
    base = base.changed({"attacks": attacks, "data.root": {"patches": 100, "set_aside": 0.05}})
    features = Encoded(base)
    seeds = [features.kept(base.changed({"seed": seed})) for seed in given.seeds]
    print(f"| kept | {' | '.join(SCORES)} |\n|{'---|' * (len(SCORES) + 1)}")
    for name in (PLAIN, *BACKDOORS):
        cells = []
        for score in SCORES:
            mean, low, high = mean_interval([each[score, name] for each in seeds])
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {name if name == PLAIN else f'`{name}`'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
