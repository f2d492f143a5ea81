"""The cells of a matrix as one table, and the summary of each defence. Pure: tables in, tables out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedrobust.intervals import Estimate, mean_interval
from fedrobust.matrices import statistics
from fedrobust.matrices.gaps import FEW, incomplete, lacking, no_interval, why_not
from fedrobust.matrices.grid import NOBODY, ORACLE, Cell
from fedrobust.matrices.measures import base_rates
from fedrobust.matrices.statistics import BySeed
from fedrobust.metrics.chance import at_chance
from fedrobust.texts import enumerated, visible

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
    "chance",
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
TITLES = {"gain": "backdoor gain", "cost": "cost"}
"""Figures of a summary, as tables call them."""


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
    made = {(cell.setting, cell.seed): cell for cell in cells if cell.attack == ORACLE and cell.digest in runs}
    oracles = {key: runs[cell.digest].figures for key, cell in made.items()}
    rates = {key: base_rates(oracles[key], cell.triggers) for key, cell in made.items()}
    keys = [((line.setting, line.seed), line.attack) for line in table.itertuples()]
    table["oracle"] = [oracles.get(key, {}).get("balanced_accuracy", math.nan) for key, _ in keys]
    table["chance"] = 1.0 / table["classes"]
    table["baseline_success"] = [rates.get(key, {}).get(attack, math.nan) for key, attack in keys]
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
    """The attack with the lowest mean robustness on the fresh seeds; several if they are equal."""
    robustness: Estimate
    """That mean: the headline. Its interval is simultaneous over the attacks that were measured again. NaN if an attack
    that may be the worst was not measured, see `lacks`."""
    to_the_best: Estimate
    """The headline minus that of the best defence, paired by seed; NaN if there is no headline."""
    accuracy: Estimate
    """Balanced accuracy without attack, over all seeds."""
    cost: Estimate
    """How much balanced accuracy the defence costs without attack, paired by seed, over all seeds."""
    worst_backdoor: str
    """The backdoor that gains the most on the fresh seeds."""
    gain: Estimate
    """How much more often its trigger succeeds than if it had not been planted; simultaneous over the backdoors
    measured. NaN if a backdoor that may be the worst was not measured."""
    success: Estimate
    """How often it succeeds; the highest of the backdoors measured."""
    seconds: float
    """Mean duration of the cells."""
    unfinished: int
    """Number of cells that failed or are missing; the figures do not include them."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """The attacks that may be the worst and were not measured → why. The headline is then incomplete."""
    tied: tuple[str, ...] = ()
    """Attacks that were not measured again, although they were as low in the screening as the last one that was."""
    why: Mapping[str, str] = field(default_factory=dict)
    """Figure → why it is NaN, or why it has no interval."""

    def flat(self) -> dict[str, Any]:
        """Return one line of a table."""
        line: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Estimate):
                line |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
            elif name not in ("lacks", "tied", "why"):
                line[name] = value
        return line | {"incomplete": self.why["robustness"] if self.lacks else "", "tied": ", ".join(self.tied)}


def verdicts(table: Any, control: str, backdoors: Iterable[str], worst: int = 0) -> list[DefenceSummary]:
    """Return a summary for each setting and defence, sorted by setting and then from the most to the least robust.

    table: the cells, see `table_of`.
    control: the defence that is none.
    backdoors: the attacks that plant a backdoor.
    worst: how many attacks were measured again, as in the matrix file; with 0, `tied` is empty.
    """
    found, backdoors = list[DefenceSummary](), list(backdoors)
    for setting in table["setting"].unique():
        own = table[(table["setting"] == setting)]
        attacks = list(own[own["phase"] == "screening"]["attack"].unique())
        names = list(own[own["attack"] != ORACLE]["defence"].unique())
        lacks = {defence: lacking(own, defence, "robustness", attacks) for defence in names}
        measured = {defence: attacks_by_seed(own, defence, "robustness") for defence in names}
        headlines = {
            defence: ("", Estimate(math.nan)) if lacks[defence] else statistics.least(measured[defence])
            for defence in names
        }
        order = sorted(names, key=lambda defence: -_known(headlines[defence][1].value))
        for defence in order:
            why = {}
            if lacks[defence]:
                why["robustness"] = incomplete(lacks[defence], len(attacks))
            elif math.isnan(headlines[defence][1].low):
                why["robustness"] = no_interval(own, defence, "robustness")
            against = Estimate(math.nan)
            if not lacks[defence] and not lacks[order[0]]:
                best = defence == order[0]
                against = Estimate(0, 0, 0) if best else statistics.difference(measured[defence], measured[order[0]])
            worst_backdoor, gain, success = _backdoors(
                own, defence, [name for name in attacks if name in backdoors], why
            )
            nobody, undefended = (_nobody(own, name) for name in (defence, control))
            cost = mean_interval([undefended[seed] - nobody[seed] for seed in nobody if seed in undefended])
            if math.isnan(cost.value):
                why["cost"] = _no_cost(own, defence, control)
            cells = own[(own["attack"] != ORACLE) & (own["defence"] == defence)]
            found.append(
                DefenceSummary(
                    setting,
                    defence,
                    *headlines[defence],
                    against,
                    mean_interval(list(nobody.values())),
                    cost,
                    worst_backdoor,
                    gain,
                    success,
                    float(cells["seconds"].mean()),
                    int((cells["state"] != "done").sum()),
                    lacks[defence],
                    _tied(own, defence, worst),
                    why,
                )
            )
    return found


def remarks(found: Sequence[DefenceSummary]) -> list[str]:
    """Return a line for each reason why figures are missing, with the defences that it concerns.

    found: the summaries of one setting.
    """
    lines: dict[str, list[str]] = {}
    for verdict in found:
        for name, reason in verdict.why.items():
            if name != "robustness":
                lines.setdefault(f"no {TITLES[name]}: {reason}", []).append(verdict.defence)
            elif verdict.lacks:
                lines.setdefault(f"incomplete, so no least robustness: {reason}", []).append(verdict.defence)
            elif reason != FEW:
                lines.setdefault(f"no interval: {reason}", []).append(verdict.defence)
        if verdict.tied:
            names = enumerated(verdict.tied, 6)
            tied = f"not measured again, although as low in the screening as the last attack that was: {names}"
            lines.setdefault(f"{tied}; a larger 'worst' measures more", []).append(verdict.defence)
    return [said if len(names) == len(found) else f"{enumerated(names, 6)}: {said}" for said, names in lines.items()]


def _backdoors(own: Any, defence: str, backdoors: Sequence[str], why: dict[str, str]) -> tuple[str, Estimate, Estimate]:
    """Return the backdoor that gains the most, its gain, and how often it succeeds; `why` gets the reason if it is
    unknown."""
    lacks = lacking(own, defence, "gain", backdoors)
    gains, successes = (
        {name: seeds for name, seeds in attacks_by_seed(own, defence, column).items() if name in backdoors}
        for column in ("gain", "attack_success")
    )
    if not backdoors:
        why["gain"] = "no attack here plants a backdoor"
    elif lacks:
        why["gain"] = incomplete(lacks, len(backdoors))
        return "", Estimate(math.nan), Estimate(math.nan)
    elif not gains:
        why["gain"] = "no backdoor was measured again"
    return *statistics.greatest(gains), statistics.greatest(successes)[1]


def _no_cost(own: Any, defence: str, control: str) -> str:
    """Return why a defence's cost without attack is unknown."""
    for name in (defence, control):
        cells = own[(own["defence"] == name) & (own["attack"] == NOBODY)]
        if reason := why_not(cells, "balanced_accuracy", {}):
            return f"{NOBODY}, {name}: {reason}"
    return "no seed has both"


def _tied(own: Any, defence: str, worst: int) -> tuple[str, ...]:
    cells = own[own["defence"] == defence]
    again = set(cells[cells["phase"] == "fresh"]["attack"])
    if not worst or not again:
        return ()
    first = cells[cells["phase"] == "screening"].groupby("attack", sort=False)["robustness"].mean()
    return tuple(statistics.as_low(first.to_dict(), again, worst))


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


def harmless(table: Any, setting: str, control: str, backdoors: Iterable[str] = ()) -> list[str]:
    """Return the attacks that do no harm on the screening seeds without a defence, i.e. with `control`.

    Only seeds on which the control has learnt something without attack count: where it has not, nothing can be said.
    """
    own = table[(table["setting"] == setting) & (table["defence"] == control)]
    known = own[own["chance"].notna()]
    chances = dict(zip(known["seed"], known["chance"], strict=True))
    nobody = {seed: value for seed, value in _nobody(own, control).items() if not at_chance(value, chances[seed])}
    accuracies, gains = (attacks_by_seed(own, control, name, "screening") for name in ("balanced_accuracy", "gain"))
    found = []
    for attack, seeds in accuracies.items():
        both = [seed for seed in seeds if seed in nobody]
        before, after = (_average(values[seed] for seed in both) for values in (nobody, seeds))
        gain = _average(gains.get(attack, {}).values()) if attack in backdoors else None
        if statistics.harmless(before, after, gain):
            found.append(attack)
    return found


def to_measure_again(
    table: Any, worst: int, backdoors: int, kinds: Iterable[str]
) -> dict[tuple[str, str], Sequence[str]]:
    """Return the attacks to measure again on the fresh seeds: (setting, defence) → attacks.

    table: the cells, see `table_of`. worst, backdoors: how many attacks, as in the matrix file.
    kinds: the attacks that are backdoors.

    Attacks that have no figure although their cells are done, e.g. because the oracle is at chance, are all measured.
    Of those whose cells have all failed up to `worst` are added: they must be reported, and must not displace an attack
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
                "hardest_attack": enumerated(statistics.lowest(by_attack.to_dict())),
                "cells_with_honest_ejected": int((everywhere["honest_ejected"] > 0).sum()),
                "cells_with_rarest_ejected": int((everywhere["rarest_ejected"] > 0).sum()),
                "cells": len(everywhere),
            }
        )
    return pd.DataFrame(lines, columns=["setting", "defence", *means, *worst])


def _nobody(table: Any, defence: str) -> dict[int, float]:
    found = attacks_by_seed(table[table["attack"] == NOBODY], defence, "balanced_accuracy", "control")
    return dict(found.get(NOBODY, {}))


def _average(values: Iterable[float]) -> float:
    many = list(values)
    return math.fsum(many) / len(many) if many else math.nan


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
