"""From the file of a study to the experiments of its runs: an error in one names the line that it comes from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fedrobust.errors import ExperimentError, Origin, Problem
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import Draft
from fedrobust.studies.options import StudyOptions

Composed = TypeVar("Composed")


class Composer:
    """The experiment that a study begins with, and the changes that make its runs of it."""

    def __init__(self, options: StudyOptions, draft: Draft, base: Draft | None = None) -> None:
        """`draft` is the file of the study, `base` that of its experiment, where it is not to be read.

        Raises `ExperimentError` where the experiment's file cannot be read.
        """
        self._kind, self._draft = options.kind, draft
        try:
            self.file = base or Draft.read(draft.path.parent / options.experiment, beside=draft.beside)
            """The experiment that all runs begin with."""
        except ExperimentError as error:
            raise error.each(lambda problem: problem.at(self.entry("experiment"))) from None
        self.base = self.changed(self.file, options.changes, "changes")
        """What all runs have in common."""

    def entry(self, *keys: str | int) -> Origin:
        """Where a value of the study's file stands, with its dotted path."""
        return self._draft.entry(*keys)

    def changed(self, draft: Draft, changes: Mapping[str, Any], *keys: str | int) -> Draft:
        """With the values of `changes`, by dotted path, that stand at `keys` of the study's file."""
        return draft.changed(changes, self.entry(*keys))

    def run(self, draft: Draft, label: str | None, seed: int | None) -> Experiment:
        """The experiment of a run that MLflow knows as `label`; without one, a sample. Without a seed, with its own.

        Raises `ExperimentError` where its options do not go together.
        """
        own: dict[str, Any] = {} if seed is None else {"seed": seed}
        if label is not None:
            own |= {"tracking.run_name": label, "tracking.model": False}
        return draft.changed(own, f"the {self._kind}").checked(Experiment)


class Mistakes:
    """What is wrong with many experiments: each mistake once, whatever value was found, and a case that has it."""

    def __init__(self, named: Collection[str] = ()) -> None:
        """`named`: fields of the study's file; a mistake in an entry of theirs needs no cases."""
        self._named, self._attempts = named, 0
        self._found: dict[Problem, tuple[Problem, list[str]]] = {}

    def attempt(self, make: Callable[[], Composed], case: str = "") -> Composed | None:
        """What is made; None where an `ExperimentError` refuses it, whose problems are noted. Without a case, nobody
        has to be told which one it was."""
        self._attempts += 1
        try:
            return make()
        except ExperimentError as error:
            for problem in error.problems:
                self._found.setdefault(replace(problem, found=None), (problem, []))[1].append(case)
            return None

    def refuse(self) -> None:
        """Raise `ExperimentError` if anything is wrong."""
        if self._found:
            raise ExperimentError(*(self._noted(*each) for each in self._found.values()))

    def _noted(self, problem: Problem, cases: list[str]) -> Problem:
        outermost = problem.origins[0].path if problem.origins else ""
        named = outermost.partition(".")[0] in self._named
        if named or "" in cases or problem.note or len(cases) == self._attempts:
            return problem
        return problem.noting(f"{cases[0]} and {len(cases) - 1} more" if len(cases) > 1 else cases[0])
