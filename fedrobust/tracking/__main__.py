"""`python -m fedrobust.tracking sqlite:///mlruns/mlflow.db`: prepares a database for MLflow's own programs. It makes
the database if necessary, and corrects the paths of its artifacts."""

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
