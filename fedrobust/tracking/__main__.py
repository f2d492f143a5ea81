"""`python -m fedrobust.tracking sqlite:///mlruns/mlflow.db`: has a database in order before MLflow's own programs use
it. It is made if need be, and right about where its artifacts lie."""

from __future__ import annotations

import logging
import sys

from fedrobust.errors import TrackingError
from fedrobust.tracking.store import reaching

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    try:
        with reaching(sys.argv[1]):
            pass
    except TrackingError as error:
        sys.exit(f"error: {error}")
