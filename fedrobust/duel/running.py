"""A duel from start to end: turn by turn, each judged on fresh seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedrobust.duel.match import Match, Role, Standing
from fedrobust.duel.results import Turn, turns_written, write_results
from fedrobust.errors import DataError, ExperimentError, FederationError
from fedrobust.failures import ends_all, reason
from fedrobust.federation.pool import Pool
from fedrobust.parallel import Store, Teams, leased_pool, parent_run, refuse_fruitless, writable, written_in_any_case
from fedrobust.private import private_files
from fedrobust.texts import file_name
from fedrobust.tracking import Tracker, flatten
from fedrobust.tuning import running as tuning
from fedrobust.tuning.objectives import Curves, Objective
from fedrobust.tuning.study import Trial
from fedrobust.tuning.sweep import Plan
from fedrobust.tuning.trials import Place, Run, Runs

DUELS = Path("mlruns/duels")
"""Where each duel keeps its folder, below the working folder."""
GO_ON = "started again with the same command, the duel goes on"
"""What is told behind an error that ends one."""

Made = TypeVar("Made")


class Watch(tuning.Watch, Protocol):
    """Is told how far a duel is, and how far the search of the turn."""

    def turn(self, turn: Turn) -> None:
        """A turn has been judged, or has failed."""


@dataclass(frozen=True)
class Findings:
    """What a duel leaves."""

    folder: Path
    match: Match
    turns: list[Turn]


@private_files()
def run_duel(
    match: Match,
    watch: Watch | None = None,
    *,
    storage: str = tuning.STORAGE,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
) -> Findings:
    """Run what is missing of a duel, and write its table and its picture.

    The search of a turn is a sweep with a folder of its own below the duel's. What is finished is not run again: a duel
    that was stopped goes on when it is started again, and one with more turns goes on where it ended. A turn fails
    where no trial of its search is completed, or a run that judges it fails or has no finite figure; its defence then
    takes no further turn, and the others go on.

    teams: runs at a time, each on one client actor; by default as many as the cluster has cores.
    out: the folder, instead of one named after the duel.
    pool: leases teams that are there already; `teams` then says nothing.

    What would end all turns ends the duel: `DataError` where there are no data, `AuditError`, `TrackingError`,
    `StorageError`, `NoPlaceError`, a full disk, and a Ctrl-C; what is finished stays. Raises `FederationError` where
    every turn has failed, when all is written, and `ExperimentError` where a search is another one than was begun.
    """
    duel, watch = match.duel, watch or _Silent()
    folder, turns = out or DUELS / file_name(duel.name), list[Turn]()
    with ExitStack() as stack:
        Teams(watch.say).check(match.samples)
        store = stack.enter_context(closing(Store(folder / "runs.jsonl", Run)))
        settings = duel.model_dump(mode="json", serialize_as_any=True)
        with writable(folder):
            (folder / "duel.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        watch.say("opening MLflow")
        experiment, tags = match.samples[0].tracking.experiment, {"duel": duel.name}
        tracker = stack.enter_context(parent_run(folder, experiment, flatten(settings), tags, f"duel {duel.name}", []))
        pool = pool or stack.enter_context(leased_pool(match.samples[0], watch.say, teams))
        runs = Runs(store, stack.enter_context(Teams(watch.say, pool=pool)), tracker)

        def write(complete: bool) -> None:
            if complete or len(turns) >= turns_written(folder):  # an earlier sitting may have come further
                write_results(folder, duel.name, duel.objective, turns, complete)
            tracker.upload(folder, again=True)

        standings = {name: match.begin(name) for name in duel.defences}
        lost: set[str] = set()
        with written_in_any_case(write, GO_ON):
            for side, number, name in match.turns:
                if name in lost:
                    continue
                chosen: Mapping[str, Any] = {}
                try:
                    if side != "fixed":
                        plan = _composed(partial(match.search, standings[name], side, number))
                        watch.say(f"{name}: {side} {number} searches")
                        place = folder / file_name(plan.sweep.name.removeprefix(f"{duel.name} "))
                        chosen = _search(plan, watch, storage, place, pool, tracker)
                        standings[name] = standings[name].after(side, number, chosen)
                    watch.say(f"{name}: measuring on fresh seeds")
                    turn = _judged(match, standings[name], side, number, chosen, runs)
                except (FederationError, DataError) as error:
                    if ends_all(error):
                        raise
                    turn = Turn(name, side, number, {}, {}, chosen, duel.objective.direction, reason(error))
                turns.append(turn)
                if turn.failed:
                    lost.add(name)
                elif not lost:  # MLflow takes what it is told of a duel in one order: the rest when nothing fails
                    step = 2 * number - (side == "attacker")
                    tracker.log({"kind": "turn", "round": step, "metrics": {f"worst/{name}": turn.value}})
                watch.turn(turn)
        refuse_fruitless([turn.failed for turn in turns if turn.failed], len(turns), "turns", folder / "duel.md")
    return Findings(folder, match, turns)


def _composed(make: Callable[[], Made]) -> Made:
    """What is made of the options. Raises `FederationError` where what the sides have found does not go together."""
    try:
        return make()
    except (Exception, SystemExit) as error:  # a validator of a user's own class may raise anything
        raise FederationError(reason(error)) from error


def _search(plan: Plan, watch: Watch, storage: str, out: Path, pool: Pool, tracker: Tracker) -> Mapping[str, Any]:
    """What the best trial of a turn's sweep has chosen. Raises `FederationError` where all trials failed."""
    found = tuning.run_sweep(
        plan, _Trials(watch), resume=True, storage=storage, out=out, pool=pool, parent=tracker.run_id
    )
    return found.best[0].values


def _judged(match: Match, standing: Standing, side: Role, number: int, chosen: Mapping[str, Any], runs: Runs) -> Turn:
    """Measure a defence against all known attacks, on the fresh seeds."""
    objective, name = match.duel.objective, standing.defence
    composed = _composed(
        lambda: [
            (attack, seed, match.experiment(standing, attack, seed))
            for attack in standing.attacks
            for seed in match.duel.fresh
        ]
    )
    places = [_Judging(number, *each, "fresh", name, standing.turn) for each in composed]
    curves: dict[str, dict[int, Curves]] = {attack: {} for attack in standing.attacks}
    wrong = list[str]()
    for place, run in zip(places, runs.all(places), strict=True):
        where = f"{place.attack}, seed {place.seed}"
        why = run.failed or _worthless(objective, place, run)
        if why:
            wrong.append(f"{where}: {why}")
        else:
            curves[place.attack][place.seed] = run.curves
    whole = {attack: found for attack, found in curves.items() if len(found) == len(match.duel.fresh)}
    by_seed = {
        attack: {seed: objective.reduced({(attack, seed): each}) for seed, each in found.items()}
        for attack, found in whole.items()
    }
    by_attack = {
        attack: objective.reduced({(attack, seed): each for seed, each in found.items()})
        for attack, found in whole.items()
    }
    return Turn(name, side, number, by_attack, by_seed, chosen, objective.direction, "; ".join(wrong))


def _worthless(objective: Objective, place: Place, run: Run) -> str:
    """Why a run that has not failed has no figure; empty if it has one."""
    try:
        value = objective.reduced({(place.attack, place.seed): run.curves})
    except ExperimentError as error:
        return reason(error)
    return "" if math.isfinite(value) else f"{objective.metric} is not a finite number"


@dataclass(frozen=True)
class _Judging(Place):
    """A run that judges a turn; `trial` is the turn's number."""

    defence: str = ""
    turn: str = ""

    @property
    def tags(self) -> dict[str, str]:
        own = {"defence": self.defence, "turn": self.turn}
        return own | {"attack": self.attack, "seed": str(self.seed), "phase": self.phase}


class _Trials:
    """Passes on how far a sweep is, and not what it says."""

    def __init__(self, watch: Watch) -> None:
        self.plan, self.trial = watch.plan, watch.trial

    def say(self, what: str) -> None:
        pass


class _Silent:
    def plan(self, trials: int, finished: int) -> None:
        pass

    def trial(self, trial: Trial, best: Sequence[Trial]) -> None:
        pass

    def turn(self, turn: Turn) -> None:
        pass

    def say(self, what: str) -> None:
        pass
