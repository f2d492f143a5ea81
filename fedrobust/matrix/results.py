"""The cells of a matrix as one table, and the summary of each defence. Pure: tables in, tables out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedrobust.intervals import Estimate, mean_interval
from fedrobust.matrix import statistics
from fedrobust.matrix.grid import NOBODY, ORACLE, Cell
from fedrobust.matrix.statistics import BySeed
from fedrobust.texts import visible

if TYPE_CHECKING:
    from fedrobust.studies.finished import FinishedRun

FIGURES = (
    "balanced_accuracy",
    "auroc",
    "attack_success",
    "attack_raw",
    "baseline_success",
    "gain",
    "oracle",
    "robustness",
    "detection_auroc",
    "last_auroc",
    "precision",
    "recall",
    "ejected",
    "rounds_to_eject",
    "slowest_ejection",
    "rounds_to_forgive",
    "honest_quarantined",
    "honest_ejected",
    "rarest_ejected",
    "skipped",
)
"""The columns of figures, in the order of the files; other metrics follow."""


def table_of(cells: Sequence[Cell], runs: Mapping[str, FinishedRun]) -> Any:
    """Return a line for each cell: its names, phase and seed, the `FIGURES`, seconds, run id and, if it failed, why.

    cells: planned or finished cells, one for each line.
    runs: digest → finished run.

    `state` is `done`, `failed` or `missing`. Robustness, and how often a trigger succeeds that was not planted
    (`baseline_success`), are relative to the oracle of the same setting and seed.
    """
    given = {name for run in runs.values() for name in run.figures if "/" not in name}
    columns = (*FIGURES, "classes", *sorted(given - {*FIGURES, "classes"}))
    lines = []
    for cell in cells:
        run = runs.get(cell.digest)
        line: dict[str, Any] = {name: getattr(cell, name) for name in ("setting", "attack", "defence", "seed", "phase")}
        line["state"] = "missing" if run is None else "failed" if run.failed else "done"
        line |= dict.fromkeys(columns, math.nan)
        if run is not None:
            line |= {name: float(value) for name, value in run.figures.items() if name in line}
            line |= {"seconds": run.seconds, "run_id": run.run_id}
            line["failed"] = visible(run.failed, keep="\n")
        lines.append({"seconds": math.nan, "run_id": "", "failed": ""} | line)
    table = pd.DataFrame(lines)
    oracles = {
        (cell.setting, cell.seed): runs[cell.digest].figures
        for cell in cells
        if cell.attack == ORACLE and cell.digest in runs
    }
    lines_of = [(oracles.get((line.setting, line.seed), {}), line.attack) for line in table.itertuples()]
    table["oracle"] = [oracle.get("balanced_accuracy", math.nan) for oracle, _ in lines_of]
    table["baseline_success"] = [oracle.get(f"baseline/{attack}", math.nan) for oracle, attack in lines_of]
    table["robustness"] = [
        statistics.robustness(line.balanced_accuracy, line.oracle, int(line.classes))
        if math.isfinite(line.balanced_accuracy) and math.isfinite(line.oracle)
        else math.nan
        for line in table.itertuples()
    ]
    table["gain"] = table["attack_success"] - table["baseline_success"]
    named = ["setting", "attack", "defence", "seed", "phase", "state", *FIGURES, "seconds", "run_id", "failed"]
    return table[named]


@dataclass(frozen=True)
class DefenceSummary:
    """The figures of one defence in one setting."""

    setting: str
    defence: str
    worst_attack: str
    """The attack with the lowest mean robustness on the fresh seeds."""
    robustness: Estimate
    """That mean: the headline. Its interval is simultaneous over the attacks that were measured again."""
    to_the_best: Estimate
    """The headline minus that of the best defence, paired by seed."""
    accuracy: Estimate
    """Balanced accuracy without attack, over all seeds."""
    cost: Estimate
    """How much balanced accuracy the defence costs without attack, paired by seed, over all seeds."""
    worst_backdoor: str
    """The backdoor that gains the most on the fresh seeds."""
    gain: Estimate
    """How much more often its trigger succeeds than if it had not been planted; simultaneous over the backdoors
    measured."""
    success: Estimate
    """How often it succeeds; the highest of the backdoors measured."""
    seconds: float
    """Mean duration of the cells."""
    unfinished: int
    """Number of cells that failed or are missing; the figures do not include them."""

    def flat(self) -> dict[str, Any]:
        """Return one line of a table."""
        line: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Estimate):
                line |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            else:
                line[name] = value
        return line


def verdicts(table: Any, control: str, backdoors: Iterable[str]) -> list[DefenceSummary]:
    """Return a summary for each setting and defence, sorted by setting and then from the most to the least robust.

    table: the cells, see `table_of`.
    control: the defence that is none.
    backdoors: the attacks that plant a backdoor.
    """
    found = []
    for setting in table["setting"].unique():
        own = table[(table["setting"] == setting) & (table["attack"] != ORACLE)]
        measured = {defence: attacks_by_seed(own, defence, "robustness") for defence in own["defence"].unique()}
        headlines = {defence: statistics.least(attacks) for defence, attacks in measured.items()}
        order = sorted(headlines, key=lambda defence: -_known(headlines[defence][1].value))
        for defence in order:
            best = defence == order[0]
            cells = own[own["defence"] == defence]
            gains, successes = (attacks_by_seed(own, defence, name) for name in ("gain", "attack_success"))
            worst_backdoor, gain = statistics.greatest({name: gains[name] for name in gains if name in backdoors})
            success = statistics.greatest({name: successes[name] for name in successes if name in backdoors})[1]
            nobody, undefended = (_nobody(own, name) for name in (defence, control))
            paired = [undefended[seed] - nobody[seed] for seed in nobody if seed in undefended]
            found.append(
                DefenceSummary(
                    setting,
                    defence,
                    *headlines[defence],
                    Estimate(0.0, 0.0, 0.0) if best else statistics.difference(measured[defence], measured[order[0]]),
                    mean_interval(list(nobody.values())),
                    mean_interval(paired),
                    worst_backdoor,
                    gain,
                    success,
                    float(cells["seconds"].mean()),
                    int((cells["state"] != "done").sum()),
                )
            )
    return found


def attacks_by_seed(table: Any, defence: str, column: str, phase: str = "fresh") -> dict[str, BySeed]:
    """Return a figure of one defence: attack → seed → value, without missing values.

    table: the cells, see `table_of`.
    column: name of the figure.
    phase: only cells of this phase.
    """
    own = table[(table["defence"] == defence) & (table["phase"] == phase) & table[column].notna()]
    found: dict[str, dict[int, float]] = {}
    for line in own.itertuples():
        found.setdefault(line.attack, {})[int(line.seed)] = float(getattr(line, column))
    return dict(found)


def screened(table: Any, setting: str, column: str = "robustness") -> Any:
    """Return a table defence × attack of means over the screening seeds, in the order of the cells.

    table: the cells, see `table_of`.
    setting: only cells of this setting.
    column: name of the figure.
    """
    own = table[(table["setting"] == setting) & (table["phase"] == "screening")]
    pivot = own.pivot_table(column, "defence", "attack", "mean", dropna=False)
    return pivot.reindex(index=own["defence"].unique(), columns=own["attack"].unique())


def harmless(table: Any, setting: str, control: str) -> list[str]:
    """Return the attacks that do no harm on the screening seeds without a defence, i.e. with `control`."""
    accuracy, gain = (screened(table, setting, name) for name in ("balanced_accuracy", "gain"))
    if control not in accuracy.index:
        return []
    seeds = set(table[table["phase"] == "screening"]["seed"])
    nobody = [value for seed, value in _nobody(table[table["setting"] == setting], control).items() if seed in seeds]
    before = sum(nobody) / len(nobody) if nobody else math.nan
    return [
        attack
        for attack in accuracy.columns
        if statistics.harmless(before, float(accuracy.loc[control, attack]), float(gain.loc[control, attack]))
    ]


def to_measure_again(
    table: Any, worst: int, backdoors: int, kinds: Iterable[str]
) -> dict[tuple[str, str], Sequence[str]]:
    """Return the attacks to measure again on the fresh seeds: (setting, defence) → attacks.

    table: the cells, see `table_of`. worst, backdoors: how many attacks, as in the matrix file.
    kinds: the attacks that are backdoors.

    Up to `worst` attacks whose cells have all failed are added: they must be reported, and must not displace an attack
    that can be made.
    """
    chosen: dict[tuple[str, str], Sequence[str]] = {}
    screening = table[table["phase"] == "screening"]
    for setting in table["setting"].unique():
        robustness, gain = (screened(table, setting, name) for name in ("robustness", "gain"))
        for defence in robustness.index:
            cells = screening[(screening["setting"] == setting) & (screening["defence"] == defence)]
            tried = cells.groupby("attack", sort=False)["state"].agg(lambda states: bool((states != "failed").any()))
            gains = {attack: float(gain.loc[defence, attack]) for attack in gain.columns if attack in kinds}
            left = {attack: float(value) for attack, value in robustness.loc[defence].items()}
            found = statistics.worst_attacks(
                {attack: value for attack, value in left.items() if tried[attack]},
                {attack: value for attack, value in gains.items() if tried[attack]},
                worst,
                backdoors,
            )
            chosen[setting, defence] = found + [attack for attack in left if not tried[attack]][:worst]
    return chosen


def detections(table: Any) -> Any:
    """Return a table with the detection figures of each defence under attack: means, and the AUROC of the worst attack.

    A defence is listed once one of its cells is done.
    """
    attacked = table[~table["attack"].isin((NOBODY, ORACLE)) & (table["state"] == "done")]
    means = ("detection_auroc", "precision", "recall", "ejected", "rounds_to_eject", "rounds_to_forgive")
    worst = ("least_auroc", "hardest_attack", "cells_with_honest_ejected", "cells_with_rarest_ejected", "cells")
    lines = []
    for (setting, defence), cells in attacked.groupby(["setting", "defence"], sort=False):
        by_attack = cells.groupby("attack")["detection_auroc"].mean().dropna()
        everywhere = table[(table["setting"] == setting) & (table["defence"] == defence)]
        lines.append(
            {
                "setting": setting,
                "defence": defence,
                **{name: float(cells[name].mean()) for name in means},
                "least_auroc": float(by_attack.min()) if len(by_attack) else math.nan,
                "hardest_attack": by_attack.idxmin() if len(by_attack) else "",
                "cells_with_honest_ejected": int((everywhere["honest_ejected"] > 0).sum()),
                "cells_with_rarest_ejected": int((everywhere["rarest_ejected"] > 0).sum()),
                "cells": len(everywhere),
            }
        )
    return pd.DataFrame(lines, columns=["setting", "defence", *means, *worst])


def _nobody(table: Any, defence: str) -> dict[int, float]:
    found = attacks_by_seed(table[table["attack"] == NOBODY], defence, "balanced_accuracy", "control")
    return dict(found.get(NOBODY, {}))


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
