"""A session in Python: Ray, the actors and the last data stay between runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Self

from fedrobust.data.hospitals import Hospitals
from fedrobust.errors import ExperimentError, Problem
from fedrobust.experiment import Experiment, Workers
from fedrobust.federation.pool import Pool, teams_that_fit
from fedrobust.federation.session import ray_session
from fedrobust.preparation import Shelf
from fedrobust.progress import progress_to

EVERY = 100_000
"""Hospitals of the largest federation: so `workers.count: auto` means one actor for each core, or share of a GPU."""

_current: Session | None = None

_under_way: ContextVar[Session | None] = ContextVar("_under_way", default=None)
"""The session whose run or study has called this code; also in the threads of a study, which take the context along."""


class Session:
    """Keeps Ray, the actors and the data of the last three experiments, so that only the first run has to start them.

    Inside of `with fedrobust.session():`, `fedrobust.run`, `matrix`, `sweep` and `duel` use it; the `workers` of an
    experiment are then ignored, as they change no result. Runs need one team of many actors, studies many teams of one
    actor: a change from one to the other starts the actors again, a few seconds. Only one run or study at a time; one
    that is begun in another thread waits.
    """

    def __init__(self, workers: int | Mapping[str, Any] | Workers | None = None) -> None:
        """`workers`: the number of client actors, or options as in an experiment; by default as many as fit."""
        if isinstance(workers, bool) or not isinstance(workers, (int, Mapping, Workers, type(None))):
            problem = Problem("expected a number of client actors, or options of `workers`", "workers", repr(workers))
            raise ExperimentError(problem)
        given: Any = {"count": workers} if isinstance(workers, int) else workers or {}
        if not isinstance(given, Workers):
            given = Workers(**{str(key): value for key, value in given.items()})
        self._workers: Workers = given
        self._shelf, self._lock = Shelf(), threading.Lock()
        self._stack, self._actors = ExitStack(), ExitStack()
        self._pool: Pool | None = None
        self._teams: int | None = None
        """How many teams the pool has for studies; 0 for runs."""

    def start(self) -> Self:
        """Make this the session of the process, and start Ray; `close` ends it. `with` does both.

        Raises `ExperimentError` if there is a session, and `FederationError` if Ray cannot be started.
        """
        global _current
        if _current is not None:
            raise ExperimentError("a session is open already: end it first, with its close() or its `with` block")
        self._stack.enter_context(ray_session())
        _current = self
        return self

    def close(self) -> None:
        """End the actors, and Ray if this session has started it."""
        global _current
        if _current is self:
            _current = None
        try:
            self._actors.close()
        finally:
            self._pool, self._teams = None, None
            self._stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def for_run(self, experiment: Experiment, say: Callable[[str], None]) -> Iterator[tuple[Pool, Hospitals]]:
        """Yield one team of all client actors, and the data of an experiment.

        say: called with a text before actors are started, and before the data are read.

        The actors import what they need while the data are read, which are kept for the next experiment that has the
        same.
        """
        with self._alone():
            pool = self._having(0, self._workers, say)
            say("reading the data")
            with progress_to(say):
                hospitals = self._shelf.get(experiment)
            yield pool, hospitals

    @contextmanager
    def for_studies(self, say: Callable[[str], None], teams: int | None = None) -> Iterator[Pool]:
        """Yield teams of one client actor each.

        say: called with a text before actors are started.
        teams: how many, by default as many as fit, or as the session has `workers`.
        """
        workers = self._workers.model_copy(update={"count": 1})
        if teams is None and isinstance(self._workers.count, int):
            teams = self._workers.count
        with self._alone():
            yield self._having(teams or teams_that_fit(workers), workers, say)

    def _having(self, teams: int, workers: Workers, say: Callable[[str], None]) -> Pool:
        if self._pool is None or self._teams != teams:
            say("starting actors")
            self._actors.close()
            self._pool = self._actors.enter_context(Pool(workers, 1 if teams else EVERY, teams or 1))
            self._teams = teams
        return self._pool

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if _under_way.get() is self:
            raise ExperimentError(
                "a run or study of this session is under way: its hook or objective cannot start another"
            )
        with self._lock:
            before = _under_way.set(self)
            try:
                yield
            finally:
                _under_way.reset(before)


def current_session() -> Session | None:
    """Return the session of the process; None if there is none."""
    return _current
