"""Threads that share out pieces of work. Each takes the next piece when it is free, so none waits for another that the
system has stopped, as the threads of BLAS and OpenMP do at the end of every call."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Any, TypeVar

from fedrobust.machine import usable_cores

MANY = 300
"""Rows above which a matrix is worth more than one thread."""

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


def each(work: Callable[[T], R], pieces: Sequence[T], threads: int) -> list[R]:
    """The results of `work` for all pieces, in their order.

    work: a function that may run in several threads at once; its linear algebra gets one thread each.
    pieces: what it is called with.
    threads: how many threads share them out; this one is one of them.
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

        with ThreadPoolExecutor(more, thread_name_prefix="updates") as pool:
            others = [pool.submit(take) for _ in range(more)]
            take()
        for other in others:
            other.result()
        return [results[place] for place in range(len(pieces))]
