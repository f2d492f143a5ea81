"""A study from start to end: its folder, its teams, its run in MLflow, and the runs that it consists of."""

from __future__ import annotations

import json
import logging
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedrobust.cautions import shared_cautions
from fedrobust.errors import ExperimentError, UnknownRunError, UnlearntError
from fedrobust.experiment import Experiment
from fedrobust.failures import ends_all, reason
from fedrobust.federation.pool import Pool
from fedrobust.federation.rounds import Hook
from fedrobust.job import tell
from fedrobust.naming import Part
from fedrobust.preparation import data_key
from fedrobust.result import Result
from fedrobust.studies.editions import open_edition
from fedrobust.studies.finished import FinishedRun, FinishedRuns
from fedrobust.studies.options import StudyOptions
from fedrobust.studies.planned import PlannedRun
from fedrobust.studies.teams import Stopped, Teams
from fedrobust.texts import file_name, visible
from fedrobust.tracking import Tracker, end_children, experiment_of, flatten

logger = logging.getLogger(__name__)

PARENT = "parent.txt"
"""The file with the id of the parent run in MLflow of all runs in a folder."""

Item = TypeVar("Item", contravariant=True)


class Watch(Protocol[Item]):
    """Receives the progress of a study; one call at a time, but not always from the same thread."""

    def plan(self, items: int, finished: int) -> None:
        """There are `items` items, of which `finished` were finished before; called again with better numbers."""

    def done(self, item: Item) -> None:
        """An item is finished: the cell of a matrix, a trial of a sweep, a turn of a duel."""

    def say(self, what: str) -> None:
        """`what` is the current step, a short text."""


class Unwatched:
    """A `Watch` that does nothing."""

    def plan(self, items: int, finished: int) -> None:
        """Nothing."""

    def done(self, item: object) -> None:
        """Nothing."""

    def say(self, what: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Measured:
    """The results that a study keeps of a run, see `FinishedRun`, and the figures that MLflow shows."""

    shown: Mapping[str, float]
    """Name in MLflow → figure that a run alone does not have."""
    figures: Mapping[str, float] = field(default_factory=dict)
    rounds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Planned = TypeVar("Planned", bound=PlannedRun)
MeasureRun = Callable[[Planned, Result], Measured]


class Study:
    """Makes the runs of a study, each experiment once; `open_study` opens one."""

    def __init__(self, folder: Path, finished: FinishedRuns, teams: Teams, tracker: Tracker) -> None:
        self.folder, self.finished, self.teams, self.tracker = folder, finished, teams, tracker
        self._writing = threading.Lock()

    def missing(self, planned: Sequence[Planned]) -> list[Planned]:
        """Return the runs that are still to be made: not finished, or failed; each experiment once."""
        first: dict[str, Planned] = {}
        for each in planned:
            first.setdefault(each.digest, each)
        return [each for digest, each in first.items() if self.finished.get(digest) is None]

    def make_all(
        self,
        planned: Sequence[Planned],
        measure: MeasureRun[Planned],
        then: Callable[[Planned, FinishedRun], None] = lambda planned, run: None,
    ) -> list[FinishedRun]:
        """Make the missing ones of the `planned` runs, as many at once as there are teams and those with the same data
        one after the other; return all of them, in order.

        measure: returns what is kept of a run, from the plan and the result.
        then: called with each run that was made.

        A run that cannot be made, for any reason, is kept as failed. An error that would end all other runs, too, e.g.
        a Ctrl-C, ends the others within a round, and is raised again; see `fedrobust.failures.ends_all`.
        """

        def keep(made: tuple[Planned, FinishedRun]) -> None:
            self.keep(made[1])
            then(*made)

        tasks = list[Callable[[], tuple[Planned, FinishedRun]]]()
        for each in (missing := _by_data(self.missing(planned))):
            if each.experiment is None:
                self.tracker.failed(each.refused, [], each.label, each.tags)
                keep((each, FinishedRun(each.digest, each.label, failed=each.refused)))
            else:
                tasks.append(partial(self._made, each, measure))
        if tasks:
            self.teams.each(next(each.experiment for each in missing if each.experiment is not None), tasks, keep)
        return [self.finished.by_digest[each.digest] for each in planned]

    def make(self, planned: Planned, measure: MeasureRun[Planned], hooks: Sequence[Hook] = ()) -> FinishedRun:
        """Make one run; called in a task of `teams.each`. An error becomes the result of the run; see `make_all`.

        planned: the run.
        measure: returns what is kept of it, from the plan and the result.
        hooks: called with every committed record of its journal.
        """
        begun = [time.perf_counter()]  # and again when it has a team: until then it may have waited
        part = Part(self.tracker.run_id, planned.tags, go_on=lambda: begun.append(time.perf_counter()))
        digest = ""
        try:
            assert planned.experiment is not None
            digest = planned.digest
            result = self.teams.run(planned.experiment, part, hooks)
            measured = measure(planned, result)
        except Stopped as stop:
            self.tracker.stopped(str(stop) or "its study was stopped", part.opened)
            raise
        except (Exception, SystemExit) as error:
            if ends_all(error):
                raise
            why = reason(error)
            self.tracker.failed(why, part.opened, planned.label, part.tags)
            return FinishedRun(digest, planned.label, failed=why)
        self._show(planned, result, measured, part.opened)
        seconds, took = round(result.recorded.seconds, 3), round(time.perf_counter() - begun[-1], 3)
        return FinishedRun(digest, planned.label, result.run_id, measured.figures, measured.rounds, seconds, took)

    def _show(self, planned: PlannedRun, result: Result, measured: Measured, opened: Sequence[str]) -> None:
        """Send MLflow the figures of a run, under the names that every run has, and those that only the study knows."""
        if planned.experiment is not None and not planned.experiment.tracking.curves:  # else it has sent them itself
            self.tracker.last(result.recorded.records, result.run_id)
        self.tracker.figures(measured.shown, result.run_id)
        if given_up := [run_id for run_id in opened if run_id != result.run_id]:
            self.tracker.stopped(f"an actor that it needed died; it was begun again as {result.run_id}", given_up)

    def keep(self, run: FinishedRun) -> None:
        """Write a run to disk, unless it is already there. Any thread may call this."""
        with self._writing:
            if run.digest and self.finished.get(run.digest) is None:
                self.finished.add(run)

    def _made(self, planned: Planned, measure: MeasureRun[Planned]) -> tuple[Planned, FinishedRun]:
        return planned, self.make(planned, measure)


@contextmanager
def open_study(
    options: StudyOptions,
    samples: Sequence[Experiment],
    planned: Sequence[PlannedRun] = (),
    *,
    mlflow_experiment: str | None = None,
    out: Path | None,
    watch: Watch[Any],
    teams: int | None = None,
    pool: Pool | None = None,
    journal: Callable[[], Sequence[Any]] = list,
    parent: str | None = None,
) -> Iterator[Study]:
    """Prepare what a study needs before its first run: data, key, folder, MLflow. Ray starts with the first run.

    options: the options of the study.
    samples: experiments that cover all kinds of data of the runs.
    planned: runs that it will make, as far as they are known: if the folder has runs of the same names with other
        options, they are put aside, see `editions`, or the study is refused.
    mlflow_experiment: the name of the MLflow experiment, by default as the options say.
    out: the folder; by default it has the name of the study.
    watch: receives the progress.
    teams: number of simultaneous runs, each on one client actor; by default the number of cores of the cluster.
    pool: leases existing teams; `teams` is then ignored.
    journal: called once this process has locked the folder; returns the lines for the study's own run in MLflow from
        earlier executions, which MLflow may already have.
    parent: id of the MLflow run that contains the study's own run.

    Raises `DataError` if data are missing, `AuditError`, `TrackingError`, and `ExperimentError` if the folder cannot be
    used, or has another study's runs.
    """
    kind, folder = options.kind, out or options.folders / file_name(options.name)
    for caution in shared_cautions(samples):
        logger.warning("%s", caution)
    with ExitStack() as stack:
        leased = stack.enter_context(Teams(watch.say, teams, pool))
        leased.check(samples)
        settings, aside = options.resolved(), options.put_aside and out is None
        edition = open_edition(folder, options.finished, Path(f"{kind}.json"), settings, planned, aside)
        finished, lines = stack.enter_context(closing(edition)), journal()
        try:
            (folder / f"{kind}.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ExperimentError(f"{visible(folder)}: cannot be written to: {error.strerror or error}") from None
        watch.say("opening MLflow")
        experiment, tags = mlflow_experiment or options.mlflow_experiment, {kind: options.name}
        name = f"{kind} {options.name}"
        opened = parent_run(folder, experiment, flatten(settings), tags, name, lines, parent)
        tracker = stack.enter_context(opened)
        if parent is None:
            tell(folder=str(folder.absolute()), parent=tracker.run_id)
        yield Study(folder, finished, leased, tracker)


@contextmanager
def parent_run(
    folder: Path,
    experiment: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    name: str,
    journal: Sequence[Any],
    parent: str | None = None,
) -> Iterator[Tracker]:
    """Open the MLflow run that contains the runs of a study; if an earlier execution has made one in the same MLflow
    experiment, continue it.

    folder: the study's folder; `PARENT` in it keeps the run's id. experiment, params, tags, name: as in `Tracker.open`.
    journal: the lines of earlier executions, which MLflow may already have; see `Tracker`.
    parent: id of the MLflow run that contains this one.
    """
    file = folder / PARENT
    run_id = file.read_text(encoding="utf-8", errors="replace").strip() if file.exists() else ""
    try:
        if run_id and not re.fullmatch(r"[0-9a-f]{32}", run_id):
            raise UnknownRunError(f"{visible(file)}: is damaged, and names no run of MLflow")
        if run_id and (before := experiment_of(run_id)) != experiment:  # a run cannot move, and contains only its own
            logger.warning("in MLflow it goes on as a new run in '%s'; it was in '%s'", experiment, visible(before))
            run_id = ""
        elif run_id:
            end_children(run_id)
            tracker = Tracker.resume(run_id, journal)
    except UnknownRunError as error:
        raise error.advising(f"to go on with a new one: rm {shlex.quote(str(file))}") from error
    if not run_id:
        tracker = Tracker.open(experiment, params, tags, name, parent)
        file.write_text(f"{tracker.run_id}\n", encoding="utf-8")
        for line in journal:
            tracker.log(line)
    status, why = "FINISHED", ""
    try:
        yield tracker
    except (KeyboardInterrupt, UnlearntError) as stop:
        status, why = "KILLED", str(stop) or "a Ctrl-C or a signal; the same command goes on with it"
        raise
    except BaseException as error:
        status, why = "FAILED", reason(error)
        raise
    finally:
        if not tracker.close(status, reason=why):
            logger.warning("MLflow does not have all of it yet: it gets the rest when the same command is run again")


def _by_data(runs: Sequence[Planned]) -> list[Planned]:
    """Runs whose data are the same stand together, so that each data set is read or generated once; else in order."""
    first: dict[str, int] = {}
    keys = ["" if each.experiment is None else data_key(each.experiment) for each in runs]
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    return [each for _, each in sorted(zip(keys, runs, strict=True), key=lambda pair: first[pair[0]])]
