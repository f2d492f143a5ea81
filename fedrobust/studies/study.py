"""A study from start to end: its folder, its teams, its run in MLflow, and the runs that it is made of."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from fedrobust.errors import ExperimentError, UnknownRunError
from fedrobust.experiment import Experiment
from fedrobust.failures import ends_all, reason
from fedrobust.federation.pool import Pool
from fedrobust.federation.rounds import Hook
from fedrobust.naming import Part
from fedrobust.runner import Result
from fedrobust.studies.finished import FinishedRun, FinishedRuns
from fedrobust.studies.options import StudyOptions
from fedrobust.studies.planned import PlannedRun
from fedrobust.studies.teams import Teams
from fedrobust.texts import file_name, visible
from fedrobust.tracking import Tracker, end_children, flatten

logger = logging.getLogger(__name__)

PARENT = "parent.txt"
"""File with the id of the MLflow run that the runs of a folder are nested below."""

Item = TypeVar("Item", contravariant=True)


class Watch(Protocol[Item]):
    """Hears how far a study is; one call at a time, not always from the same thread."""

    def plan(self, items: int, finished: int) -> None:
        """There are so many items, so many of them finished before; called again when the number is known better."""

    def done(self, item: Item) -> None:
        """An item is finished: the cell of a matrix, a trial of a sweep, a turn of a duel."""

    def say(self, what: str) -> None:
        """What is being done now."""


class Unwatched:
    """The `Watch` of a study that nobody watches."""

    def plan(self, items: int, finished: int) -> None:
        """Nothing."""

    def done(self, item: object) -> None:
        """Nothing."""

    def say(self, what: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Measured:
    """What a study keeps of a run, see `FinishedRun`, and what MLflow shows of it."""

    shown: Mapping[str, float]
    figures: Mapping[str, float] = field(default_factory=dict)
    rounds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Planned = TypeVar("Planned", bound=PlannedRun)
MeasureRun = Callable[[Planned, Result], Measured]


class Study:
    """Makes the runs of a study, each experiment once; `open_study` opens one."""

    def __init__(self, folder: Path, finished: FinishedRuns, teams: Teams, tracker: Tracker) -> None:
        self.folder, self.finished, self.teams, self.tracker = folder, finished, teams, tracker

    def missing(self, planned: Sequence[Planned]) -> list[Planned]:
        """The runs to make: those that are not finished or failed, each experiment once."""
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
        """Make what is missing of the runs, as many at once as there are teams; all of them, in order.

        then: is called with each run that was made.

        A run that cannot be made, whatever it dies of, has failed, and is kept as that. What would end all others, too,
        a Ctrl-C say, ends those under way within a round, and is raised again; see `fedrobust.failures.ends_all`.
        """

        def keep(made: tuple[Planned, FinishedRun]) -> None:
            self.keep(made[1])
            then(*made)

        tasks = list[Callable[[], tuple[Planned, FinishedRun]]]()
        for each in (missing := self.missing(planned)):
            if each.experiment is None:
                self.tracker.failed(each.refused, [], each.label, each.tags)
                keep((each, FinishedRun(each.digest, each.label, failed=each.refused)))
            else:
                tasks.append(partial(self._made, each, measure))
        if tasks:
            self.teams.each(next(each.experiment for each in missing if each.experiment is not None), tasks, keep)
        return [self.finished.by_digest[each.digest] for each in planned]

    def make(self, planned: Planned, measure: MeasureRun[Planned], hooks: Sequence[Hook] = ()) -> FinishedRun:
        """Make one run, to be called in a task of `teams.each`. What it dies of is its result; see `make_all`."""
        start, part, digest = time.perf_counter(), Part(self.tracker.run_id, planned.tags), ""
        try:
            assert planned.experiment is not None
            digest = planned.digest
            result = self.teams.run(planned.experiment, part, hooks)
            measured = measure(planned, result)
        except (Exception, SystemExit) as error:
            if ends_all(error):
                raise
            why = reason(error)
            self.tracker.failed(why, part.opened, planned.label, part.tags)
            return FinishedRun(digest, planned.label, failed=why)
        self.tracker.figures(dict(measured.shown), result.run_id)
        seconds = round(time.perf_counter() - start, 3)
        return FinishedRun(digest, planned.label, result.run_id, measured.figures, measured.rounds, seconds)

    def keep(self, run: FinishedRun) -> None:
        """Have a run on disk, unless it is there."""
        if run.digest and self.finished.get(run.digest) is None:
            self.finished.add(run)

    def _made(self, planned: Planned, measure: MeasureRun[Planned]) -> tuple[Planned, FinishedRun]:
        return planned, self.make(planned, measure)


@contextmanager
def open_study(
    options: StudyOptions,
    samples: Sequence[Experiment],
    *,
    out: Path | None,
    watch: Watch[Any],
    teams: int | None = None,
    pool: Pool | None = None,
    journal: Callable[[], Sequence[Any]] = list,
    parent: str | None = None,
) -> Iterator[Study]:
    """See to all that a study needs, before its first run: data, key, folder, MLflow. Ray starts with the first run.

    samples: experiments, all kinds of data that the runs can have among theirs; the first says how MLflow is reached.
    out: the folder, instead of one named after the study.
    teams: runs at a time, each on one client actor; by default as many as the cluster has cores.
    pool: leases teams that are there already; `teams` then says nothing.
    journal: makes, when the folder is this process's alone, the lines that the study's own run in MLflow has heard, or
        should have heard, in earlier sittings.
    parent: id of the MLflow run that the study's own is nested below.

    Raises `DataError` where there are no data, `AuditError`, `TrackingError`, and `ExperimentError` where the folder
    cannot be used.
    """
    kind, folder = options.kind, out or options.folders / file_name(options.name)
    with ExitStack() as stack:
        leased = stack.enter_context(Teams(watch.say, teams, pool))
        leased.check(samples)
        finished = stack.enter_context(closing(FinishedRuns(folder / options.finished)))
        lines, settings = journal(), options.resolved()
        try:
            (folder / f"{kind}.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise ExperimentError(f"{visible(folder)}: cannot be written to: {error.strerror or error}") from None
        watch.say("opening MLflow")
        experiment, tags, name = samples[0].tracking.experiment, {kind: options.name}, f"{kind} {options.name}"
        opened = parent_run(folder, experiment, flatten(settings), tags, name, lines, parent)
        yield Study(folder, finished, leased, stack.enter_context(opened))


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
    """The run in MLflow that others are nested below: the one of an earlier sitting, if there was one.

    `journal` are the lines that it has heard, or should have heard, in earlier sittings; see `Tracker`. `parent` is the
    id of a run that it is nested below itself.
    """
    file = folder / PARENT
    if file.exists():
        run_id = file.read_text(encoding="utf-8").strip()
        try:
            end_children(run_id)
            tracker = Tracker.resume(run_id, journal)
        except UnknownRunError as error:
            raise error.advising(f"to go on with a new one: rm {shlex.quote(str(file))}") from error
    else:
        tracker = Tracker.open(experiment, params, tags, name, parent)
        file.write_text(f"{tracker.run_id}\n", encoding="utf-8")
        for line in journal:
            tracker.log(line)
    status = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if not tracker.close(status):
            logger.warning("MLflow does not have all of it yet: it gets the rest when the same command is run again")
