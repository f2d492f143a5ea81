"""A duel from start to end: turn by turn, each judged on fresh seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fedrobust.duels.match import DuelPlan, Role, Standing
from fedrobust.duels.results import Turn, turns_written, write_results
from fedrobust.errors import DataError, ExperimentError, FederationError, UnlearntError
from fedrobust.failures import ends_all, reason
from fedrobust.federation.pool import Pool
from fedrobust.private import private_files
from fedrobust.studies.finished import Curves, FinishedRun
from fedrobust.studies.study import Study, Unwatched, Watch, open_study
from fedrobust.studies.writing import refuse_fruitless, written_in_any_case
from fedrobust.texts import file_name
from fedrobust.tracking import StepFigures
from fedrobust.tuning.chance import BestReached, unlearnt
from fedrobust.tuning.objectives import Objective
from fedrobust.tuning.running import TrialDone, run_sweep
from fedrobust.tuning.sweep import STORAGE, SweepPlan
from fedrobust.tuning.trials import Runs, TrialRun

if TYPE_CHECKING:
    import pandas as pd

Made = TypeVar("Made")


@dataclass(frozen=True, repr=False)
class DuelResult:
    """The result of a duel."""

    folder: Path
    """The folder with `duel.md`, `turns.csv` and the curve."""
    match: DuelPlan
    turns: list[Turn]
    """The turns that were taken, in order."""

    def frame(self) -> pd.DataFrame:
        """Return a pandas table with one row for each turn and attack: `defence`, `turn`, `attack`, `value`, `worst`
        (whether this is the turn's worst attack), and `failed`, why a turn has no value."""
        import pandas as pd

        rows = [
            (turn.defence, turn.label, attack, value, attack == turn.worst, turn.failed)
            for turn in self.turns
            for attack, value in (turn.by_attack or {"": math.nan}).items()
        ]
        return pd.DataFrame(rows, columns=["defence", "turn", "attack", "value", "worst", "failed"])

    def __repr__(self) -> str:
        """Return a few lines: the value of each defence after its last turn, and the folder."""
        last = {turn.defence: turn for turn in self.turns}
        lines = [
            f"{name} after {turn.label}: {turn.failed or f'{turn.value:.3f} under {turn.worst}'}"
            for name, turn in last.items()
        ]
        return "\n  ".join([f"DuelResult of {self.match.duel.name}: {len(self.turns)} turns", *lines, str(self.folder)])


@private_files()
def run_duel(
    match: DuelPlan,
    watch: Watch[Turn | TrialDone] | None = None,
    *,
    storage: str = STORAGE,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
    anyway: bool = False,
) -> DuelResult:
    """Run what is missing of a duel, and write its table and its picture.

    The search of a turn is a sweep with its own folder inside the duel's. A duel with more turns continues where it
    ended. A turn fails if no trial of its search is completed, or if a run that judges it fails or has no finite
    figure; its defence then takes no further turn, and the others go on.

    match: the duel.
    watch: receives the turns, and the trials of each search.
    storage: address of the Optuna storage.
    anyway: go on even if nothing is learnt. Otherwise a search stops as a sweep does, see `run_sweep`: its turn then
        has failed.

    For teams, out and pool, and for errors before the first run, see `fedrobust.studies.study.open_study`; for errors
    that end a duel, see `Study.make_all`: finished runs are kept. Raises `FederationError` if every turn has failed,
    and `UnlearntError` if the searches of all defences stop because nothing is learnt, both after all files are
    written, `StorageError`, and `ExperimentError` if a search is not the one that was begun.
    """
    duel, watch = match.duel, watch or Unwatched()
    turns = list[Turn]()
    with open_study(duel, match.samples, match.fixed, out=out, watch=watch, teams=teams, pool=pool) as study:
        folder, tracker, runs = study.folder, study.tracker, Runs(study)

        def write(complete: bool) -> None:
            if complete or len(turns) >= turns_written(folder):  # an earlier execution may have got further
                write_results(folder, duel.name, duel.objective, turns, complete)
            said = [f"{turn.defence}, {turn.label}: {turn.unlearnt}" for turn in turns if turn.unlearnt]
            tracker.tag({"unlearnt": "; ".join(said)})
            tracker.upload(folder, again=True)

        standings = {name: match.begin(name) for name in duel.defences}
        lost: set[str] = set()
        flat: dict[str, UnlearntError] = {}
        with written_in_any_case(write):
            for side, number, name in match.turns:
                if name in lost:
                    continue
                chosen: Mapping[str, Any] = {}
                try:
                    if side != "fixed":
                        plan = _composed(partial(match.search, standings[name], side, number))
                        watch.say(f"{name}: {side} {number} searches")
                        chosen = _search(plan, match, watch, storage, study, anyway)
                        standings[name] = standings[name].after(side, number, chosen)
                    watch.say(f"{name}: measuring on fresh seeds")
                    turn = _judged(match, standings[name], side, number, chosen, runs)
                except (FederationError, DataError, UnlearntError) as error:
                    if ends_all(error):
                        raise
                    if isinstance(error, UnlearntError):
                        flat[name] = error
                    turn = Turn(name, side, number, {}, {}, chosen, duel.objective.direction, reason(error))
                turns.append(turn)
                if turn.failed:
                    lost.add(name)
                elif not lost:  # MLflow takes a duel's lines in one fixed order; the rest follows when nothing fails
                    step = 2 * number - (side == "attacker")
                    tracker.log(StepFigures(step, {f"worst/{name}": turn.value}))
                watch.done(turn)
        if len(flat) == len(duel.defences):
            name, first = next(iter(flat.items()))
            raise UnlearntError(f"{name}: {first}")
        refuse_fruitless([turn.failed for turn in turns if turn.failed], len(turns), "turns", folder / "duel.md")
        return DuelResult(folder, match, turns)


def _composed(make: Callable[[], Made]) -> Made:
    """Return what `make` makes. Raises `FederationError` if the options that the sides have found do not fit
    together."""
    try:
        return make()
    except (Exception, SystemExit) as error:  # a validator of a user's own class may raise anything
        raise FederationError(reason(error)) from error


def _search(
    plan: SweepPlan, match: DuelPlan, watch: Watch[Turn | TrialDone], storage: str, study: Study, anyway: bool
) -> Mapping[str, Any]:
    """Return what the best trial of a turn's sweep has chosen. Raises as `run_sweep` does."""
    folder = study.folder / file_name(plan.sweep.name.removeprefix(f"{match.duel.name} "))
    pool, parent = study.teams.pool(match.samples[0]), study.tracker.run_id
    found = run_sweep(plan, _Quiet(watch), storage=storage, out=folder, pool=pool, parent=parent, anyway=anyway)
    return found.best[0].values


def _judged(
    match: DuelPlan, standing: Standing, side: Role, number: int, chosen: Mapping[str, Any], runs: Runs
) -> Turn:
    """Measure a defence against all its attacks, on the fresh seeds."""
    objective, name = match.duel.objective, standing.defence
    composed = _composed(
        lambda: [
            (attack, seed, match.experiment(standing, attack, seed))
            for attack in standing.attacks
            for seed in match.duel.fresh
        ]
    )
    planned = [
        TrialRun.of(experiment, attack, seed, "fresh", defence=name, turn=standing.turn)
        for attack, seed, experiment in composed
    ]
    curves: dict[str, dict[int, Curves]] = {attack: {} for attack in standing.attacks}
    wrong = list[str]()
    more = composed[0][2].evaluation.metrics
    reached, control = BestReached([objective], more), BestReached([objective], more)
    for each, run in zip(planned, runs.all(planned), strict=True):
        reached.see([run])
        if why := run.failed or _worthless(objective, each, run):
            wrong.append(f"{each.attack}, seed {each.seed}: {why}")
        else:
            curves[each.attack][each.seed] = run.curves
    whole = {attack: found for attack, found in curves.items() if len(found) == len(match.duel.fresh)}
    by_seed = {
        attack: {seed: objective.reduced({(attack, seed): each}) for seed, each in found.items()}
        for attack, found in whole.items()
    }
    by_attack = {
        attack: objective.reduced({(attack, seed): each for seed, each in found.items()})
        for attack, found in whole.items()
    }
    said = unlearnt(reached, control, attacked=all(standing.attacks.values()))
    return Turn(name, side, number, by_attack, by_seed, chosen, objective.direction, "; ".join(wrong), said)


def _worthless(objective: Objective, planned: TrialRun, run: FinishedRun) -> str:
    """Say why a run that has not failed has no figure; empty if it has one."""
    try:
        value = objective.reduced({(planned.attack, planned.seed): run.curves})
    except ExperimentError as error:
        return reason(error)
    return "" if math.isfinite(value) else f"{objective.metric} is not a finite number"


class _Quiet(Unwatched):
    """Passes on the progress of a sweep, but not its messages."""

    def __init__(self, watch: Watch[Turn | TrialDone]) -> None:
        self.plan, self.done = watch.plan, watch.done  # type: ignore[method-assign, assignment]
