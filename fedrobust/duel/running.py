"""A duel from start to end: turn by turn, each judged on fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fedrobust.duel.file import SEARCHED, Match
from fedrobust.duel.results import Turn, write_results
from fedrobust.errors import FederationError
from fedrobust.federation.pool import Pool
from fedrobust.parallel import Store, Teams, leased_pool, parent_run
from fedrobust.tracking import Tracker, flatten
from fedrobust.tuning.objectives import reduced
from fedrobust.tuning.running import STORAGE, run_sweep
from fedrobust.tuning.sweep import Plan
from fedrobust.tuning.trials import Place, Run, Runs

DUELS = Path("mlruns/duels")
"""Where each duel keeps its folder, below the working folder."""


class Watch(Protocol):
    """Is told how far a duel is."""

    def turn(self, turn: Turn) -> None:
        """A turn has been judged."""

    def say(self, what: str) -> None:
        """What is being done now."""


@dataclass(frozen=True)
class Findings:
    """What a duel leaves."""

    folder: Path
    match: Match
    turns: list[Turn] = field(default_factory=list)


def run_duel(
    match: Match,
    watch: Watch,
    *,
    storage: str = STORAGE,
    teams: int | None = None,
    out: Path | None = None,
    pool: Pool | None = None,
) -> Findings:
    """Run what is missing of a duel, and write its table and its picture.

    Every turn is a sweep with a folder of its own below the duel's. What is finished is not run again: a duel that was
    stopped goes on when it is started again.

    Raises `ExperimentError`, `TrackingError`, `FederationError` where a run that judges a turn fails, and what a
    Ctrl-C raises; what is finished stays.
    """
    duel, found = match.duel, Findings(out or DUELS / match.duel.name, match)
    with ExitStack() as stack:
        match.check_data()
        store = stack.enter_context(closing(Store(found.folder / "runs.jsonl", Run)))
        settings = duel.model_dump(mode="json", serialize_as_any=True)
        watch.say("opening MLflow")
        opened = parent_run(
            found.folder, match.tracking, flatten(settings), {"duel": duel.name}, f"duel {duel.name}", []
        )
        tracker = stack.enter_context(opened)
        if pool is None:
            some = next(iter(duel.defences.values()))
            experiment = match.experiment(some.options, [], duel.seeds[0], "")
            pool = stack.enter_context(leased_pool(experiment, watch.say, teams))
        runs = Runs(store, stack.enter_context(Teams(watch.say, pool=pool)), tracker)
        for defence in duel.defences:
            _Duellists(match, defence, watch, runs, storage, pool, found).fight(tracker)
        watch.say("writing the table")
        write_results(found.folder, duel.name, duel.objective, found.turns)
        tracker.upload(found.folder, again=True)
    return found


class _Duellists:
    """One defence and its attacker."""

    def __init__(
        self, match: Match, defence: str, watch: Watch, runs: Runs, storage: str, pool: Pool, found: Findings
    ) -> None:
        self._match, self._defence, self._watch = match, defence, watch
        self._runs, self._storage, self._pool, self._found = runs, storage, pool, found
        self._options: dict[str, Any] = dict(match.duel.defences[defence].options)
        self._attacks: dict[str, Sequence[Any]] = dict(match.fixed)

    def fight(self, tracker: Tracker) -> None:
        self._judge("fixed", 0, {}, tracker)
        for side, number in self._match.turns:
            if side == "attacker":
                chosen = self._searched(self._match.attack(self._defence, self._options, number))
                self._attacks[f"{SEARCHED} {number}"] = chosen["attacks"]
            elif self._match.duel.defences[self._defence].space:
                plan = self._match.defend(self._defence, self._options, self._attacks, number)
                chosen = self._searched(plan)
                self._options |= chosen
            else:
                continue
            self._judge(side, number, chosen, tracker)

    def _searched(self, plan: Plan) -> Mapping[str, Any]:
        """What the best trial of a turn's search has chosen."""
        self._watch.say(f"searching: {plan.sweep.name}, {plan.trials} trials")
        out = self._found.folder / plan.sweep.name.removeprefix(f"{self._match.duel.name} ")
        found = run_sweep(plan, resume=True, storage=self._storage, out=out, pool=self._pool)
        if not found.best:
            raise FederationError(f"{plan.sweep.name}: no trial was completed; see {out / 'trials.csv'}")
        return found.best[0].values

    def _judge(self, side: str, number: int, chosen: Mapping[str, Any], tracker: Tracker) -> None:
        """Measure all known attacks against the defence as it is, on the fresh seeds."""
        duel = self._match.duel
        places = [
            Place(
                number,
                attack,
                seed,
                self._match.experiment(self._options, crafted, seed, f"{self._defence} | {attack}"),
                "fresh",
            )
            for attack, crafted in self._attacks.items()
            for seed in duel.fresh
        ]
        curves = {}
        for place, run in zip(places, self._runs.all(places), strict=True):
            if run.failed:
                raise FederationError(f"{self._defence}, {place.attack}, seed {place.seed}: {run.failed}")
            curves[place.attack, place.seed] = run.curves
        by_seed = {
            attack: {seed: duel.objective.reduced({(attack, seed): curves[attack, seed]}) for seed in duel.fresh}
            for attack in self._attacks
        }
        by_attack = {
            attack: (
                reduced([duel.objective], {key: curves[key] for key in curves if key[0] == attack}) or (float("nan"),)
            )[0]
            for attack in self._attacks
        }
        turn = Turn(self._defence, side, number, by_attack, by_seed, dict(chosen), duel.objective.direction)
        self._found.turns.append(turn)
        step = sum(each.defence == self._defence for each in self._found.turns) - 1
        tracker.log({"kind": "turn", "round": step, "metrics": {f"{self._defence}/worst": turn.value}})
        self._watch.turn(turn)
