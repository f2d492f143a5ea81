"""What ended a run: whose affair it is, and what is told of it."""

from __future__ import annotations

import errno

import pytest
from ray.exceptions import OutOfDiskError

import fedrobust.federation.actors as actors
from fedrobust.errors import (
    DataError,
    ExperimentError,
    FederationError,
    NoPlaceError,
    Problem,
    StorageError,
    TrackingError,
)
from fedrobust.failures import ends_all, reason


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """The error as it is caught."""
    try:
        raise error from cause
    except BaseException as caught:
        return caught


class TaskError(Exception):
    """As Ray's: what the task raised is beside it."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__("a traceback")
        self.cause = cause


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        TrackingError("gone"),
        StorageError("locked"),
        NoPlaceError("nowhere"),
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        raised(FederationError("round 3 could not be written"), FULL),
        raised(FederationError("training failed"), TaskError(FULL)),
    ],
    ids=repr,
)
def test_what_would_end_all_runs(error: BaseException) -> None:
    assert ends_all(error)


@pytest.mark.parametrize(
    "error",
    [
        DataError("too few"),
        FederationError("too few"),
        MemoryError(),
        SystemExit(1),
        FileNotFoundError(errno.ENOENT, "No such file"),
        raised(FederationError("training failed"), TaskError(KeyError("x"))),
    ],
    ids=repr,
)
def test_what_is_a_runs_own(error: BaseException) -> None:
    assert not ends_all(error)


def test_an_error_that_is_its_own_cause_is_looked_at_once() -> None:
    error, other = KeyError(), ValueError()
    error.__context__, other.__context__ = other, error
    assert not ends_all(error)


def test_a_reason_is_one_line_that_can_be_shown() -> None:
    assert reason(ExperimentError(Problem("one", "a"), "b:\ttwo")) == r"a: one; b:\ttwo"
    assert reason(DataError("")) == "DataError"
    assert reason(KeyError("x")) == "KeyError: 'x'", "it was never raised"
    assert reason(raised(KeyError("x"))).startswith("KeyError: 'x' (test_failures.py, line ")
    assert reason(raised(MemoryError())).startswith("MemoryError (test_failures.py, line ")
    assert reason(ValueError("\x1b]8;;x\x07 \udcff")) == r"ValueError: \x1b]8;;x\x07 \udcff"
    long = reason(raised(ValueError("x" * 10**6)))
    assert len(long) < 1100
    assert long.endswith(")")


def test_a_disk_without_room_for_rays_objects_ends_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutOfDiskError

    monkeypatch.setattr(actors.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(actors.ray, "get", full)
    with pytest.raises(FederationError, match=r"^round 1: worker 0 ") as caught:
        actors.answer(None, "round 1: worker 0 to train", 1.0)
    assert ends_all(caught.value)
