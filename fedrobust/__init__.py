"""FedRobust: which defence keeps a federated medical-image model accurate and safe when some hospitals are malicious.

>>> import fedrobust
>>> result = fedrobust.run("experiments/quickstart.yaml", {"seed": 3})
>>> result.final["test/balanced_accuracy"]
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrobust.api import ProgressReport, duel, matrix, run, session, sweep
    from fedrobust.errors import ExperimentError, FedRobustError, Stop
    from fedrobust.experiment import Experiment
    from fedrobust.experiment_file import load
    from fedrobust.records import EvaluationRecord, RoundRecord, RunEnd, RunStart
    from fedrobust.result import Result

__all__ = [
    "EvaluationRecord",
    "Experiment",
    "ExperimentError",
    "FedRobustError",
    "ProgressReport",
    "Result",
    "RoundRecord",
    "RunEnd",
    "RunStart",
    "Stop",
    "duel",
    "load",
    "matrix",
    "run",
    "session",
    "sweep",
]
__version__ = _version("fedrobust")

_HOMES = {
    "api": ("ProgressReport", "duel", "matrix", "run", "session", "sweep"),
    "errors": ("ExperimentError", "FedRobustError", "Stop"),
    "experiment": ("Experiment",),
    "experiment_file": ("load",),
    "records": ("EvaluationRecord", "RoundRecord", "RunEnd", "RunStart"),
    "result": ("Result",),
}


def __getattr__(name: str) -> Any:
    """Import on first use: `fedrobust --help` must not wait for torch, Ray and MLflow."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'fedrobust' has no attribute '{name}'")
    from importlib import import_module

    if home in ("api", "result"):
        from fedrobust.extras import require

        require("platform", f"fedrobust.{name}")
    return getattr(import_module(f"fedrobust.{home}"), name)


def __dir__() -> list[str]:
    """List what there is, for completion, also what is not imported yet."""
    return sorted({*globals(), *__all__} - {"Any", "TYPE_CHECKING"})
