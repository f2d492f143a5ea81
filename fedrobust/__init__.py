"""FedRobust: which defence keeps a federated medical-image model accurate and safe when some hospitals are malicious.

>>> import fedrobust
>>> experiment = fedrobust.load("experiments/quickstart.yaml", ["seed=3"])
>>> result = fedrobust.run(experiment)
>>> result.final["test/balanced_accuracy"]
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedrobust.experiment import Experiment
    from fedrobust.experiment_file import load
    from fedrobust.runner import Result, run
    from fedrobust.tuning.api import sweep

__all__ = ["Experiment", "Result", "load", "run", "sweep"]
__version__ = _version("fedrobust")

_HOME = {
    "Experiment": "experiment",
    "load": "experiment_file",
    "Result": "runner",
    "run": "runner",
    "sweep": "tuning.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `fedrobust --help` must not wait for torch, Ray and MLflow."""
    if name not in _HOME:
        raise AttributeError(f"module 'fedrobust' has no attribute '{name}'")
    from importlib import import_module

    if _HOME[name] in ("runner", "tuning.api"):
        from fedrobust.extras import require

        require("platform", f"fedrobust.{name}")
    return getattr(import_module(f"fedrobust.{_HOME[name]}"), name)
