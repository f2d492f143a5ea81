"""What is said of actors that have ended."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import (
    ActorUnavailableError,
    ObjectLostError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from fedrobust.errors import FederationError, NoPlaceError
from fedrobust.federation import actors
from fedrobust.federation.actors import ActorDied, answer, in_words, reason
from fedrobust.federation.pool import Team

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: ClientHost
\tactor_id: c6f115062ab30d2df86e5bc701000000
\tpid: 22335
\tip: 192.0.2.2
The actor is dead because """
KILLED = f"""{DIED}its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker \
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed \
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed."""
PAGES = (
    """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: de7ec298) \
was 23.09GB used / 23.54GB limit (0.98)
OOM kill reason: Memory usage 3279319040B exceeded threshold of 505530016B (2.0% of 25276502016B limit)
Object store memory usage: [- objects spillable: 0
"""
    + "- bytes spillable: 0\n" * 40
)
OLDER = f"""{DIED}its worker process has died. Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: Task was \
killed due to the node running low on memory.
Memory on the node (IP: 10.1.1.2, ID: d5a) where the task (actor ID: 8d4) was running was 27.00GB / 27.44GB (0.984)"""


class InitError(RayActorError):
    """As of an actor that raised in `__init__`."""

    def __init__(self) -> None:
        text = "The actor died because of an error raised in its creation task, \x1b[36mray::A()\x1b[39m\n  File x"
        super().__init__("1", f"{text}\nValueError: no such model", actor_init_failed=True)


SAID = [
    (OutOfMemoryError(PAGES), r"memory was short on 192\.0\.2\.2 \(23\.09GB of 23\.54GB in use\); fewer actors"),
    (RayActorError("1", OLDER), r"memory was short on 10\.1\.1\.2 \(27\.00GB of 27\.44GB in use\); fewer actors"),
    (OutOfMemoryError("it was too much"), "Ray has ended it, because memory was short; fewer actors"),
    (RayActorError("1", KILLED), "its process was killed, or crashed; if memory was short .*, fewer actors"),
    (RayActorError("1", f"{DIED}its node has died."), "The actor is dead because its node has died"),
    (RayActorError(), "The actor experienced an error"),
    (ActorUnavailableError("rpc error", None), "is unavailable: rpc error"),
    (InitError(), "it could not be started: ValueError: no such model"),
]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What `ray.get` raises is `error`."""
    told = SimpleNamespace(error=None)

    def get(reference: object, timeout: float) -> None:
        raise told.error

    monkeypatch.setattr(actors, "ray", SimpleNamespace(get=get, is_initialized=lambda: True))
    return told


def wrapped(error: Exception) -> RayTaskError:
    """As it arrives where a task raised it."""
    return RayTaskError("train", "a traceback\n" * 30, error).as_instanceof_cause()


@pytest.mark.parametrize(("error", "told"), SAID)
@pytest.mark.parametrize("within", [False, True])
def test_an_actor_is_gone(error: RayError, told: str, within: bool, raising: SimpleNamespace) -> None:
    """The actor that was asked, or one whose answer it was to get."""
    raising.error = wrapped(error) if within else error
    with pytest.raises(ActorDied, match=told) as raised:
        answer(None, "round 2: worker 0 to train", 1.0)
    said = str(raised.value)
    assert said.startswith("an" if within else "the actor died while waiting for round 2: worker 0 to train: ")
    assert said.isprintable()  # one line
    assert len(said) < 350


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (wrapped(MemoryError("Unable to allocate 728. TiB")), "MemoryError: Unable to allocate 728. TiB; fewer"),
        (wrapped(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory\nX")), "CUDA out of memory; fewer"),
        (wrapped(ValueError("a bad batch\nof two lines")), "to train failed: ValueError: a bad batch$"),
        (wrapped(ValueError("\x1b[2Jgone")), "to train failed: ValueError: [^\x1b]*gone$"),
        (wrapped(ValueError()), "to train failed: ValueError: no reason was given$"),
        (ObjectLostError("ab", None, ""), "to train failed: ObjectLostError: Failed to retrieve object ab"),
        (OutOfDiskError("x"), "to train failed: OutOfDiskError: "),
    ],
)  # fmt: skip
def test_a_task_failed(error: RayError, told: str, raising: SimpleNamespace) -> None:
    raising.error = error
    with pytest.raises(FederationError, match=told) as raised:
        answer(None, "round 2: worker 0 to train", 1.0)
    assert not isinstance(raised.value, ActorDied)
    assert str(raised.value).isprintable()


def test_a_ray_that_was_shut_down_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(NoPlaceError, match=r"shut down .* worker 0"):
        answer(None, "worker 0", 1.0)


def test_what_is_raised_beside_the_waits_is_told_too() -> None:
    with pytest.raises(FederationError, match="OutOfDiskError: x"), in_words():
        raise OutOfDiskError("x")
    with pytest.raises(ValueError, match="not Ray's"), in_words():
        raise ValueError("not Ray's")


def test_reasons_are_handed_on() -> None:
    assert reason(ActorDied("the actor died: it was cold")) == "the actor died: it was cold"


@pytest.mark.parametrize("error", [OutOfMemoryError(PAGES), RayActorError("1", KILLED)])
def test_a_team_that_has_lost_an_actor_to_the_want_of_memory_is_not_whole(
    error: RayError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(references: object, timeout: float) -> None:
        raise error

    monkeypatch.setattr(ray, "get", get)
    team = SimpleNamespace(actors=[], lost="")
    assert not Team.whole(team, 1.0)  # type: ignore[arg-type]
    assert "memory was short" in team.lost


def test_a_process_that_is_killed(ray_local: None) -> None:
    """As by the system, for want of memory."""

    @ray.remote(num_cpus=0)
    class Client:
        def train(self) -> None:
            os.kill(os.getpid(), 9)

    with pytest.raises(ActorDied, match=r"killed.* memory"):
        answer(Client.remote().train.remote(), "the client", 60)
