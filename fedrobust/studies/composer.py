"""From the file of a study to the experiments of its runs: an error in one of them names the line that it comes
from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, TypeVar

from fedrobust.draft import Changes, Draft
from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.experiment import Experiment
from fedrobust.studies.options import StudyOptions
from fedrobust.validation import shown

Composed = TypeVar("Composed")


StudyFile = str | PathLike[str] | Mapping[str, Any]
"""The path of a study's file, or its options as a mapping, whose `experiment` may be an `Experiment`."""


def study_draft(file: StudyFile, overrides: Changes, options: type[StudyOptions]) -> tuple[Draft, Draft | None]:
    """Return the options of a study with `overrides`, and those of its experiment if this is an object.

    options: the class of its options; `fedrobust.<kind>` stands for the file in messages about a mapping.

    Raises `ExperimentError` if the file cannot be read.
    """
    if isinstance(file, (str, PathLike)):
        return Draft.read(file, overrides, by_path=options.by_path), None
    if not isinstance(file, Mapping):
        raise ExperimentError(Problem("expected the path of a file, or its options", "file", shown(file)))
    given, base = dict(file), None
    if isinstance(experiment := given.get("experiment"), Experiment):
        base, given["experiment"] = Draft.of(experiment.name, experiment.resolved()), experiment.name
    draft = Draft.of(f"fedrobust.{options.kind}", given).overridden(overrides, options.by_path)
    return draft, None if ("experiment",) in draft.origin else base


class Composer:
    """The experiment that a study begins with, and the changes that turn it into its runs."""

    def __init__(
        self, options: StudyOptions, draft: Draft, base: Draft | None = None, mlflow_experiment: str | None = None
    ) -> None:
        """Read the experiment's file, and apply the changes that all runs share.

        options: the options of the study.
        draft: the file of the study.
        base: the file of its experiment, if it has already been read.
        mlflow_experiment: the name of the MLflow experiment of its runs, by default as the options say.

        Raises `ExperimentError` if the experiment's file cannot be read.
        """
        self._kind, self._draft = options.kind, draft
        self.mlflow_experiment = mlflow_experiment or options.mlflow_experiment
        """The name of the MLflow experiment of all runs."""
        try:
            self.file = base or Draft.read(draft.path.parent / options.experiment, beside=draft.beside)
            """The experiment that all runs begin with."""
        except ExperimentError as error:
            raise error.each(lambda problem: problem.at(self.entry("experiment"))) from None
        self.base = self.changed(self.file, options.changes, "changes")
        """The options that all runs have in common."""

    def entry(self, *keys: str | int) -> Origin:
        """Return the origin of the value at `keys` of the study's file, with its dotted path."""
        return self._draft.entry(*keys)

    def changed(self, draft: Draft, changes: Mapping[str, Any], *keys: str | int) -> Draft:
        """Return `draft` with `changes`, dotted path → value, applied; they come from `keys` of the study's file."""
        return draft.changed(changes, self.entry(*keys))

    def run(self, draft: Draft, label: str | None, seed: int | None) -> Experiment:
        """Return the experiment of a run.

        draft: the experiment, with the changes of this run.
        label: name of the run in MLflow; None for a sample, which is not run.
        seed: the seed of the run; None keeps that of the experiment.

        Raises `ExperimentError` if its options do not fit together.
        """
        own: dict[str, Any] = {} if seed is None else {"seed": seed}
        if label is not None:
            own |= {"tracking.run_name": label, "tracking.model": False}
            own["tracking.experiment"] = self.mlflow_experiment
        return draft.changed(own, f"the {self._kind}").checked(Experiment)


class Mistakes:
    """Collects the errors of many experiments: each error once, whatever value was found, with one case that has it."""

    def __init__(self, named: Collection[str] = ()) -> None:
        """`named`: fields of the study's file whose entries have names; an error in such an entry needs no cases."""
        self._named, self._attempts = named, 0
        self._found: dict[Problem, tuple[Problem, list[str]]] = {}

    def attempt(self, make: Callable[[], Composed], case: str = "") -> Composed | None:
        """Return the result of `make`; None if it raises an `ExperimentError`, whose problems are noted with `case`. An
        empty `case` means that messages do not name it."""
        self._attempts += 1
        try:
            return make()
        except ExperimentError as error:
            for problem in error.problems:
                self._found.setdefault(replace(problem, found=None), (problem, []))[1].append(case)
            return None

    def refuse(self) -> None:
        """Raise `ExperimentError` if any problem was noted."""
        if self._found:
            raise ExperimentError(*(self._noted(*each) for each in self._found.values()))

    def _noted(self, problem: Problem, cases: list[str]) -> Problem:
        outermost = problem.origins[0].path if problem.origins else ""
        named = outermost.partition(".")[0] in self._named
        if named or "" in cases or problem.note or len(cases) == self._attempts:
            return problem
        return problem.noting(f"{cases[0]} and {len(cases) - 1} more" if len(cases) > 1 else cases[0])
