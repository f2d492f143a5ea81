"""A duel with its experiments: the state after each turn, the sweeps of the turns, and the runs that judge them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

from ruamel.yaml.comments import CommentedMap

from fedrobust.draft import Changes, Draft, Keys
from fedrobust.duels.file import SEARCHED, Duel
from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.experiment import Experiment
from fedrobust.studies.composer import Composer, Mistakes, StudyFile, study_draft
from fedrobust.studies.planned import PlannedRun
from fedrobust.tuning.objectives import unknown
from fedrobust.tuning.sweep import Sweep, SweepPlan

Role = Literal["fixed", "attacker", "defender"]
"""The side whose turn it is; `fixed` is the first turn, before any search."""


@dataclass(frozen=True)
class Standing:
    """A defence in its current state, and the attacks that both sides have against it so far."""

    defence: str
    options: Mapping[str, Any]
    """The options that make it, by dotted path, applied in this order."""
    attacks: Mapping[str, list[Any]]
    turn: str = "fixed"
    """The last turn in which it changed, e.g. `defender 1`."""

    def after(self, side: Role, number: int, chosen: Mapping[str, Any]) -> Standing:
        """Return the state after turn `number` of `side`, in which it has chosen the options `chosen`."""
        now = replace(self, turn=f"{side} {number}")
        if side == "attacker":
            return replace(now, attacks={**self.attacks, f"{SEARCHED} {number}": chosen["attacks"]})
        return replace(now, options=_then(self.options, chosen))


class DuelPlan:
    """A duel whose options and first experiments have been checked."""

    def __init__(self, duel: Duel, draft: Draft, base: Draft | None = None) -> None:
        """Check the options and the first experiments.

        duel: the options.
        draft: the file of the duel.
        base: the file of its experiment, if it has already been read.

        Raises `ExperimentError` with a line for each error.
        """
        self.duel = duel
        self._draft = draft
        self._composer = Composer(duel, draft, base)
        self._check()

    @property
    def mlflow_experiment(self) -> str:
        """Return the name of the MLflow experiment of its runs."""
        return self._composer.mlflow_experiment

    @property
    def fixed(self) -> list[PlannedRun]:
        """Return the runs that judge every defence before any search."""
        made = [
            self.experiment(standing, attack, seed)
            for standing in map(self.begin, self.duel.defences)
            for attack in standing.attacks
            for seed in self.duel.fresh
        ]
        return [PlannedRun(experiment=each, label=each.tracking.run_name or "", tags={}) for each in made]

    @cached_property
    def samples(self) -> list[Experiment]:
        """A run of each defence on a search seed, and on a fresh one."""
        begun = [self.begin(name) for name in self.duel.defences]
        seeds = (self.duel.seeds[0], self.duel.fresh[0])
        return [self.experiment(each, next(iter(each.attacks)), seed) for each in begun for seed in seeds]

    @property
    def turns(self) -> list[tuple[Role, int, str]]:
        """The turns in order: side, number, and defence; a defence without a space has no defender."""
        sides: list[tuple[Role, int]] = [("fixed", 0)]
        for number in range(1, self.duel.turns + 1):
            sides += [("attacker", number), ("defender", number)]
        defences = self.duel.defences
        return [(side, n, name) for side, n in sides for name in defences if side != "defender" or defences[name].space]

    def begin(self, defence: str) -> Standing:
        """Return a defence with the options of the file, and the fixed attacks."""
        return Standing(defence, self.duel.defences[defence].options, self.duel.attack_lists)

    def experiment(self, standing: Standing, attack: str, seed: int) -> Experiment:
        """Return a run of a defence under one of its attacks.

        standing: the defence with its attacks.
        attack: name of the attack.
        seed: the seed of the run.

        Raises `ExperimentError` if they do not fit together.
        """
        draft, name = self._composer.base, standing.defence
        for path, value in standing.options.items():
            part = "options" if path in self.duel.defences[name].options else "space"
            draft = self._composer.changed(draft, {path: value}, "defences", name, part, path)
        draft = self._composer.changed(draft, {"attacks": standing.attacks[attack]}, "attacks", attack)
        label = f"{name}, {standing.turn} | {attack} | seed {seed} | {self.duel.name}"
        return self._composer.run(draft, label, seed)

    def search(self, standing: Standing, side: Role, number: int) -> SweepPlan:
        """Return the sweep of a turn.

        standing: the defence before the turn.
        side: `attacker` or `defender`.
        number: counts the turns of this side from 1.

        Raises `ExperimentError` with a line for each error in it.
        """
        duel, objective = self.duel, self.duel.objective.model_dump()
        given = CommentedMap(
            name=f"{duel.name} {standing.defence} {side} {number}",
            experiment=duel.experiment,
            changes=_then(duel.changes, standing.options),
            trials=(duel.attacker if side == "attacker" else duel.defender).trials,
            seeds=list(duel.seeds),
            seed=number,  # a defence may be unchanged since the last turn, but its search must differ
            parallel=duel.parallel,
        )
        moves: dict[Keys, Keys] = {(side, "sampler"): ("sampler",)}
        if side == "attacker":
            objective["direction"] = "minimize" if duel.objective.direction == "maximize" else "maximize"
            moves["attacker", "space"] = ("space", "attacks")
        else:
            given["attacks"] = dict(standing.attacks)
            moves["defences", standing.defence, "space"] = ("space",)
        given["objectives"] = [objective]
        draft = Draft(self._draft.path, given, _moved(self._draft, moves, given))
        try:
            return SweepPlan(draft.checked(Sweep), draft, self._composer.file, self.mlflow_experiment)
        except ExperimentError as error:
            moved = [*moves.items(), (("attacker", "space"), ("space",))]
            raise error.each(partial(_back, [(_dotted(new), _dotted(old)) for old, new in moved])) from None

    def _check(self) -> None:
        """Compose every defence with every fixed attack, and the first search of each side. Each error is reported
        once, with the defences that have it unless all do."""
        mistakes = Mistakes()
        for name in self.duel.defences:
            mistakes.attempt(partial(self._check_defence, name), name)
        mistakes.refuse()

    def _check_defence(self, name: str) -> None:
        standing, mistakes = self.begin(name), Mistakes()
        for attack in standing.attacks:
            made = mistakes.attempt(partial(self.experiment, standing, attack, self.duel.seeds[0]))
        mistakes.refuse()
        own = () if made is None else made.evaluation.metrics
        if problem := unknown(self.duel.objective.metric, own):
            raise ExperimentError(problem.at(self._draft.entry("objective", "metric")))
        sides: Sequence[Role] = ("attacker", "defender") if self.duel.defences[name].space else ("attacker",)
        for side in sides:
            mistakes.attempt(partial(self.search, standing, side, 1))
        mistakes.refuse()


def load_duel(file: StudyFile, overrides: Changes = ()) -> DuelPlan:
    """Read a duel file, and check its first experiments.

    file: its path, or its options.
    overrides: dotted path → value, or texts such as `"turns=1"`.

    Raises `ExperimentError` with one line for each error, as `fedrobust.load` does.
    """
    draft, base = study_draft(file, overrides, Duel)
    return DuelPlan(draft.checked(Duel), draft, base)


def _then(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Merge both so that `later` is applied last: `aggregation.f` changes what `aggregation` was set to."""
    return {path: value for path, value in first.items() if path not in later} | dict(later)


def _moved(draft: Draft, moves: Mapping[Keys, Keys], given: CommentedMap) -> dict[Keys, Origin]:
    """Copy parts of a file into `given` under other keys, with their lines; return the origins of values set later.

    Parts that the file does not have are left out.
    """
    for old, new in moves.items():
        source: Any = draft.tree
        for key in old[:-1]:
            source = source.get(key) or {}
        if old[-1] not in source:
            continue
        target, value = given, source[old[-1]]
        for key in new:
            last = key == new[-1]
            target[key] = value if last else CommentedMap()
            lines = getattr(getattr(source, "lc", None), "data", None) or {}
            if old[-1] in lines:
                target.lc.add_kv_line_col(key, lines[old[-1]])
            target = target[key]
    return {
        new + keys[len(old) :]: origin
        for keys, origin in draft.origin.items()
        for old, new in moves.items()
        if keys[: len(old)] == old
    }


def _back(moves: Sequence[tuple[str, str]], problem: Problem) -> Problem:
    """Turn a problem of a sweep into one of the duel's file, from which the sweep's options were taken."""
    for here, there in moves:
        problem = problem.moved(here, there)
    return problem


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))
