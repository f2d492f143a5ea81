"""A study's files are always written, even if it is stopped or a picture cannot be drawn."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedrobust.errors import ExperimentError, FederationError, FedRobustError
from fedrobust.failures import reason

logger = logging.getLogger(__name__)

GO_ON = "the same command goes on where it stopped"
"""How to resume a study that was stopped; appended to the error that stopped it."""

GO_ON_ANYWAY = "with --anyway (in Python: anyway=True) it goes on"
"""How to resume a study that was stopped because nothing was learnt."""


@contextmanager
def written_in_any_case(write: Callable[[bool], None], go_on: str = GO_ON) -> Iterator[None]:
    """Call `write` at the end of the block: with True if the block completed, with False if it was stopped.

    write: writes the files.
    go_on: how to continue; appended to errors other than `ExperimentError`.

    The error that stopped the block is raised again, even if writing fails; an `OSError` as a `FedRobustError`. Raises
    `FedRobustError` if the block completed but the files cannot be written.
    """
    try:
        yield
    except BaseException as error:
        try:
            write(False)
        except BaseException as second:  # this must not hide the first error
            logger.warning("what there is could not be written: %s", second)
        ended = FedRobustError(reason(error)) if isinstance(error, OSError) else error
        if go_on and isinstance(ended, FedRobustError) and not isinstance(ended, ExperimentError):
            raise ended.advising(go_on) from error
        if ended is not error:
            raise ended from error
        raise
    try:
        write(True)
    except OSError as error:
        message = f"all runs are made, and what they gave could not be written: {error}"
        raise FedRobustError(f"{message}; {go_on}" if go_on else message) from error


@contextmanager
def drawn(picture: Path) -> Iterator[None]:
    """The block draws and writes a picture; if it cannot be drawn, a warning is logged, and nothing else fails.

    Raises `OSError` if the file cannot be written.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # unexpected names or figures may make a plotting library raise anything
        picture.unlink(missing_ok=True)  # an old picture would look current
        logger.warning("%s could not be drawn: %s", picture, error)


def refuse_fruitless(reasons: Sequence[str], made: int, what: str, table: Path) -> None:
    """Raise `FederationError` if all that was made has failed.

    reasons: why the failed ones failed.
    made: how many there are.
    what: their name in the message, in the plural.
    table: the file that the message refers to.
    """
    if reasons and len(reasons) == made:
        most, times = Counter(reasons).most_common(1)[0]
        often = "" if times == made else f"{times} of them, "
        raise FederationError(f"all {made} {what} failed: {often}{most}; see {table}")
