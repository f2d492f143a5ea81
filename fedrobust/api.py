"""FedRobust from Python: one run, many runs, and what a session keeps between them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fedrobust.draft import Changes
from fedrobust.duels import load_duel
from fedrobust.errors import ExperimentError, Problem
from fedrobust.experiment import Experiment, Workers
from fedrobust.experiment_file import load
from fedrobust.federation.rounds import Hook
from fedrobust.matrices import load_matrix
from fedrobust.records import Record, RoundRecord
from fedrobust.result import Result
from fedrobust.runner import run as run_experiment
from fedrobust.screen import harmless
from fedrobust.sessions import Session, current_session
from fedrobust.studies.composer import StudyFile
from fedrobust.studies.study import Unwatched, Watch
from fedrobust.terminal import DuelProgress, MatrixProgress, Progress, SweepProgress, console
from fedrobust.tuning import load_sweep
from fedrobust.tuning.objectives import SCORE
from fedrobust.tuning.sweep import STORAGE
from fedrobust.validation import shown

if TYPE_CHECKING:
    from fedrobust.duels.running import DuelResult
    from fedrobust.matrices.running import MatrixResult
    from fedrobust.tuning.running import SweepResult
    from fedrobust.tuning.trials import Score


@dataclass(frozen=True)
class ProgressReport:
    """What a `progress` function is called with."""

    what: str
    """The current step, a short text."""
    done: int
    """How many rounds of a run, cells of a matrix, trials of a sweep or turns of a duel are done."""
    total: int | None
    """How many there will be; None if that is not known yet."""


Shown = bool | Callable[[ProgressReport], object] | None
"""How progress is shown: True shows it on standard error, a bar on a terminal and lines in a file; False shows nothing;
a function is called with each `ProgressReport`; None means True on a terminal, else False."""


def run(
    experiment: Experiment | str | PathLike[str],
    overrides: Changes = (),
    *,
    resume: str | None = None,
    hooks: Hook | Sequence[Hook] = (),
    progress: Shown = None,
) -> Result:
    """Run an experiment and record it.

    >>> result = fedrobust.run("experiments/quickstart.yaml", {"aggregation.rule": "krum"})
    >>> result.final["test/balanced_accuracy"]

    experiment: an `Experiment`, or the path of its file.
    overrides: dotted path → value, or texts such as `"aggregation.rule=krum"`.
    resume: id of a run of the same experiment that stopped; it continues, and ends with the same bits as without the
        stop. If the run has ended, its report is written again and MLflow gets missing records.
    hooks: a function or several, called with every record of the journal once it is committed, in order: `RunStart`,
        a `RoundRecord` for each round, an `EvaluationRecord` for each evaluated round (after the record of the next
        round, since evaluation goes on beside training), `RunEnd`. A hook that raises `Stop` ends the run: the result
        is that up to there. If a hook raises Optuna's `TrialPruned`, the run ends and the error is raised again. MLflow
        shows both as killed.
    progress: True, False, or a function that is called with each `ProgressReport`; by default True on a terminal.

    Meanwhile the umask is 077: only the owner can read files that this process makes. In a `session`, the experiment's
    `workers` are ignored.

    Raises `ExperimentError` (nothing has been written), `TrackingError`, `FederationError`, its subclass
    `UntrainedError` if the run has ended with every round skipped, and `AuditError` if the key of the audit log cannot
    be used.
    """
    experiment, own = _experiment(experiment, overrides), _hooks(hooks)
    _check_progress(progress)
    if not (resume is None or isinstance(resume, str)):
        raise ExperimentError(Problem("expected the id of a run", "resume", shown(resume)))
    with ExitStack() as stack:
        say: Callable[[str], None] = lambda what: None  # noqa: E731
        if callable(progress):
            reports = _Reports(progress, experiment.federation.rounds)
            own, say = [*own, reports.on_record], reports.say
        elif _visible(progress):
            bar = stack.enter_context(Progress(console(stderr=True), experiment))
            own, say = [*own, harmless(bar.on_record)], harmless(bar.say)
        if (session := current_session()) is None:
            return run_experiment(experiment, resume, own, say)
        with session.for_run(experiment, say) as (pool, hospitals):
            return run_experiment(experiment, resume, own, say, pool, hospitals)


def sweep(
    experiment: Experiment | StudyFile,
    overrides: Changes = (),
    *,
    space: Mapping[str, Any] | None = None,
    objective: str | Score | None = None,
    direction: Literal["maximize", "minimize"] | None = None,
    storage: str = STORAGE,
    teams: int | None = None,
    out: str | PathLike[str] | None = None,
    anyway: bool = False,
    progress: Shown = None,
    **options: Any,
) -> SweepResult:
    """Search options of an experiment.

    >>> found = fedrobust.sweep(
    ...     "experiments/quickstart.yaml",
    ...     space={"aggregation.f": {"int": [1, 3]}, "aggregation.rule": {"choice": ["mean", "krum"]}},
    ...     objective=lambda result: result.final["test/balanced_accuracy"] - result.final["attack/success_rate"],
    ...     trials=8,
    ... )
    >>> found.best[0].values, found.study.best_value, found.frame()

    experiment: an `Experiment` or the path of its file, with `space`; without `space`, the path of a sweep file, or a
        mapping with the options of one.
    overrides: changes of the experiment, or of the sweep file.
    space: the searched options, by dotted path, as in a sweep file.
    objective: a metric's name as MLflow shows it, by default `test/balanced_accuracy`; or a function of a run's
        `Result`, whose value becomes the metric `score`. If the pruner compares rounds, the function is called after
        every evaluated round, with the result so far, which has no `state_dict`. It may raise Optuna's `TrialPruned`.
        For a sweep file: a function, if the file's objective is the metric `score`.
    direction: whether the objective is maximized (the default) or minimized.
    storage: address of the Optuna storage.
    teams: how many runs at a time, by default as many as fit.
    out: folder of tables and pictures, by default below `mlruns/sweeps`.
    anyway: go on even if nothing is learnt.
    progress: as in `fedrobust.run`.
    options: all others of a sweep file, e.g. `trials`, `seeds`, `attacks`, `sampler`, `pruner`, `fresh`, `name`; for
        several objectives, `objectives` instead of `objective` and `direction`.

    Called again with the same arguments, a sweep continues where it stopped, or returns its results if it has ended. If
    any argument is different, `objective` included, it needs a different `name`; functions that `objective` calls are
    not compared.

    Raises `ExperimentError`, with a line for each error, `TrackingError`, `FederationError`.
    """
    from fedrobust.tuning.running import run_sweep  # with optuna; a run needs none of it

    out = _checked(teams, out, storage)
    score = objective if callable(objective) else None
    if space is None:
        given = {"objective": None if score else objective, "direction": direction, **options}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise ExperimentError(Problem("a sweep file has its own; change it with overrides", wrong[0]))
        if isinstance(experiment, Experiment):
            raise ExperimentError(Problem("an experiment needs the options that are searched", "space"))
        plan = load_sweep(experiment, overrides)
    else:
        if isinstance(experiment, Mapping):
            raise ExperimentError(Problem("a mapping is a sweep, and has its own", "space"))
        experiment = _experiment(experiment, overrides)
        if "objectives" in options and (direction is not None or isinstance(objective, str)):
            raise ExperimentError(Problem("give these, or `objective` and `direction`", "objectives"))
        first = {"metric": SCORE if score else "test/balanced_accuracy" if objective is None else objective}
        first |= {} if direction is None else {"direction": direction}
        plan = load_sweep({"experiment": experiment, "objectives": [first], "space": space, **options})
    if score and SCORE not in [each.metric for each in plan.sweep.objectives]:
        reason, hint = f"none of the objectives is the metric '{SCORE}', which a function makes", "metric: score"
        raise ExperimentError(Problem(reason, "objective", hint=hint))
    with _watching(progress, SweepProgress) as watch, _team(watch.say, teams) as pool:
        return run_sweep(plan, watch, storage=storage, teams=teams, out=out, pool=pool, score=score, anyway=anyway)


def matrix(
    file: StudyFile,
    overrides: Changes = (),
    *,
    quick: bool = False,
    teams: int | None = None,
    out: str | PathLike[str] | None = None,
    anyway: bool = False,
    progress: Shown = None,
) -> MatrixResult:
    """Run attacks × defences × settings × seeds, and report how well each defence works.

    file: the path of a matrix file, or a mapping with the options of one, whose `experiment` may be an `Experiment`.
    overrides: changes of it, e.g. `{"only.defences": ["mean", "median"]}`.
    quick: the small version, as the file says.

    The other arguments are as in `fedrobust.sweep`. Called again, a matrix continues where it stopped.

    Raises `ExperimentError`, with a line for each error, `TrackingError`, `FederationError`.
    """
    from fedrobust.matrices.running import run_matrix

    out, plan = _checked(teams, out), load_matrix(file, overrides, quick)
    with _watching(progress, MatrixProgress) as watch, _team(watch.say, teams) as pool:
        return run_matrix(plan, watch, teams=teams, out=out, pool=pool, anyway=anyway)


def duel(
    file: StudyFile,
    overrides: Changes = (),
    *,
    storage: str = STORAGE,
    teams: int | None = None,
    out: str | PathLike[str] | None = None,
    anyway: bool = False,
    progress: Shown = None,
) -> DuelResult:
    """Alternate a search for attacks with a search for a defence.

    file: the path of a duel file, or a mapping with the options of one, whose `experiment` may be an `Experiment`.
    overrides: changes of it, e.g. `{"turns": 1}`.

    The other arguments are as in `fedrobust.sweep`. Called again, a duel continues where it stopped.

    Raises `ExperimentError`, with a line for each error, `TrackingError`, `FederationError`.
    """
    from fedrobust.duels.running import run_duel

    out, plan = _checked(teams, out, storage), load_duel(file, overrides)
    with _watching(progress, partial(DuelProgress, turns=len(plan.turns))) as watch, _team(watch.say, teams) as pool:
        return run_duel(plan, watch, storage=storage, teams=teams, out=out, pool=pool, anyway=anyway)


def session(workers: int | Mapping[str, Any] | Workers | None = None) -> Session:
    """Keep Ray, the actors and the last data between the runs of a `with` block: only the first run starts them.

    >>> with fedrobust.session():
    ...     results = [fedrobust.run("experiments/quickstart.yaml", {"seed": seed}) for seed in (1, 2, 3)]

    workers: the number of client actors, or options as those of `workers` in an experiment; by default as many as fit.

    In a notebook, `session = fedrobust.session().start()` in one cell and `session.close()` in the last do the same.

    Raises `ExperimentError` for wrong options.
    """
    return Session(workers)


class _Reports:
    """Calls a `progress` function: for a run as a hook, for studies as a `Watch`."""

    def __init__(self, call: Callable[[ProgressReport], object], total: int | None = None) -> None:
        self._call = harmless(call)
        self._what, self._done, self._total = "", 0, total

    def on_record(self, record: Record) -> None:
        if isinstance(record, RoundRecord):
            self._done = record.round
            self._report()

    def plan(self, items: int, finished: int) -> None:
        self._total, self._done = items, finished
        self._report()

    def done(self, item: object) -> None:
        self._done += 1
        self._report()

    def say(self, what: str) -> None:
        self._what = what
        self._report()

    def _report(self) -> None:
        self._call(ProgressReport(self._what, self._done, self._total))


def _experiment(experiment: Any, overrides: Changes) -> Experiment:
    if isinstance(experiment, Experiment):
        return experiment if overrides == () else experiment.changed(overrides)
    if not isinstance(experiment, (str, PathLike)):
        found = shown(experiment)
        raise ExperimentError(Problem("expected an Experiment, or the path of its file", "experiment", found))
    return load(experiment, overrides)


def _hooks(hooks: Any) -> list[Hook]:
    found = [hooks] if callable(hooks) else list(hooks) if isinstance(hooks, (list, tuple)) else [hooks]
    if wrong := [each for each in found if not callable(each)]:
        raise ExperimentError(Problem("expected a function, or a list of functions", "hooks", shown(wrong[0])))
    return found


def _check_progress(progress: Any) -> None:
    if not (progress is None or isinstance(progress, bool) or callable(progress)):
        raise ExperimentError(Problem("expected true, false or a function", "progress", shown(progress)))


def _visible(progress: Shown) -> bool:
    return bool(sys.stderr and sys.stderr.isatty()) if progress is None else bool(progress)


@contextmanager
def _watching(progress: Shown, bar: Callable[[Any], AbstractContextManager[Any]]) -> Iterator[Watch[Any]]:
    """Yield what shows the progress of a study."""
    _check_progress(progress)
    if callable(progress):
        yield _Reports(progress)
    elif _visible(progress):
        with bar(console(stderr=True)) as visible:
            yield visible
    else:
        yield Unwatched()


def _checked(teams: object, out: object, storage: object = STORAGE) -> Path | None:
    """Return the folder `out`. Raises `ExperimentError` if an argument is not what it has to be."""
    if teams is not None and (isinstance(teams, bool) or not isinstance(teams, int) or teams < 1):
        raise ExperimentError(Problem("expected a number of at least 1, or None", "teams", shown(teams)))
    if not isinstance(storage, str):
        raise ExperimentError(Problem("expected the address of an Optuna storage", "storage", shown(storage)))
    if out is None:
        return None
    path = fspath(out) if isinstance(out, (str, PathLike)) else None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ExperimentError(Problem("expected the path of a folder", "out", shown(out)))
    return Path(path)


@contextmanager
def _team(say: Callable[[str], None], teams: int | None) -> Iterator[Any]:
    """Yield the session's teams; None if there is no session, and the study starts its own."""
    if (session := current_session()) is None:
        yield None
    else:
        with session.for_studies(say, teams) as pool:
            yield pool
