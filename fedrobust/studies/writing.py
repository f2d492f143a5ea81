"""What a study leaves in its folder is written in any case, also where it is stopped or a picture cannot be drawn."""

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
"""How a study that was stopped is resumed; it stands behind the error that stopped it."""


@contextmanager
def written_in_any_case(write: Callable[[bool], None], go_on: str = GO_ON) -> Iterator[None]:
    """Call `write` when the block ends, with True, or when it is stopped, with False.

    What stopped the block is raised again, whatever becomes of the writing; what the disk raised as a `FedRobustError`.
    go_on: how to go on after an error that is none of the experiments; it stands behind the error.

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
    """The block writes a picture; where it cannot be drawn, a warning says so, and it costs nothing else.

    Raises what the disk raises.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # whatever a library of pictures makes of names and figures that nobody has foreseen
        picture.unlink(missing_ok=True)  # an earlier one would be taken for it
        logger.warning("%s could not be drawn: %s", picture, error)


def refuse_fruitless(reasons: Sequence[str], made: int, what: str, table: Path) -> None:
    """Raise `FederationError` where all that was made has failed; `reasons` are those of what has."""
    if reasons and len(reasons) == made:
        most, times = Counter(reasons).most_common(1)[0]
        often = "" if times == made else f"{times} of them, "
        raise FederationError(f"all {made} {what} failed: {often}{most}; see {table}")
