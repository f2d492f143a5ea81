"""A figure of a matrix with intervals: a Markdown table, attacks × defences, for docs/results.md.

python docs/make/intervals.py mlruns/matrix/repair/cells.csv gain
python docs/make/intervals.py mlruns/matrix/referee/cells.csv detection_auroc --defences label_mix,referee

Each cell has the mean over all seeds of the file and its own 95 % t interval: of many cells some will miss the truth.
Seeds on which a cell has no figure are not in its mean; their number stands behind it.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable
from pathlib import Path

from fedrobust.intervals import mean_interval
from fedrobust.matrices.grid import NOBODY, ORACLE

Line = dict[str, str]


def read(file: Path) -> list[Line]:
    """The cells that were run, without the oracle."""
    with file.open(encoding="utf-8", newline="") as lines:
        return [line for line in csv.DictReader(lines) if line["attack"] != ORACLE and line["state"] != "missing"]


def cell(lines: Iterable[Line], figure: str) -> str:
    """Mean and interval of a figure over the seeds; a dash where there is none."""
    values = [float(line[figure] or "nan") for line in lines]
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "–"
    mean, low, high = mean_interval(known)
    interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) else ""
    missing = f" ({len(values) - len(known)} without)" if len(known) < len(values) else ""
    return f"{mean:.2f}{interval}{missing}".replace("-", "−")


def table(lines: list[Line], figure: str, defences: list[str]) -> list[str]:
    """The lines of the table of one setting."""
    attacks = sorted(dict.fromkeys(line["attack"] for line in lines), key=lambda name: name != NOBODY)
    found = ["| attack | " + " | ".join(f"`{each}`" for each in defences) + " |", "|---" * (len(defences) + 1) + "|"]
    for attack in attacks:
        own = [[x for x in lines if (x["attack"], x["defence"]) == (attack, defence)] for defence in defences]
        cells = [cell(each, figure) for each in own]
        if any(each != "–" for each in cells):
            found.append(f"| {attack if attack == NOBODY else f'`{attack}`'} | {' | '.join(cells)} |")
    return found


def main() -> None:
    """Print a table for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="cells.csv of a matrix")
    parser.add_argument("figure", help="one of its columns")
    parser.add_argument("--defences", help="names, by commas; else all")
    given = parser.parse_args()
    lines = read(given.file) if given.file.is_file() else []
    if not lines or given.figure not in lines[0]:
        parser.error(f"no finished cell, or no column {given.figure}, in {given.file}")
    for setting in dict.fromkeys(line["setting"] for line in lines):
        own = [line for line in lines if line["setting"] == setting]
        defences = given.defences.split(",") if given.defences else [*dict.fromkeys(line["defence"] for line in own)]
        seeds = sorted({int(line["seed"]) for line in own})
        print(f"\n**{setting}**, {given.figure}, seeds {', '.join(map(str, seeds))}\n")
        print("\n".join(table(own, given.figure, defences)))


if __name__ == "__main__":
    main()
