"""The first table of docs/results.md: an attack against a plain and a robust rule on real tissue, over three seeds.

FEDROBUST_DATA=path/to/idc_breast_48.npz python docs/make/idc_table.py [SEED ...]
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import fedrobust

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "idc.yaml"
ATTACK = "attacks=[{name: sign_flip, scale: 4, fraction: 0.3}]"
MEAN = "aggregation={rule: mean}"
ROBUST = "aggregation={stages: [clip, nnm], rule: geometric_median}"
ROWS = {
    "nobody | mean": [MEAN],
    "nobody | clip + nnm + geometric_median": [ROBUST],
    "sign_flip, scale 4, 30 % | mean": [MEAN, ATTACK],
    "sign_flip, scale 4, 30 % | clip + nnm + geometric_median": [ROBUST, ATTACK],
}


def main() -> None:
    """Run every row on every seed and print the table as Markdown."""
    seeds = [int(seed) for seed in sys.argv[1:]] or [1, 2, 3]
    print(f"| attack | defence | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | AUROC |")
    print(f"|---|---|{'---|' * len(seeds)}---|---|")
    for row, overrides in ROWS.items():
        finals = []
        for seed in seeds:
            options = [*overrides, f"seed={seed}", "tracking.model=false"]
            finals.append(fedrobust.run(fedrobust.load(EXPERIMENT, options)).final)
        balanced = [final["test/balanced_accuracy"] for final in finals]
        auroc = statistics.mean(final["test/auroc"] for final in finals)
        cells = " | ".join(f"{value:.3f}" for value in balanced)
        print(f"| {row} | {cells} | **{statistics.mean(balanced):.3f}** | {auroc:.3f} |", flush=True)


if __name__ == "__main__":
    main()
