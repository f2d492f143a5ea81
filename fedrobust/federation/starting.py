"""Ray and the actors of a run, which start while the driver still reads the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import copy_context

from fedrobust.experiment import Experiment
from fedrobust.federation.pool import Pool
from fedrobust.federation.session import keep_sigterm, ray_session


@contextmanager
def pool_beside(experiment: Experiment) -> Iterator[Callable[[], Pool]]:
    """Begin to start Ray and one team of actors; both end with the block.

    Yields a function that waits for them, and raises what `ray_session` and `Pool` do.
    """
    pool, stack = Pool(experiment.workers, experiment.federation.participants()), ExitStack()

    def start() -> None:
        stack.enter_context(ray_session())
        stack.enter_context(pool)

    # The thread ends before the stack is closed.
    with stack, ThreadPoolExecutor(1, thread_name_prefix="start") as beside:
        started = beside.submit(copy_context().run, start)

        def ready() -> Pool:
            started.result()
            keep_sigterm()
            return pool

        try:
            yield ready
        finally:
            pool.leaving.set()
