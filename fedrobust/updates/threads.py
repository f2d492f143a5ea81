"""Threads that share out pieces of work. Each takes the next piece when it is free, so none waits for another that the
system has stopped, as the threads of BLAS and OpenMP do at the end of every call."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from threading import get_native_id
from typing import Any, TypeVar

from fedrobust.machine import usable_cores

MANY = 300
"""Rows above which a matrix is worth more than one thread."""
MOST = 256
"""Helping threads at most; each starts when it is first needed."""

T = TypeVar("T")
R = TypeVar("R")


@lru_cache(maxsize=1)
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def algebra(n: int = 0) -> AbstractContextManager[Any]:
    """A context manager: in it, NumPy's linear algebra on matrices (n, n) has one thread, or all cores if n is large.

    More threads would not make small matrices faster, and would keep spinning beside whoever comes next.
    """
    threads = 1 if n <= MANY else usable_cores()
    limited: AbstractContextManager[Any] = _thread_pools().limit(limits=threads, user_api="blas")
    return limited


def default_threads() -> int:
    """OMP_NUM_THREADS if it is set, as for other libraries; else the cores that this process may keep busy."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else _cores()


@lru_cache(maxsize=1)
def _cores() -> int:
    return usable_cores()  # it reads files of the system: slower than many a sum


def each(work: Callable[[T], R], pieces: Sequence[T], threads: int, short: bool = False) -> list[R]:
    """The results of `work` for all pieces, in their order.

    work: a function that may run in several threads at once; its linear algebra gets one thread each.
    pieces: what it is called with.
    threads: how many threads share them out; this one is one of them.
    short: whether it takes some milliseconds only: then each thread has cores of its own from the start.
    """
    more = min(threads, len(pieces)) - 1
    with algebra():
        if more < 1:
            return [work(piece) for piece in pieces]
        results: dict[int, R] = {}
        left = iter(enumerate(pieces))  # one step of it is one step of the interpreter

        def take() -> None:
            for place, piece in left:
                results[place] = work(piece)

        with _helpers().taking(take, more, short) as others:
            try:
                take()
            finally:
                started = [other for other in others if not other.cancel()]  # who has not begun has nothing left to do
                wait(started)
        for other in started:
            other.result()
        return [results[place] for place in range(len(pieces))]


class _Helpers:
    """Threads that wait for work: starting one costs as much as a small sum."""

    def __init__(self) -> None:
        self._kept_off: dict[int, int] = {}  # thread → core
        self._pool = ThreadPoolExecutor(MOST, "updates", lambda: self._kept_off.setdefault(get_native_id(), -1))
        self._core = getattr(ctypes.CDLL(None), "sched_getcpu", None) if sys.platform == "linux" else None

    @contextmanager
    def taking(self, work: Callable[[], None], count: int, apart: bool) -> Iterator[list[Future[None]]]:
        """`work` in so many of the helpers. `apart`: this thread stays on its core meanwhile, and they stay off it.

        Linux wakes a thread on the core of the thread that wakes it, unless it sees an idle one. A virtual machine's
        idle cores may not look idle; then two threads share a core for longer than most sums take.
        """
        cores = os.sched_getaffinity(0) if self._core else set()
        here = self._core() if self._core and apart and len(cores) > 1 else -1
        try:
            for helper in [helper for helper, core in list(self._kept_off.items()) if core != here]:
                os.sched_setaffinity(helper, cores - {here})
                self._kept_off[helper] = here
        except OSError:  # not allowed here
            here, self._core = -1, None
        others = [self._pool.submit(work) for _ in range(count)]  # a new thread may use the cores of this one
        if here >= 0:
            os.sched_setaffinity(0, {here})
        try:
            yield others
        finally:
            if here >= 0:
                os.sched_setaffinity(0, cores)


@lru_cache(maxsize=1)
def _helpers() -> _Helpers:
    return _Helpers()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # a child has no threads but its own
