"""Waiting for actors: every wait has a limit, and errors name what was awaited."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, OutOfDiskError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from fedrobust.errors import FederationError, NoPlaceError
from fedrobust.texts import visible
from fedrobust.users_code import folders, look_in

GONE = (RayActorError, OutOfMemoryError)
"""What Ray raises for a dead actor; the second, where Ray has ended it because memory was short."""
SPARE = (
    "fewer actors at a time (workers.count), smaller batches (learning.local.batch_size), "
    "a smaller model or other programs ended leave more"
)


def answer(reference: Any, awaited: str, patience: float, passed_on: tuple[type[Exception], ...] = ()) -> Any:
    """The answer of an actor.

    reference: Ray's reference to it.
    awaited: what an error names.
    patience: seconds to wait.
    passed_on: exceptions of these kinds, raised in the actor, are raised as they are.

    Raises `ActorDied`, which the caller may be able to mend, if the actor has died, or one that it asked. Raises
    `NoPlaceError` if Ray was shut down or its disk is full, and `FederationError` if the actor stays silent or fails.
    """
    if not ray.is_initialized():  # else Ray would start another session, without this actor
        raise NoPlaceError(f"Ray was shut down while waiting for {awaited}")
    try:
        return ray.get(reference, timeout=patience)
    except GetTimeoutError:
        raise FederationError(f"no answer for {patience:g} s while waiting for {awaited}") from None
    except RayError as error:
        cause = _cause(error)
        if isinstance(cause, GONE) and cause is error:
            raise ActorDied(f"the actor died while waiting for {awaited}: {reason(error)}") from error
        if isinstance(cause, (*GONE, ActorDied)):  # an argument came from an actor that died
            raise ActorDied(f"an actor died while waiting for {awaited}: {reason(cause)}") from error
        if isinstance(cause, passed_on):
            raise cause from error
        kind = NoPlaceError if isinstance(cause, OutOfDiskError) else FederationError
        raise kind(f"{awaited} failed: {reason(cause)}") from error


class ActorDied(FederationError):  # noqa: N818
    """An actor died before it answered."""


@contextmanager
def in_words() -> Iterator[None]:
    """Turn Ray's errors in the block, apart from those of waits for an answer, into a `FederationError`."""
    try:
        yield
    except RayError as error:
        raise FederationError(f"the federation cannot go on: {reason(_cause(error))}") from error


def reason(error: BaseException) -> str:
    """Why Ray, or code in an actor, raised this: one line. Where memory is the reason, it says what to do.

    Ray's own text on an actor's end has pages.
    """
    if isinstance(error, ActorDied):
        return str(error)
    text, kind = str(error), type(error).__name__
    lines = [visible(line) for line in text.splitlines() if line.strip() and line[0] != "\t"]
    lines = lines or ["no reason was given"]
    if isinstance(error, GONE):
        if isinstance(error, OutOfMemoryError) or "low on memory" in text:
            found = re.search(r"\(IP: ([^,)]+).*? was ([\d.]+ ?GB)(?: used)? / ([\d.]+ ?GB)", text)
            where = " on {} ({} of {} in use)".format(*found.groups()) if found else ""
            return f"Ray has ended it, because memory was short{where}; {SPARE}"
        if "SYSTEM_ERROR" in text:
            return f"its process was killed, or crashed; if memory was short (see dmesg), {SPARE}"
        if getattr(error, "actor_init_failed", False):
            return f"it could not be started: {lines[-1]}"
        return next((line for line in lines[1:] if line != lines[0]), lines[0]).strip()
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":  # the latter is torch's, of a GPU
        return f"{kind}: {lines[0]}; {SPARE}"
    return f"{kind}: {lines[0]}"


def _cause(error: BaseException) -> BaseException:
    """The exception that was raised in an actor, if this is Ray's wrapping of it."""
    return error.cause if isinstance(error, RayTaskError) and error.cause is not None else error


def setup(
    actors: Sequence[ActorHandle],
    arguments: Sequence[Any],
    awaited: str,
    patience: float,
    own: Callable[[ActorHandle], Sequence[Any]] = lambda actor: (),
) -> list[Any]:
    """Call `setup(*arguments, *own(actor))` on all actors and wait for their answers.

    awaited: what an error names.
    patience: seconds to wait in all.
    own: the arguments that only this actor gets.

    A user's classes, which the arguments may hold, are found in the actors where this process finds them. Raises as
    `answer`.
    """
    deadline = time.monotonic() + patience
    if places := [_in_the_copy(folder) for folder in folders()]:
        for actor in actors:
            actor.__ray_call__.remote(_look_in, places)
    references = [actor.setup.remote(*arguments, *own(actor)) for actor in actors]
    return [answer(reference, awaited, max(1.0, deadline - time.monotonic())) for reference in references]


def _in_the_copy(folder: str) -> str:
    """A folder as an actor finds it: in a job, inside the copy of the working folder that its node has unpacked."""
    shipped = os.environ.get("FEDROBUST_SHIPPED")
    inside = shipped is not None and Path(folder).is_relative_to(shipped)
    return os.path.relpath(folder, shipped) if inside else folder


def _look_in(actor: object, places: list[str]) -> None:
    look_in([str(Path(place).absolute()) for place in places])
