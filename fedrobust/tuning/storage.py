"""The Optuna storage of a sweep: opened by one process at a time, and its faults in one line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import optuna
from optuna.exceptions import OptunaError, StorageInternalError
from optuna.storages import BaseStorage
from sqlalchemy.exc import SQLAlchemyError

from fedrobust.databases import cause, safe_url, sqlite_file, sqlite_url, turn, without_password
from fedrobust.errors import ExperimentError, StorageError
from fedrobust.private import whole

PATIENCE = 30
"""Seconds to wait while another program has locked the database's file; Optuna makes some calls five times."""


@contextmanager
def opened(url: str) -> Iterator[BaseStorage]:
    """Open the storage at `url`, or create it; no other process opens or creates it during the block.

    A new SQLite database is made under a temporary name and then renamed, since the process that makes it may die.

    Raises `ExperimentError` if it cannot be opened, or if the block finds that it cannot be used.
    """
    try:
        with turn(url):
            file = sqlite_file(url)
            if file is not None and not file.exists():
                with whole(file) as partial:
                    optuna.storages.RDBStorage(sqlite_url(partial)).engine.dispose()
            # For a file: seconds to wait for a lock; for a server: test whether the connection still exists.
            options: dict[str, Any] = {"connect_args": {"timeout": PATIENCE}} if file else {"pool_pre_ping": True}
            storage = optuna.storages.get_storage(optuna.storages.RDBStorage(safe_url(url), options))
            yield cast(BaseStorage, _Reached(storage, url))
    except (StorageError, SQLAlchemyError, OptunaError, ImportError, OSError, ValueError, RuntimeError) as error:
        if isinstance(error, StorageError):
            raise ExperimentError(*error.problems) from None
        raise ExperimentError(_unusable(url, error)) from None


class _Reached:
    """An Optuna storage in use: every error of its database becomes a `StorageError`.

    After an error, further calls fail at once: the study has ended, and is opened again when it continues.
    """

    def __init__(self, storage: BaseStorage, url: str) -> None:
        self._storage, self._url = storage, url
        self._lost = ""

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        return partial(self._call, found) if callable(found) else found

    def _call(self, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if self._lost:
            raise StorageError(self._lost)
        try:
            return method(*given, **named)
        except (SQLAlchemyError, StorageInternalError) as error:
            self._lost = _unusable(self._url, error)
            raise StorageError(self._lost) from error


def _unusable(url: str, error: BaseException) -> str:
    """Say in one line why a storage cannot be used."""
    error = error.__cause__ or error  # the message of the database driver, without the statement
    if isinstance(error, ImportError):
        return without_password(f"no Optuna storage at '{url}': {error}; install this driver of the database")
    try:
        file = sqlite_file(url)
    except ValueError:
        file = None
    if file is not None and (reason := cause(error, file)) is not None:
        return f"Optuna storage: {reason}"
    reason = " ".join(str(error).split())[:300].replace("$STORAGE_URL", shlex.quote(url))
    return without_password(f"no Optuna storage at '{url}', e.g. sqlite:///mlruns/optuna.db: {reason}")
