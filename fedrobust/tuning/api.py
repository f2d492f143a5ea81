"""Sweeps from Python: `fedrobust.sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.experiment_file import Draft
from fedrobust.federation.pool import Pool
from fedrobust.runner import Result
from fedrobust.tuning.objectives import SCORE, Direction
from fedrobust.tuning.running import STORAGE, Findings, Watch, run_sweep
from fedrobust.tuning.sweep import Plan, Sweep

HERE = Path("fedrobust.sweep")
"""What errors call the arguments, in the place of a file."""


def sweep(
    experiment: Experiment | str | PathLike[str],
    *,
    space: Mapping[str, Any],
    objective: str | Callable[[Result], float] = "test/balanced_accuracy",
    direction: Direction = "maximize",
    resume: bool = False,
    storage: str = STORAGE,
    watch: Watch | None = None,
    teams: int | None = None,
    pool: Pool | None = None,
    **options: Any,
) -> Findings:
    """Search options of an experiment.

    >>> found = fedrobust.sweep(
    ...     "experiments/quickstart.yaml",
    ...     space={"aggregation.f": {"int": [1, 3]}, "aggregation.rule": {"choice": ["mean", "krum"]}},
    ...     objective=lambda result: result.final["test/balanced_accuracy"] - result.final["attack/success_rate"],
    ...     trials=8,
    ... )
    >>> found.best[0].values, found.best[0].outcome.values

    experiment: one that is loaded, or its file.
    space: what is searched, by dotted path, as in a sweep file.
    objective: a metric's name as MLflow shows it, or a function of a run's `Result`, which the metric `score` is of.
    options: all others of a sweep file, e.g. `trials`, `seeds`, `attacks`, `sampler`, `pruner`, `fresh`, `name`;
        `objectives` instead of `objective` and `direction` for several.

    The rest is as in `run_sweep`. A function cannot be seen by a later sitting: whoever resumes must give the same one.

    Raises `ExperimentError`, with a line for everything that is wrong, `TrackingError`, `FederationError`.
    """
    metric = objective if isinstance(objective, str) else SCORE
    given: dict[str, Any] = {"objectives": [{"metric": metric, "direction": direction}], "space": dict(space)}
    base: Draft | None = None
    if isinstance(experiment, Experiment):
        base = Draft(Path(experiment.name), CommentedMap(experiment.resolved()), {})
    given["experiment"] = experiment.name if isinstance(experiment, Experiment) else fspath(experiment)
    draft = Draft(HERE, CommentedMap(given | options), {})
    plan = Plan(draft.checked(Sweep), draft, base)
    if not isinstance(objective, str):
        if plan.prunes and plan.sweep.pruner.per == "round":
            raise ExperimentError(f"{HERE}: pruner: a function is called when a run has ended; use none or wilcoxon")
        return run_sweep(plan, watch, resume=resume, storage=storage, teams=teams, pool=pool, score=objective)
    return run_sweep(plan, watch, resume=resume, storage=storage, teams=teams, pool=pool)
