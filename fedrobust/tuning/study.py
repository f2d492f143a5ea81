"""A study on disk: trials are started and ended in fixed batches, so that a driver may die at any moment.

The storage contains only complete entries: a trial is written when its parameters are chosen, and again when its batch
is finished. The next parameters and the pruner's decisions are computed on copies in memory, from the state of the
storage when the batch began. A trial that was running when its driver died is handed out again, with the same number
and parameters.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from fedrobust.databases import shown
from fedrobust.errors import ExperimentError
from fedrobust.failures import reason
from fedrobust.tuning.objectives import Direction
from fedrobust.tuning.pruners import Pruner
from fedrobust.tuning.samplers import Random, Sampler
from fedrobust.tuning.space import Space, Values
from fedrobust.tuning.storage import opened
from fedrobust.tuning.sweep import SweepPlan

logger = logging.getLogger(__name__)

_DIGEST = "fedrobust:digest"
_SCORE = "fedrobust:score"
_FAILURE = "fedrobust:failure"


@dataclass(frozen=True)
class Asked:
    """A trial that is to be run."""

    number: int
    values: Values
    """Dotted path of an option → value."""


@dataclass(frozen=True)
class Completed:
    """A trial that has run to its end."""

    values: tuple[float, ...]
    """One value for each objective, finite."""


@dataclass(frozen=True)
class Pruned:
    """A trial that was ended early, as `report` decided."""


@dataclass(frozen=True)
class Failed:
    """A trial that could not be run, or whose result is not a number."""

    reason: str


Outcome = Completed | Pruned | Failed


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    number: int
    values: Values
    """Dotted path of an option → value."""
    outcome: Outcome
    reports: Mapping[int, float]
    """Step → reported value; empty without a pruner."""


class SweepStudy:
    """The trials of a sweep, in an Optuna storage. Only one driver at a time may use it."""

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        space: Space,
        sampler: Sampler,
        pruner: Pruner,
        directions: Sequence[Direction],
        *,
        seed: int,
        trials: int,
        batch: int,
        rounds: int,
    ) -> None:
        """Use `open_sweep`, which creates or finds the study `name`.

        directions: one for each objective.
        seed: of the sampler.
        trials: how many there will be.
        batch: trials of a batch.
        rounds: of each trial, for the pruner.
        """
        self.study = optuna.load_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler())
        """Optuna's own study object, for pictures."""
        self._storage, self._id = storage, storage.get_study_id_from_name(name)
        self._space, self._sampler, self._pruner, self._directions = space, sampler, pruner, list(directions)
        self._seed, self._trials, self._batch, self._rounds = seed, trials, batch, rounds
        self._reports: dict[int, dict[int, float]] = {}
        self._judges: dict[int, _Judge] = {}

    @property
    def finished(self) -> int:
        """The number of trials that have completed, failed or been pruned."""
        return sum(trial.state.is_finished() for trial in self._stored())

    def ask(self) -> list[Asked]:
        """Return the trials of the next batch, in order; if the last batch has unfinished trials, return those.

        If a lower number of `trials` has cut a batch short, the batch is completed first, as it would have been; the
        results of its other trials are not used. Empty if there are no more trials.
        """
        stored = self._stored()
        first = len(stored) - len(stored) % self._batch
        running = [trial for trial in stored if not trial.state.is_finished()]
        begun = len(stored) % self._batch if len(stored) % self._batch else self._batch * bool(running)
        wanted = min(self._batch - begun, self._trials - len(stored))
        if wanted > 0:
            copy, storage = self._copy(stored[:first])
            # Choose the whole batch again, because a sampler reuses what it computes for the first trial.
            for number in range(first, len(stored) + wanted):
                self._choose(copy, storage, number)
                if number >= len(stored):
                    running.append(copy.get_trials()[number])
                    self.study.add_trial(running[-1])
        self._reports = {trial.number: {} for trial in running}
        self._judges = {}
        return [Asked(trial.number, self._space.chosen(trial.params)) for trial in running]

    def certain(self) -> list[Asked]:
        """Return the trials of the batch after the running one, if they are the same whatever comes of that one.

        Otherwise empty: with a pruner, a sampler that learns from outcomes, or no more trials. Nothing is written.
        """
        stored = self._stored()
        first, wanted = len(stored), min(self._batch, self._trials - len(stored))
        sure = self._pruner.build(self._rounds) is None and self._sampler.certain(first)
        if wanted <= 0 or first % self._batch or not sure:
            return []
        copy, storage = self._copy(stored)
        for number in range(first, first + wanted):
            self._choose(copy, storage, number)
        return [Asked(trial.number, self._space.chosen(trial.params)) for trial in copy.get_trials()[first:]]

    def report(self, number: int, step: int, value: float) -> bool:
        """Record `value` of the running trial `number` at `step`; return whether the trial should be ended.

        This depends only on its own values and on earlier batches, not on trials that run beside it. Without a pruner,
        nothing is recorded.
        """
        pruner = self._pruner.build(self._rounds)
        if pruner is None:
            return False
        self._reports[number][step] = value
        if number not in self._judges:
            first = number - number % self._batch
            stored = self._stored()[: number + 1]
            seen = [each if each.number < first else _without_reports(each) for each in stored]
            self._judges[number] = _Judge(*self._copy(seen), pruner, number)
        return self._judges[number].ends(step, value)

    def tell(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write how the trials of a batch ended; `outcomes`: number → outcome, for all trials that `ask` returned.

        Raises `ValueError` for other trials, and for values that are not finite.
        """
        if set(outcomes) != set(self._reports):
            raise ValueError(f"expected the outcomes of trials {sorted(self._reports)}, found {sorted(outcomes)}")
        for outcome in outcomes.values():
            if isinstance(outcome, Completed) and not all(map(math.isfinite, outcome.values)):
                raise ValueError(f"expected finite values, found {outcome.values}")
        for number in sorted(outcomes):
            self._finish(number, outcomes[number])
        self._reports, self._judges = {}, {}

    def trials(self) -> list[Trial]:
        """Return all finished trials, in order."""
        return [self._told(trial) for trial in self._stored() if trial.state.is_finished()]

    def best(self, most: int = 1) -> list[Trial]:
        """Return the best completed trials, at most `most`, the best first; with several objectives, all that no other
        beats.

        Of equal trials, and of trials with the same options, the first one counts.
        """
        complete: list[FrozenTrial] = []
        for trial in self._stored():
            if trial.state == TrialState.COMPLETE and all(trial.params != other.params for other in complete):
                complete.append(trial)
        if len(self._directions) > 1:
            front = {trial.number for trial in self.study.best_trials} if complete else set()
            return [self._told(trial) for trial in complete if trial.number in front]
        sign = -1 if self._directions[0] == "maximize" else 1
        ranked = sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))
        return [self._told(trial) for trial in ranked[:most]]

    def _stored(self) -> list[FrozenTrial]:
        return sorted(self._storage.get_all_trials(self._id, deepcopy=False), key=lambda trial: trial.number)

    def _copy(self, trials: Iterable[FrozenTrial]) -> tuple[optuna.Study, BaseStorage]:
        """Return a study in memory with these trials, under the same numbers and the same name, and its storage."""
        storage = InMemoryStorage()
        copy = optuna.create_study(storage=storage, study_name=self.study.study_name, directions=self._directions)
        copy.add_trials(trials)
        return copy, storage

    def _choose(self, copy: optuna.Study, storage: BaseStorage, number: int) -> None:
        """Choose the parameters of the next trial of a copy: by the sampler, or at random if the sampler fails.

        Without this fallback the sampler would fail again after the same trials, and the search could not continue.
        """
        try:
            copy.sampler = self._sampler.build(self._seed, number, self._space)
            self._space.suggest(copy.ask())
        except Exception as error:  # a library may raise anything for unusual values
            told = "trial %d is drawn at random, since the sampler %s fails: %s"
            logger.warning(told, number, self._sampler.name, reason(error))
            copy.sampler = Random().build(self._seed, number, self._space)
            if len(copy.get_trials(deepcopy=False)) == number:
                copy.ask()
            known = storage.get_study_id_from_name(copy.study_name)
            trial = storage.get_trial_id_from_study_id_trial_number(known, number)
            self._space.suggest(optuna.trial.Trial(copy, trial))

    def _finish(self, number: int, outcome: Outcome) -> None:
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        # The state is written last: until then the trial is running, and the driver may die.
        for step, value in self._reports[number].items():
            self._storage.set_trial_intermediate_value(trial, step, value)
        if number in self._judges:
            for key, noted in self._judges[number].notes().items():
                self._storage.set_trial_system_attr(trial, key, noted)
        if isinstance(outcome, Completed):
            self.study.tell(number, outcome.values, TrialState.COMPLETE)
        elif isinstance(outcome, Pruned):
            self.study.tell(number, None, TrialState.PRUNED)
        else:
            self._storage.set_trial_user_attr(trial, _FAILURE, outcome.reason)
            self.study.tell(number, None, TrialState.FAIL)

    def _told(self, trial: FrozenTrial) -> Trial:
        outcome: Outcome = Failed(str(trial.user_attrs.get(_FAILURE, "unknown")))
        if trial.state == TrialState.COMPLETE:
            outcome = Completed(tuple(trial.values))
        elif trial.state == TrialState.PRUNED:
            outcome = Pruned()
        return Trial(trial.number, self._space.chosen(trial.params), outcome, dict(trial.intermediate_values))


def open_sweep(url: str, name: str, digest: str, score: str = "", **options: Any) -> SweepStudy:
    """Open the sweep `name` in an Optuna storage; create it if it does not exist.

    url: address of the storage, e.g. `sqlite:///mlruns/optuna.db`.
    digest: digest of the sweep; it must be the same as when the sweep was created.
    score: digest of the function that computes the metric `score`; it must be the same, too.
    options: the other arguments of `SweepStudy`.

    Raises `ExperimentError` if the storage cannot be used, or if the study belongs to a different sweep or to another
    program.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    directions = list(options["directions"])
    with opened(url) as storage:
        names = [study.study_name for study in storage.get_all_studies()]
        if name not in names:
            optuna.create_study(storage=storage, study_name=name, directions=directions)
        known = storage.get_study_id_from_name(name)
        found = storage.get_study_user_attrs(known)
        if _DIGEST not in found:  # a new one, or its driver died before a trial was asked for
            ways = [each.name.lower() for each in storage.get_study_directions(known)]
            if ways != directions or storage.get_n_trials(known):
                raise ExperimentError(
                    f"the study '{name}' in {shown(url)} is another program's: give this sweep another name"
                )
            storage.set_study_user_attr(known, _SCORE, score)
            storage.set_study_user_attr(known, _DIGEST, digest)
        for key, own, what in ((_DIGEST, digest, "file or its experiment"), (_SCORE, score, "objective function")):
            if found.get(key, own) != own:
                raise ExperimentError(
                    f"the sweep '{name}' in {shown(url)} is another one: its {what} has changed since; "
                    "change it back, or give this one another name"
                )
    return SweepStudy(storage, name, **options)


def study_of(plan: SweepPlan, url: str) -> SweepStudy:
    """Open the trials of a sweep in the storage at `url`; see `open_sweep`."""
    sweep = plan.sweep
    return open_sweep(
        url,
        sweep.name,
        plan.digest,
        plan.score,
        space=plan.space,
        sampler=sweep.sampler,
        pruner=sweep.pruner,
        directions=[objective.direction for objective in sweep.objectives],
        seed=sweep.seed,
        trials=plan.trials,
        batch=sweep.parallel,
        rounds=plan.rounds,
    )


class _Judge:
    """A pruner and one running trial, with the finished batches that it is compared with."""

    def __init__(
        self, study: optuna.Study, storage: BaseStorage, pruner: optuna.pruners.BasePruner, number: int
    ) -> None:
        self._study, self._storage, self._pruner = study, storage, pruner
        study_id = storage.get_study_id_from_name(study.study_name)
        self._trial = storage.get_trial_id_from_study_id_trial_number(study_id, number)

    def ends(self, step: int, value: float) -> bool:
        self._storage.set_trial_intermediate_value(self._trial, step, value)
        return bool(self._pruner.prune(self._study, self._storage.get_trial(self._trial)))

    def notes(self) -> dict[str, Any]:
        """Return what the pruner needs about this trial when it judges others."""
        return dict(self._storage.get_trial(self._trial).system_attrs)


def _without_reports(trial: FrozenTrial) -> FrozenTrial:
    """Return the trial as it was when it was started: its parameters, without results."""
    return FrozenTrial(
        number=trial.number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=trial.datetime_start,
        datetime_complete=None,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={},
        system_attrs={},
        intermediate_values={},
        trial_id=trial.number,
    )
