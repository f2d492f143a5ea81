"""Ray and the actors of a run, which start while the driver still reads the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from threading import Event

from fedrobust.experiment import Experiment
from fedrobust.federation.pool import Pool
from fedrobust.federation.session import keep_sigterm, ray_session

HEAD_START = 1.0
"""Seconds that the driver has before anything is started: most of what is wrong with data or model shows by then."""


@contextmanager
def pool_beside(experiment: Experiment, first: Callable[[], None] = lambda: None) -> Iterator[Callable[[], Pool]]:
    """Start Ray and one team of actors in another thread, soon or when they are waited for; both end with the block.

    first: called in that thread before.

    Yields a function that waits for them, and raises what `ray_session` and `Pool` do.
    """
    pool, stack, wanted = Pool(experiment.workers, experiment.federation.participants()), ExitStack(), Event()

    def start() -> None:
        wanted.wait(HEAD_START)
        if not pool.leaving.is_set():
            first()
            stack.enter_context(ray_session())
            stack.enter_context(pool)

    # The thread ends before the stack is closed.
    with stack, ThreadPoolExecutor(1, thread_name_prefix="start") as beside:
        started = beside.submit(copy_context().run, start)

        def ready() -> Pool:
            wanted.set()
            started.result()
            keep_sigterm()
            return pool

        try:
            yield ready
        finally:
            pool.leaving.set()
            wanted.set()
