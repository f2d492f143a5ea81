"""Sweeps from Python: `fedrobust.sweep`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from fedrobust.draft import Draft
from fedrobust.errors import ExperimentError, Problem
from fedrobust.experiment import Experiment
from fedrobust.federation.pool import Pool
from fedrobust.runner import Result
from fedrobust.studies.study import Watch
from fedrobust.tuning.objectives import SCORE, Direction
from fedrobust.tuning.running import STORAGE, SweepResult, TrialDone, run_sweep
from fedrobust.tuning.sweep import Sweep, SweepPlan

HERE = Path("fedrobust.sweep")
"""The name by which errors refer to the arguments, instead of a file."""


def sweep(
    experiment: Experiment | str | PathLike[str],
    *,
    space: Mapping[str, Any],
    objective: str | Callable[[Result], float] = "test/balanced_accuracy",
    direction: Direction = "maximize",
    storage: str = STORAGE,
    watch: Watch[TrialDone] | None = None,
    teams: int | None = None,
    pool: Pool | None = None,
    **options: Any,
) -> SweepResult:
    """Search options of an experiment.

    >>> found = fedrobust.sweep(
    ...     "experiments/quickstart.yaml",
    ...     space={"aggregation.f": {"int": [1, 3]}, "aggregation.rule": {"choice": ["mean", "krum"]}},
    ...     objective=lambda result: result.final["test/balanced_accuracy"] - result.final["attack/success_rate"],
    ...     trials=8,
    ... )
    >>> found.best[0].values, found.best[0].outcome.values

    experiment: a loaded experiment, or its file.
    space: the searched options, by dotted path, as in a sweep file.
    objective: a metric's name as MLflow shows it, or a function of a run's `Result`; its value becomes the metric
        `score`.
    direction: whether the objective is maximized or minimized.
    options: all others of a sweep file, e.g. `trials`, `seeds`, `attacks`, `sampler`, `pruner`, `fresh`, `name`; for
        several objectives, `objectives` instead of `objective` and `direction`.

    The other arguments are those of `run_sweep`. Called again with the same arguments, a sweep continues where it
    stopped, or returns its results if it has ended. If any argument is different, `objective` included, it needs a
    different `name`; functions that `objective` calls are not compared.

    Raises `ExperimentError`, with a line for each error, `TrackingError`, `FederationError`.
    """
    metric = objective if isinstance(objective, str) else SCORE
    given: dict[str, Any] = {"objectives": [{"metric": metric, "direction": direction}], "space": dict(space)}
    base: Draft | None = None
    if isinstance(experiment, Experiment):
        base = Draft(Path(experiment.name), CommentedMap(experiment.resolved()), {})
    given["experiment"] = experiment.name if isinstance(experiment, Experiment) else fspath(experiment)
    draft = Draft(HERE, CommentedMap(given | options), {})
    plan = SweepPlan(draft.checked(Sweep), draft, base)
    if not isinstance(objective, str):
        if plan.prunes and plan.sweep.pruner.per == "round":
            problem = Problem("a function is called when a run has ended; use none or wilcoxon")
            raise ExperimentError(problem.at(draft.entry("pruner")))
        return run_sweep(plan, watch, storage=storage, teams=teams, pool=pool, score=objective)
    return run_sweep(plan, watch, storage=storage, teams=teams, pool=pool)
