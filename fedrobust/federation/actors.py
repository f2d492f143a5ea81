"""Waiting for actors: no wait without a limit, and an error that says what was awaited."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from fedrobust.errors import FederationError


def answer(reference: Any, awaited: str, patience: float, passed_on: tuple[type[Exception], ...] = ()) -> Any:
    """What an actor answers. Raises `FederationError`, naming what was awaited, when it stays silent or fails.

    The death of the actor, or of one that it asked, is an `ActorDied`, which the caller may be able to mend. Exceptions
    of the kinds in `passed_on` are raised as they are.
    """
    try:
        return ray.get(reference, timeout=patience)
    except GetTimeoutError:
        raise FederationError(f"no answer for {patience:g} s while waiting for {awaited}") from None
    except RayActorError as error:
        raise ActorDied(f"the actor died while waiting for {awaited}: {_first_line(error)}") from error
    except RayTaskError as error:
        cause = error.cause if error.cause is not None else error
        if isinstance(cause, (RayActorError, ActorDied)):  # an argument came from an actor that died
            raise ActorDied(f"an actor died while waiting for {awaited}: {_first_line(cause)}") from error
        if isinstance(cause, passed_on):
            raise cause from error
        raise FederationError(f"{awaited} failed: {type(cause).__name__}: {_first_line(cause)}") from error
    except RayError as error:  # out of memory, an object that is lost, a node that is gone
        raise FederationError(f"{awaited} failed: {type(error).__name__}: {_first_line(error)}") from error


class ActorDied(FederationError):  # noqa: N818
    """An actor died before it answered."""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def setup(actors: Sequence[ActorHandle], arguments: Sequence[Any], awaited: str, patience: float) -> list[Any]:
    """Call `setup(*arguments)` on all actors and wait for their answers."""
    deadline = time.monotonic() + patience
    references = [actor.setup.remote(*arguments) for actor in actors]
    return [answer(reference, awaited, max(1.0, deadline - time.monotonic())) for reference in references]
