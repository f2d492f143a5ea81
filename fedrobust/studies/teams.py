"""Many experiments at once, on the teams of one pool; the same data are read only once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Self, TypeVar

from fedrobust.audit.signing import open_key
from fedrobust.data.hospitals import Hospitals
from fedrobust.data.sources import outline_of
from fedrobust.errors import DataError, FedRobustError
from fedrobust.experiment import Experiment
from fedrobust.failures import reason
from fedrobust.federation.actors import ActorDied
from fedrobust.federation.pool import Pool, teams_that_fit
from fedrobust.federation.rounds import Hook
from fedrobust.federation.session import ray_session
from fedrobust.naming import Part
from fedrobust.preparation import Shelf, data_key
from fedrobust.progress import progress_to
from fedrobust.result import Result
from fedrobust.runner import KEY, run

Done = TypeVar("Done")

ATTEMPTS = 3
"""Attempts per run if an actor dies that the run needs, e.g. together with a node of the cluster."""
MOMENT = 1.0
"""Seconds of one wait: a Ctrl-C that arrives just before a wait is noticed only after it."""


class Stopped(KeyboardInterrupt):
    """Raised in a run to end it at its next round."""


@contextmanager
def leased_pool(experiment: Experiment, say: Callable[[str], None], teams: int | None = None) -> Iterator[Pool]:
    """Start Ray and `teams` teams of one client actor each, sized as the experiment's `workers` say; by default all
    that fit."""
    say("starting actors")
    workers = experiment.workers.model_copy(update={"count": 1})
    with ray_session(), Pool(workers, 1, teams or teams_that_fit(workers)) as pool:
        yield pool


class Teams:
    """Runs experiments on a pool of teams of one client actor each. Ray starts with the first task."""

    def __init__(self, say: Callable[[str], None], teams: int | None = None, pool: Pool | None = None) -> None:
        """`teams`: how many to start, by default as many as there is room for; `pool`: one that exists already."""
        self._say, self._teams, self._pool = say, teams, pool
        self._shelf = Shelf()
        self._stopping, self._one = threading.Event(), threading.Lock()
        self._stack = ExitStack()
        self._threads: ThreadPoolExecutor | None = None
        self._ahead: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()  # ends what was begun ahead
        self._stack.close()

    def each(
        self,
        first: Experiment,
        tasks: Sequence[Callable[[], Done]],
        then: Callable[[Done], None] = lambda done: None,
        ahead: Sequence[Callable[[], Done]] = (),
    ) -> None:
        """Do all tasks, as many at once as there are teams, and pass each result to `then` as soon as it is there.

        first: one of the experiments; all of them use its `workers`.
        tasks: functions without arguments.
        then: called in the thread of the task, one call at a time, those of what was begun ahead included.
        ahead: tasks for teams that have nothing else to do; nobody waits for them. What has begun goes on after the
            return, and until this object is left.

        An error of a task or of `then`, or a Ctrl-C, ends the running tasks within a round, and is raised again. The
        result of a run that ends by itself in that time is still passed on; errors of these calls are not reported.
        """
        threads = self._threads or self._started(first)

        def do(task: Callable[[], Done]) -> None:
            if self._stopping.is_set():
                raise Stopped
            try:
                done = task()
                with self._one:
                    then(done)
            except BaseException:
                self._stopping.set()  # at once, so that this thread starts no other task
                raise

        under_way = [task for task in self._ahead if not task.cancel() and not (task.done() and not task.exception())]
        before = len(under_way)
        try:
            under_way += (threads.submit(copy_context().run, do, task) for task in tasks)
            left, begun = set(under_way[before:]), len(under_way)
            under_way += (threads.submit(copy_context().run, do, task) for task in ahead)
            self._ahead = [*under_way[:before], *under_way[begun:]]
            while left:
                _, left = wait(left, MOMENT, FIRST_COMPLETED)
                for task in under_way:
                    if task.done() and not isinstance(task.exception(), Stopped):  # its cause follows
                        task.result()
            if self._stopping.is_set():
                raise Stopped
        except BaseException:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C: closing the teams waits for the tasks
                self._stopping.set()
                for task in under_way:
                    task.cancel()
                while wait(under_way, MOMENT).not_done:
                    pass
            raise

    def run(self, experiment: Experiment, part: Part, hooks: Sequence[Hook] = ()) -> Result:
        """Make one run; called in a task.

        experiment, hooks: as in `fedrobust.run`.
        part: the study that it belongs to.

        Raises as `fedrobust.run` does.
        """
        hospitals = self.hospitals(experiment)
        part = replace(part, go_on=partial(self._go_on_with, part), say=self._heard)
        for _ in range(ATTEMPTS - 1):
            try:
                return run(experiment, hooks=[self.go_on, *hooks], pool=self._pool, hospitals=hospitals, part=part)
            except ActorDied as error:
                self._say(f"begun again: {error}")
        return run(experiment, hooks=[self.go_on, *hooks], pool=self._pool, hospitals=hospitals, part=part)

    def check(self, experiments: Sequence[Experiment]) -> None:
        """Check what every run needs, before the first one: readable data, and the key of the audit log.

        experiments: they cover all kinds of data of the runs. If there are several kinds, one readable source is
            enough: other errors in the data of one kind may not concern other runs.

        Raises `DataError` if no run could have its data, and `AuditError` if the key cannot be used.
        """
        self._say("reading the data")
        kinds: dict[str, Experiment] = {}
        for each in experiments:
            kinds.setdefault(data_key(each), each)
        _any([each.data.source.check for each in kinds.values()])
        sources = [partial(outline_of, each.data.source, each.seed) for each in kinds.values() if len(kinds) > 1]
        _any([*(partial(self.hospitals, each) for each in experiments[:1]), *sources])  # cached for the first run
        open_key(KEY)

    def hospitals(self, experiment: Experiment) -> Hospitals:
        """Return the data of an experiment; the last few are cached."""
        with progress_to(self._heard):
            return self._shelf.get(experiment)

    def pool(self, experiment: Experiment) -> Pool:
        """Return the pool, also for other users; if necessary, start it as the experiment's `workers` say."""
        if self._pool is None:
            self._pool = self._stack.enter_context(leased_pool(experiment, self._say, self._teams))
        return self._pool

    def _started(self, experiment: Experiment) -> ThreadPoolExecutor:
        teams = self.pool(experiment).teams
        # One more than teams: it waits for the next free one while the run that had it is sealed and sent to MLflow.
        self._threads = self._stack.enter_context(ThreadPoolExecutor(teams + 1, thread_name_prefix="run"))
        self._say(f"running {teams} at a time")
        return self._threads

    def _go_on_with(self, part: Part) -> None:
        self.go_on()
        part.go_on()

    def _heard(self, what: str) -> None:
        self.go_on()
        self._say(what)

    def go_on(self, record: object = None) -> None:
        """Hook of every run: raises `Stopped` if everything is being stopped."""
        if self._stopping.is_set():
            raise Stopped


def _any(attempts: Iterable[Callable[[], object]]) -> None:
    """Make the attempts until one succeeds. If none does, raise the first one's error, as a `FedRobustError`."""
    wrong: list[Exception] = []
    for attempt in attempts:
        try:
            attempt()
            return
        except (Exception, SystemExit) as error:  # a user's own class may raise anything
            wrong.append(error if isinstance(error, FedRobustError) else DataError(f"data: {reason(error)}"))
    if wrong:
        raise wrong[0]
