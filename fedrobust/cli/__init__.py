"""The command line. It imports what a command needs only when that command runs, so that `--help` answers at once.

Commas in the overrides of `fedrobust run` make a grid of runs:

>>> from fedrobust.cli.grid import combinations
>>> combinations(["seed=1,2", "aggregation.rule=mean"])
[('seed=1', 'aggregation.rule=mean'), ('seed=2', 'aggregation.rule=mean')]
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys

from fedrobust.cli import workplace, federations, benchmarks, records, cluster_jobs  # isort: skip (in the order of --help)
from fedrobust.cli.application import GOING_ON, app
from fedrobust.errors import DataError, FedRobustError
from fedrobust.private import private_files
from fedrobust.screen import unfailing_output
from fedrobust.texts import VisibleFormatter, visible

__all__ = ["app", "benchmarks", "cluster_jobs", "federations", "main", "records", "workplace"]


def main() -> None:
    """Entry point: errors for users are printed without a traceback."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # sent by batch systems, and by a terminal that is closed
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has set it to be ignored
            signal.signal(number, _interrupt)
    if logging.lastResort is not None:  # it writes the warnings of libraries that set up no logging
        logging.lastResort.setFormatter(VisibleFormatter())
    with unfailing_output("the command goes on" if sys.argv[1:2] and sys.argv[1] in GOING_ON else ""):
        _run()


def _run() -> None:
    try:
        with private_files():  # all files that a command makes
            app()
    except FedRobustError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        if isinstance(error, DataError) and "FEDROBUST_JOB" in os.environ:
            node = f"the driver's node, {platform.node()}, is the one that reads the data"
            print(f"error: {node}: put it there, or submit with --env FEDROBUST_DATA=PATH", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, or a folder without write permission
        place = f"{error.filename}: " if error.filename is not None else ""
        print(visible(f"error: {place}{error.strerror or error}"), file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"error: not enough memory: {error}".rstrip(": "), file=sys.stderr)
        sys.exit(1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
