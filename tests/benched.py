"""A small suite, and rows of it whose figures are made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedrobust.benchmark import BenchmarkRow, Suite, load_suite, read_entry
from fedrobust.benchmark.row import MeasuredCell, RowEntry
from fedrobust.matrices.grid import ORACLE

SUITE = """
name: tiny-v1
about: five hospitals
experiment:
  name: tiny
  data:
    source: {name: npz, path: patches.npz}
    split: {validation: 0.0}
    partition: {name: dirichlet, alpha: 10.0}
  federation: {clients: 5, rounds: 2}
  learning: {model: {name: cnn, channels: [4]}, local: {steps: 2, batch_size: 16, optimizer: {name: sgd, lr: 0.1}}}
  evaluation: {last: 1}
settings: {few: {fraction: 0.2}, many: {fraction: 0.4}}
attacks:
  flip: {name: sign_flip, scale: 9}
  weak: {name: gaussian, sigma: 0.1}
  patch: patch_backdoor
seeds: [1, 2, 3, 4]
quick: {attacks: [patch], seeds: [1, 2]}
"""
OWN = """
from fedrobust.aggregation import Combination, Rule


class Equal(Rule):
    name: str = "own_rule:Equal"

    def bound(self, n, f):
        return None

    def combine(self, gram, context):
        return Combination(gram.prior)
"""


def write_suite(folder: Path, text: str = SUITE) -> Suite:
    (folder / "tiny.yaml").write_text(text)
    return load_suite(str(folder / "tiny.yaml"))


Figure = Callable[[str, str, int], float | None]
"""Setting, attack, seed → figure; None if the cell failed."""


def made_row(suite: Suite, accuracy: Figure, success: Figure, *, entry: str = "median", quick: bool = False) -> Any:
    """A row; the oracle has 0.9, the plain mean 0.88 with nobody attacking, and a clean model obeys the trigger once in
    ten times."""
    read = read_entry(entry, suite)

    def control(attack: str) -> Mapping[str, Any]:
        return {"accuracy": 0.9, "classes": 2, "base_rates": {"patch": 0.1}} if attack == ORACLE else {"accuracy": 0.88}

    def cell(setting: str, attack: str, seed: int) -> Mapping[str, Any]:
        found = accuracy(setting, attack, seed)
        if found is None:
            return {"failed": "the rule needs n ≥ 2f + 1"}
        planted = {"success": success(setting, attack, seed)} if attack == "patch" else {}
        return {"accuracy": found, "seconds": 3.0, **planted}

    return BenchmarkRow(
        suite=suite.name,
        digest=suite.digest,
        quick=quick,
        entry=RowEntry(name=read.name, options=dict(read.options), code=dict(read.code)),
        versions={"python": "3.11"},
        controls=tuple(
            MeasuredCell(**key._asdict(), seconds=2.0, **control(key.attack)) for key in suite.controls(quick)
        ),
        cells=tuple(MeasuredCell(**key._asdict(), **cell(*key)) for key in suite.cells(quick)),
    )


def usual(setting: str, attack: str, seed: int) -> float:
    """Flip hurts most with few malicious hospitals, patch with many."""
    base = {"nobody": 0.87, "weak": 0.86, "flip": 0.7, "patch": 0.75 if setting == "few" else 0.6}[attack]
    return round(base + 0.01 * (seed % 3), 6)


def planted(setting: str, attack: str, seed: int) -> float:
    return (0.3 if setting == "few" else 0.8) + 0.02 * seed
