"""The best trials of a sweep once more: on seeds that the search has not seen, and as experiment files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedrobust.experiment_file import dump
from fedrobust.tuning.objectives import Results, reduced
from fedrobust.tuning.study import Trial
from fedrobust.tuning.sweep import Plan
from fedrobust.tuning.trials import Place, Run, Runs

Values = tuple[float, ...] | None
"""One number for each objective; None where a run failed."""


@dataclass(frozen=True)
class Fresh:
    """A trial measured again on the fresh seeds."""

    trial: Trial
    values: Values
    """Over all fresh seeds, as the objectives say."""
    by_seed: Mapping[int, Values]
    """Those of each fresh seed alone."""


def measure_again(plan: Plan, best: Sequence[Trial], runs: Runs) -> list[Fresh]:
    """Run trials on the fresh seeds of the sweep, under all of its attacks."""
    places = [
        Place(trial.number, attack, seed, plan.experiment(trial.values, attack, seed, trial.number), "fresh")
        for trial in best
        for seed in plan.sweep.fresh
        for attack in plan.attacks
    ]
    if not places:
        return []
    made: dict[int, dict[tuple[str, int], Run]] = {trial.number: {} for trial in best}
    for place, run in zip(places, runs.all(places), strict=True):
        made[place.trial][place.attack, place.seed] = run
    return [_fresh(plan, trial, made[trial.number]) for trial in best]


def write_fresh(folder: Path, plan: Plan, fresh: Iterable[Fresh]) -> None:
    """Write `fresh.csv`: a line for each trial and fresh seed, and one for all of them together; none, no file."""
    place = folder / "fresh.csv"
    place.unlink(missing_ok=True)
    if lines := [
        (each.trial.number, *line) for each in fresh for line in (*each.by_seed.items(), ("all", each.values))
    ]:
        with place.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(["number", "seed", *(objective.metric for objective in plan.sweep.objectives)])
            for number, seed, values in lines:
                table.writerow([number, seed, *(values or [""] * len(plan.sweep.objectives))])


def write_best(folder: Path, plan: Plan, best: Sequence[Trial], runs: Runs) -> list[Path]:
    """Write the experiment of the best trial as `best.yaml`; with several objectives `best_<trial>.yaml` for each.

    It runs as it is, with the first seed, and of several attacks under the one that it did worst under.
    """
    for old in folder.glob("best*.yaml"):
        old.unlink()
    written = []
    for trial in best:
        found = runs.known(plan, trial)
        experiment = plan.experiment(trial.values, _worst_attack(plan, found), plan.sweep.seeds[0])
        written.append(folder / ("best.yaml" if len(plan.sweep.objectives) == 1 else f"best_{trial.number}.yaml"))
        written[-1].write_text(dump(experiment), encoding="utf-8")
    return written


def _fresh(plan: Plan, trial: Trial, made: Mapping[tuple[str, int], Run]) -> Fresh:
    def value(seeds: Sequence[int]) -> Values:
        chosen = {key: run for key, run in made.items() if key[1] in seeds}
        if any(run.failed for run in chosen.values()):
            return None
        return reduced(plan.sweep.objectives, {key: run.curves for key, run in chosen.items()})

    return Fresh(trial, value(plan.sweep.fresh), {seed: value([seed]) for seed in plan.sweep.fresh})


def _worst_attack(plan: Plan, found: Results) -> str:
    first = plan.sweep.objectives[0]
    by_attack = {
        attack: first.reduced({key: curves for key, curves in found.items() if key[0] == attack})
        for attack in plan.attacks
        if any(key[0] == attack for key in found)
    }
    choose = min if first.direction == "maximize" else max
    return choose(by_attack, key=lambda attack: by_attack[attack]) if by_attack else plan.runs[0][0]
