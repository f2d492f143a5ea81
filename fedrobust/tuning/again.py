"""The best trials of a sweep, measured again on seeds that the search has not used, and written as experiment files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedrobust.errors import ExperimentError
from fedrobust.experiment_file import dump
from fedrobust.failures import reason
from fedrobust.studies.finished import FinishedRun
from fedrobust.texts import cell
from fedrobust.tuning.objectives import NOT_FINITE, Results, reduced
from fedrobust.tuning.study import Trial
from fedrobust.tuning.sweep import OWN, SweepPlan
from fedrobust.tuning.trials import Runs, TrialRun, trial_run
from fedrobust.tuning.views import labels

ObjectiveValues = tuple[float, ...] | None
"""One number for each objective; None if a run failed, or if a number is not finite."""


@dataclass(frozen=True)
class Fresh:
    """A trial measured again on the fresh seeds."""

    trial: Trial
    values: ObjectiveValues
    """The objectives over all fresh seeds."""
    by_seed: Mapping[int, ObjectiveValues]
    """The objectives on each fresh seed alone."""
    failed: Mapping[int, str] = field(default_factory=dict)
    """Fresh seed → why its runs failed; the same command makes them again."""


def measure_again(plan: SweepPlan, best: Sequence[Trial], runs: Runs) -> list[Fresh]:
    """Run the trials `best` on the fresh seeds of the sweep, under all of its attacks.

    plan: the sweep.
    runs: makes the runs.
    """
    runs_of = {trial.number: _runs(plan, trial) for trial in best}
    made = iter(runs.all([run for own in runs_of.values() for run in own]))
    return [_fresh(plan, trial, [next(made) for _ in runs_of[trial.number]]) for trial in best if runs_of[trial.number]]


def measured_again(plan: SweepPlan, best: Sequence[Trial], runs: Runs) -> list[Fresh]:
    """Return the results of those trials whose runs on the fresh seeds are all on disk; nothing is run.

    plan: the sweep.
    best: the trials.
    runs: reads the runs from disk.
    """
    kept = {trial.number: [runs.kept(run) for run in _runs(plan, trial)] for trial in best}
    whole = {number: [run for run in found if run is not None] for number, found in kept.items()}
    return [
        _fresh(plan, trial, whole[trial.number])
        for trial in best
        if whole[trial.number] and len(whole[trial.number]) == len(kept[trial.number])
    ]


def write_fresh(folder: Path, plan: SweepPlan, fresh: Iterable[Fresh]) -> None:
    """Write `fresh.csv`: a line for each trial and fresh seed, and one for all seeds together; no file if `fresh` is
    empty."""
    place = folder / "fresh.csv"
    place.unlink(missing_ok=True)
    if lines := [
        (each.trial.number, *line)
        for each in fresh
        for line in (
            *((seed, values, each.failed.get(seed, "")) for seed, values in each.by_seed.items()),
            ("all", each.values, ""),
        )
    ]:
        with place.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            heads = ("number", "seed", *labels(plan.sweep.objectives), "reason")
            table.writerow(map(cell, heads))
            for number, seed, values, reason in lines:
                table.writerow(map(cell, (number, seed, *(values or [""] * len(plan.sweep.objectives)), reason)))


def write_best(folder: Path, plan: SweepPlan, best: Sequence[Trial], runs: Runs, unlearnt: str = "") -> list[Path]:
    """Write the experiment of the best trial as `best.yaml`; with several objectives, `best_<trial>.yaml` for each of
    `best`.

    The file can be run as it is. It has the sweep's first seed and, if there are several attacks, the one with the
    worst result. `unlearnt`, a sentence, becomes a comment in its first line.
    """
    written = []
    for trial in best:
        found = runs.results(plan, trial)
        experiment = plan.experiment(trial.values, _worst_attack(plan, found), plan.sweep.seeds[0])
        written.append(folder / ("best.yaml" if len(plan.sweep.objectives) == 1 else f"best_{trial.number}.yaml"))
        comment = f"# {unlearnt}\n" if unlearnt else ""
        written[-1].write_text(comment + dump(experiment), encoding="utf-8")
    for old in {*folder.glob("best*.yaml")} - {*written}:
        old.unlink()
    return written


def _runs(plan: SweepPlan, trial: Trial) -> list[TrialRun]:
    """Return the runs of a trial on the fresh seeds, in order."""
    return [trial_run(plan, trial, attack, seed, "fresh") for seed in plan.sweep.fresh for attack in plan.attacks]


def _fresh(plan: SweepPlan, trial: Trial, runs: Sequence[FinishedRun]) -> Fresh:
    """Return the results of a trial; `runs` are in the order of `_runs`."""
    keys = [(attack, seed) for seed in plan.sweep.fresh for attack in plan.attacks]
    made = dict(zip(keys, runs, strict=True))

    def value(seeds: Sequence[int]) -> ObjectiveValues:
        chosen = {key: run for key, run in made.items() if key[1] in seeds}
        if any(run.failed for run in chosen.values()):
            return None
        return reduced(plan.sweep.objectives, {key: run.curves for key, run in chosen.items()})

    failed: dict[int, str] = {}
    by_seed: dict[int, ObjectiveValues] = {}
    for seed in plan.sweep.fresh:
        wrong = {attack: run.failed for (attack, own), run in made.items() if own == seed and run.failed}
        told = "; ".join(why if attack == OWN else f"{attack}: {why}" for attack, why in wrong.items())
        try:
            by_seed[seed] = value([seed])
        except ExperimentError as error:
            by_seed[seed], told = None, reason(error)
        if by_seed[seed] is None:
            failed[seed] = told or NOT_FINITE
    return Fresh(trial, None if failed else value(plan.sweep.fresh), by_seed, failed)


def _worst_attack(plan: SweepPlan, found: Results) -> str:
    first = plan.sweep.objectives[0]
    by_attack = {
        attack: first.reduced({key: curves for key, curves in found.items() if key[0] == attack})
        for attack in plan.attacks
        if any(key[0] == attack for key in found)
    }
    choose = min if first.direction == "maximize" else max
    return choose(by_attack, key=lambda attack: by_attack[attack]) if by_attack else plan.runs[0][0]
