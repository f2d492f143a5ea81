"""Trigger inversion as an alarm (Neural Cleanse, Wang et al., S&P 2019), on models that a matrix has trained.

python docs/make/inversion.py mlruns/matrix/repair          FEDROBUST_DATA is the path of the IDC patches

For each label the smallest mask and pattern are searched that make the model give this label to the patches of other
labels that are set aside for the coordinator. A backdoor should need a smaller mask than the other label does. The
table has log2(mask of the target / mask of the other label), the mean over seeds and its 95 % t interval, for the model
of the last round; the paper's test for outliers needs more than two labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedrobust import load
from fedrobust.intervals import mean_interval
from fedrobust.learning.vector import load_vector
from fedrobust.matrices.grid import NOBODY, ORACLE
from fedrobust.preparation import hospitals_of
from fedrobust.records.checkpoint import read_checkpoint
from fedrobust.scaling import MEAN, STD

STEPS, LR = 300, 0.1
SUCCESS = 0.95
"""The mask gets dearer as long as the pattern succeeds as often as this, and cheaper else."""
TARGET, OTHER = 0, 1
"""Of the backdoors of experiments/repair.yaml."""


def mask_of(network: nn.Module, images: Tensor, label: int) -> float:
    """The sum of the smallest mask found, in pixels, that makes the network give these images the label.

    images: (n, 3, H, W) in [0, 1], none of them of this label.
    """
    height, width = images.shape[2:]
    mean, spread = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    drawn = torch.Generator().manual_seed(0)
    mask = torch.randn(height, width, generator=drawn).requires_grad_()
    pattern = torch.randn(3, height, width, generator=drawn).requires_grad_()
    optimizer = torch.optim.Adam([mask, pattern], lr=LR)
    targets = torch.full((len(images),), label)
    price, smallest = 1e-3, float(height * width)
    for _ in range(STEPS):
        share = (torch.tanh(mask) + 1) / 2
        changed = (1 - share) * images + share * (torch.tanh(pattern) + 1) / 2
        logits = network((changed - mean) / spread)
        loss = nn.functional.cross_entropy(logits, targets) + price * share.sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if float((logits.argmax(dim=1) == label).float().mean()) >= SUCCESS:
            smallest = min(smallest, float(share.detach().sum()))
            price *= 1.1
        else:
            price /= 1.1
    return smallest


def ratio(folder: Path) -> float:
    """log2 of the target's mask by the other label's, for the final model of a run."""
    experiment = load(folder / "experiment.yaml")
    hospitals = hospitals_of(experiment)
    network: Any = experiment.learning.model.build(len(hospitals.label_names), hospitals.images.shape[1], 0).eval()
    load_vector(network, read_checkpoint(folder).arrays["weights"])
    own = hospitals.root(experiment.data.root, experiment.seed)
    inputs, labels = torch.from_numpy(hospitals.images[own]).permute(0, 3, 1, 2) / 255, hospitals.labels[own]
    masks = [mask_of(network, inputs[torch.from_numpy(labels != label)], label) for label in (TARGET, OTHER)]
    return float(np.log2(masks[0] / masks[1]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrix", type=Path, help="the folder of a finished matrix")
    parser.add_argument("--setting", default="idc_40")
    parser.add_argument("--defences", default="mean,referee_repair", help="names, by commas")
    given = parser.parse_args()
    runs = given.matrix.parents[1] / "runs"
    defences = given.defences.split(",")
    found: dict[str, dict[str, list[float]]] = {}
    for line in (given.matrix / "cells.jsonl").read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)
        defence, attack, setting, _ = cell["label"].split(" | ")
        if attack != ORACLE and setting == given.setting and defence in defences and not cell["failed"]:
            found.setdefault(attack, {}).setdefault(defence, []).append(ratio(runs / cell["run_id"]))
    print(f"| attack | {' | '.join(f'`{each}`' for each in defences)} |\n|{'---|' * (len(defences) + 1)}")
    for attack in sorted(found, key=lambda name: name != NOBODY):
        cells = []
        for defence in defences:
            mean, low, high = mean_interval(found[attack].get(defence, []))
            cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]".replace("-", "−"))
        print(f"| {attack if attack == NOBODY else f'`{attack}`'} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
