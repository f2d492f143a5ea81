"""How a run ends, and what MLflow and the user are told then."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from fedrobust.errors import FedRobustError, Interrupted, UntrainedError
from fedrobust.failures import reason
from fedrobust.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass
class Ending:
    """The final status of a run in MLflow, and the reason if it is not finished."""

    status: str
    reason: str = ""


@contextmanager
def tracked(
    opened: Callable[[], Tracker], alone: bool, goes_on: Callable[[str], bool]
) -> Iterator[tuple[Future[Tracker], Ending]]:
    """Open a run's tracker in the background; at the end of the block, close it with the matching status.

    opened: opens the tracker.
    alone: whether the run is no part of a study, which would repeat it.
    goes_on: whether the run with an id can be resumed.

    Where a run that is alone can be resumed, Ctrl-C becomes `Interrupted`, and errors say how to go on.
    """
    with ThreadPoolExecutor(1) as beside:
        opening, end = beside.submit(opened), Ending("FINISHED")

        def resumable() -> bool:
            return alone and opening.exception() is None and goes_on(opening.result().run_id)

        try:
            yield opening, end
        except KeyboardInterrupt as stop:
            end.status = "KILLED"
            if resumable():
                raise Interrupted(opening.result().run_id) from stop
            raise
        except _pruned() as pruned:
            end.status, end.reason = "KILLED", f"pruned: {pruned}".removesuffix(": ")
            raise
        except BaseException as error:
            end.status, end.reason = "FAILED", reason(error)
            # A run that never trained would not train after resuming either.
            if isinstance(error, FedRobustError) and not isinstance(error, UntrainedError) and resumable():
                raise error.advising(f"go on with: --resume {opening.result().run_id}") from error
            raise
        finally:
            if opening.exception() is None and not opening.result().close(end.status, reason=end.reason):
                logger.warning("MLflow does not have all of the run yet: fedrobust sync %s", opening.result().run_id)


def _pruned() -> tuple[type[Exception], ...]:
    """Return Optuna's exception for a trial that a hook ends early; none if nobody has imported Optuna."""
    optuna = sys.modules.get("optuna")
    return () if optuna is None else (optuna.TrialPruned,)
