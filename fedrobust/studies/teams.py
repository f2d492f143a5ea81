"""Many experiments at once, on the teams of one pool, whose data are read once."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Self, TypeVar

from fedrobust.audit.signing import open_key
from fedrobust.data.hospitals import Hospitals
from fedrobust.errors import DataError, ExperimentError, FedRobustError
from fedrobust.experiment import Experiment
from fedrobust.failures import reason
from fedrobust.federation.actors import ActorDied
from fedrobust.federation.pool import Pool, teams_that_fit
from fedrobust.federation.rounds import Hook
from fedrobust.federation.session import ray_session
from fedrobust.naming import Part
from fedrobust.preparation import hospitals_of
from fedrobust.runner import KEY, Result, run

Done = TypeVar("Done")

ATTEMPTS = 3
"""Attempts per run when an actor dies that it cannot do without, e.g. with a node of the cluster."""
MOMENT = 1.0
"""Seconds of waiting at a time: a Ctrl-C that comes just before a wait is only seen after it."""


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

    def pool(self, experiment: Experiment) -> Pool:
        """The pool, started if need be as the experiment's `workers` say, for others that lease from it, too."""
        if self._pool is None:
            self._pool = self._stack.enter_context(leased_pool(experiment, self._say, self._teams))
        return self._pool

    def _started(self, experiment: Experiment) -> ThreadPoolExecutor:
        teams = self.pool(experiment).teams
        self._threads = self._stack.enter_context(ThreadPoolExecutor(teams, thread_name_prefix="run"))
        self._say(f"running {teams} at a time")
        return self._threads

    def _go_on(self, record: object) -> None:
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
