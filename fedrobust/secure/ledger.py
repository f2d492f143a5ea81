"""The ledger of a server: what it has opened so far, in a file of its own, so that it is not forgotten in a restart."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fedrobust.secure.weights import OpeningError

Ledger = dict[str, Any]
"""`functionals` opened so far; of the last sum, the `training` round and the `weights` by client."""


def nowhere(ledger: Ledger) -> None:
    """Keep no ledger."""


def read_ledger(path: Path) -> Ledger | None:
    """The ledger in a file; None if there is none.

    Raises `OpeningError` if it cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
        return {"functionals": found["functionals"], "training": found["training"], "weights": dict(found["weights"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError):
        raise OpeningError(f"{path}: a server cannot read what it has opened, so it opens nothing") from None


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write a ledger to the disk, where only the owner of the process can read it.

    path: of the file.
    ledger: as `Server.ledger` returns it.

    Raises `OpeningError` if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial_file = path.with_suffix(".partial")
        with os.fdopen(os.open(partial_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(ledger, file)
            file.flush()
            os.fsync(file.fileno())
        partial_file.replace(path)
    except OSError as error:
        raise OpeningError(f"{path}: a server cannot write down what it opens: {error.strerror}") from None
