"""Many experiments at once, on the teams of one pool; what each gave is on disk before anything else."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shlex
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from fedrobust.audit.signing import open_key
from fedrobust.data.hospitals import Hospitals
from fedrobust.errors import DataError, ExperimentError, FederationError, FedRobustError, UnknownRunError
from fedrobust.experiment import Experiment
from fedrobust.failures import ends_all, reason
from fedrobust.federation.actors import ActorDied
from fedrobust.federation.pool import Pool, teams_that_fit
from fedrobust.federation.rounds import Hook
from fedrobust.federation.session import ray_session
from fedrobust.naming import Part
from fedrobust.preparation import hospitals_of
from fedrobust.runner import KEY, Result, run
from fedrobust.texts import visible
from fedrobust.tracking import Tracker, end_children

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a run is begun whose team loses an actor that it cannot do without, e.g. with a node of the cluster."""
MOMENT = 1.0
"""Seconds of waiting at a time: a Ctrl-C that comes just before a wait is only seen after it."""
PARENT = "parent.txt"
"""File with the id of the MLflow run that the runs of a folder are nested below."""


class Outcome(Protocol):
    """A dataclass: what an experiment gave, under the digest of the experiment."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def digest(self) -> str:
        """That of the experiment."""

    @property
    def failed(self) -> str:
        """The error that ended it, if there is one."""


Kept = TypeVar("Kept", bound=Outcome)
Done = TypeVar("Done")


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """The block writes to a folder. Raises `ExperimentError` where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise ExperimentError(f"{visible(folder)}: cannot be written to: {error.strerror or error}") from None


class Store(Generic[Kept]):
    """The file of what is finished: a line for each, fsynced; a line that a crash cut short is dropped."""

    def __init__(self, path: Path, kind: type[Kept]) -> None:
        """Open the file, and read it.

        Raises `ExperimentError` if it cannot be written to, another process that is alive writes to it, or a line of
        it is no outcome.
        """
        with writable(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._path, self._file = path, path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ExperimentError(f"{path.parent}: another process is at work in this folder") from None
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition(b"\n")
        self._file.truncate(len(whole) + len(newline))
        self.outcomes: dict[str, Kept] = {}
        """The last outcome of each experiment, by digest."""
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                outcome = kind(**json.loads(line))
            except (ValueError, TypeError):
                self._file.close()
                told = "cannot be read; without it, its run is made again: delete the line"
                raise ExperimentError(f"{path}: line {number} {told}") from None
            self.outcomes[outcome.digest] = outcome

    def add(self, outcome: Kept) -> None:
        """Keep an outcome for good. Raises `FedRobustError` if the disk refuses; the file is then as it was before."""
        line, end = (json.dumps(asdict(outcome)) + "\n").encode(), self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)
            raise FedRobustError(f"{self._path}: {outcome.digest[:8]} could not be written: {error}") from error
        self.outcomes[outcome.digest] = outcome

    def finished(self, digest: str) -> Kept | None:
        """The outcome of an experiment that has not failed."""
        outcome = self.outcomes.get(digest)
        return None if outcome is None or outcome.failed else outcome

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Stopped(KeyboardInterrupt):
    """Raised in a run that is to end at its next round."""


@contextmanager
def leased_pool(experiment: Experiment, say: Callable[[str], None], teams: int | None = None) -> Iterator[Pool]:
    """Ray, and so many teams of one client actor each as the experiment's `workers` say; by default all that fit."""
    say("starting actors")
    workers = experiment.workers.model_copy(update={"count": 1})
    with ray_session(), Pool(workers, 1, teams or teams_that_fit(workers)) as pool:
        yield pool


class Teams:
    """Runs experiments on a pool of teams of one client actor each. Ray starts with the first task."""

    def __init__(self, say: Callable[[str], None], teams: int | None = None, pool: Pool | None = None) -> None:
        """`teams`: how many to start, by default as many as there is room for; or a `pool` that is there already."""
        self._say, self._teams, self._pool = say, teams, pool
        self._shelf = _Shelf()
        self._stopping = threading.Event()
        self._stack = ExitStack()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def each(
        self, first: Experiment, tasks: Sequence[Callable[[], Done]], then: Callable[[Done], None] = lambda done: None
    ) -> None:
        """Do all tasks, as many at once as there are teams, and hand each result to `then` when it is there.

        `then` is called by the thread that did the task, once at a time. What a task or `then` raises, or a Ctrl-C,
        ends the runs under way within a round, and is raised again; a run that has come to its end by then is handed
        on all the same, and what that raises is not told. `first` is one of the experiments: its `workers` are those
        of all.
        """
        threads, one = self._threads or self._started(first), threading.Lock()

        def do(task: Callable[[], Done]) -> None:
            if self._stopping.is_set():
                raise Stopped
            try:
                done = task()
                with one:
                    then(done)
            except BaseException:
                self._stopping.set()  # at once, so that this thread begins no other task
                raise

        under_way: list[Future[None]] = []
        try:
            under_way += (threads.submit(do, task) for task in tasks)
            left = set(under_way)
            while left:
                done, left = wait(left, MOMENT, FIRST_COMPLETED)
                for task in under_way:
                    if task in done and not isinstance(task.exception(), Stopped):  # what it was stopped for will come
                        task.result()
            if self._stopping.is_set():
                raise Stopped
        except BaseException:
            with suppress(KeyboardInterrupt):  # a second one: whoever closes the teams waits for them
                self._stopping.set()
                for task in under_way:
                    task.cancel()
                while wait(under_way, MOMENT).not_done:
                    pass
            raise

    def run(self, experiment: Experiment, part: Part, hooks: Sequence[Hook] = ()) -> Result:
        """One run, to be called in a task. Raises as `fedrobust.run` does."""
        hospitals = self.hospitals(experiment)
        for _ in range(ATTEMPTS - 1):
            try:
                return run(experiment, hooks=[self._go_on, *hooks], pool=self._pool, hospitals=hospitals, part=part)
            except ActorDied as error:
                self._say(f"begun again: {error}")
        return run(experiment, hooks=[self._go_on, *hooks], pool=self._pool, hospitals=hospitals, part=part)

    def check(self, experiments: Sequence[Experiment]) -> None:
        """See to what every run needs, before the first: data that can be read, and the key of the audit log.

        experiments: all kinds of data that the runs can have are among theirs. Where there are several kinds, it is
        enough that the source of one can be read: what else is wrong with its data may be right for other runs.

        Raises `DataError` where no run could have its data, and `AuditError` where the key cannot be used.
        """
        self._say("reading the data")
        kinds: dict[str, Experiment] = {}
        for each in experiments:
            kinds.setdefault(data_key(each), each)
        _any([each.data.source.check for each in kinds.values()])
        sources = [partial(each.data.source.load, each.seed) for each in kinds.values() if len(kinds) > 1]
        _any([*(partial(self.hospitals, each) for each in experiments[:1]), *sources])  # kept for the first run
        open_key(KEY)

    def hospitals(self, experiment: Experiment) -> Hospitals:
        """The data of an experiment; those of the last few are kept."""
        return self._shelf.get(experiment)

    def _started(self, experiment: Experiment) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = self._stack.enter_context(leased_pool(experiment, self._say, self._teams))
        self._threads = self._stack.enter_context(ThreadPoolExecutor(self._pool.teams, thread_name_prefix="run"))
        self._say(f"running {self._pool.teams} at a time")
        return self._threads

    def _go_on(self, record: dict[str, Any]) -> None:
        """Hook of every run: ends it where everything is being stopped."""
        if self._stopping.is_set():
            raise Stopped


def data_key(experiment: Experiment) -> str:
    """What decides who holds which patches: experiments with the same key have the same data."""
    resolved = experiment.resolved()
    return json.dumps([resolved["data"], resolved["federation"]["clients"], experiment.seed], sort_keys=True)


def _any(attempts: Iterable[Callable[[], object]]) -> None:
    """Make the attempts until one works. Raises what the first of them raised, as a `FedRobustError`, if none does."""
    wrong: list[Exception] = []
    for attempt in attempts:
        try:
            attempt()
            return
        except (Exception, SystemExit) as error:  # whatever a user's own class raises
            wrong.append(error if isinstance(error, FedRobustError) else DataError(f"data: {reason(error)}"))
    if wrong:
        raise wrong[0]


class _Shelf:
    """The data of the last few (data, hospitals, seed), each read and divided once."""

    def __init__(self, size: int = 3) -> None:
        self._size, self._lock = size, threading.Lock()
        self._held: OrderedDict[str, Future[Hospitals]] = OrderedDict()

    def get(self, experiment: Experiment) -> Hospitals:
        """The hospitals of an experiment; a thread that asks for what another one is reading waits for it."""
        key = data_key(experiment)
        with self._lock:
            held, first = self._held.get(key), key not in self._held
            held = self._held.setdefault(key, Future())
            self._held.move_to_end(key)
            while len(self._held) > self._size:
                self._held.popitem(last=False)
        if first:
            try:
                held.set_result(hospitals_of(experiment))
            except BaseException as error:
                held.set_exception(error)
                if not isinstance(error, ExperimentError):  # which would come again; a lack of memory may not
                    with self._lock:
                        self._held.pop(key, None)
        return held.result()


def failure(error: BaseException, part: Part, name: str, tracker: Tracker) -> str:
    """Why a run that is a part has failed, told to MLflow, too; `name` is what it is called there.

    Raises the error again where it is not the run's own: see `ends_all`.
    """
    if ends_all(error):
        raise error
    told = reason(error)
    tracker.failed(told, part.opened, name, part.tags)
    return told


def refuse_fruitless(reasons: Sequence[str], made: int, what: str, table: Path) -> None:
    """Raise `FederationError` where all that was made has failed; `reasons` are those of what has."""
    if reasons and len(reasons) == made:
        most, times = Counter(reasons).most_common(1)[0]
        often = "" if times == made else f"{times} of them, "
        raise FederationError(f"all {made} {what} failed: {often}{most}; see {table}")


@contextmanager
def written_in_any_case(write: Callable[[bool], None], go_on: str = "") -> Iterator[None]:
    """Call `write` when the block ends, with True, or when it is stopped, with False.

    What stopped the block is raised again, whatever becomes of the writing; what the disk raised as a `FedRobustError`.
    go_on: how to go on after an error that is none of the experiments; it is told behind it.

    Raises `FedRobustError` where the block came to its end and the disk refuses what is written.
    """
    try:
        yield
    except BaseException as error:
        try:
            write(False)
        except BaseException as second:  # it must not hide the first
            logger.warning("what there is could not be written: %s", second)
        ended = FedRobustError(reason(error)) if isinstance(error, OSError) else error
        if go_on and isinstance(ended, FedRobustError) and not isinstance(ended, ExperimentError):
            raise type(ended)(f"{ended}; {go_on}") from error
        if ended is not error:
            raise ended from error
        raise
    try:
        write(True)
    except OSError as error:
        told = f"all runs are made, and what they gave could not be written: {error}"
        raise FedRobustError(f"{told}; {go_on}" if go_on else told) from error


@contextmanager
def drawn(picture: Path) -> Iterator[None]:
    """The block writes a picture; where it cannot be drawn, that is told, and costs nothing else.

    Raises what the disk raises.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever a library of pictures makes of names and figures that nobody has foreseen
        picture.unlink(missing_ok=True)  # an earlier one would be taken for it
        logger.warning("%s could not be drawn: %s", picture, error)


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

    `journal` are the lines that it has been told, or should have been, in earlier sittings; see `Tracker`. `parent` is
    the id of a run that it is nested below itself.
    """
    place = folder / PARENT
    if place.exists():
        run_id = place.read_text(encoding="utf-8").strip()
        try:
            end_children(run_id)
            tracker = Tracker.resume(run_id, journal)
        except UnknownRunError as error:
            raise UnknownRunError(f"{error}; to go on with a new one: rm {shlex.quote(str(place))}") from error
    else:
        tracker = Tracker.open(experiment, params, tags, name, parent)
        place.write_text(f"{tracker.run_id}\n", encoding="utf-8")
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
