"""What the command line shows: progress, the final table, the lists."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from fedrobust.options import Options, members, summary

if TYPE_CHECKING:
    from fedrobust.experiment import Experiment
    from fedrobust.federation.verification import Verdict
    from fedrobust.matrix.cells import Outcome
    from fedrobust.matrix.grid import Cell
    from fedrobust.matrix.running import Findings
    from fedrobust.report import Comparison
    from fedrobust.runner import Result


def console() -> Console:
    """The terminal; as wide as it says it is, 100 columns where it is a file."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=100)


class _Bar:
    """A bar with some text behind it; what is said is a plain line where the output is a file."""

    def __init__(self, out: Console, first: str, total: int | None) -> None:
        self._out = out
        self._bar = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TextColumn("{task.fields[behind]}"),
            console=out,
            disable=not out.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(first, total=total, behind="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, what: str) -> None:
        """What is being done now."""
        self._bar.update(self._task, description=what)
        if not self._out.is_terminal:
            self._out.print(what)


class Progress(_Bar):
    """A bar over the rounds, with the latest figures beside it."""

    def __init__(self, out: Console, experiment: Experiment) -> None:
        super().__init__(out, "reading the data", experiment.federation.rounds)
        self._rounds = experiment.federation.rounds

    def on_record(self, record: dict[str, Any]) -> None:
        """Hook of the federation: a committed record of the journal."""
        if record["kind"] == "round":
            self._bar.update(self._task, completed=record["round"], description="training")
        elif record["kind"] == "evaluation":
            figures = _figures(record["metrics"])
            self._bar.update(self._task, behind=figures)
            if not self._out.is_terminal:
                self._out.print(f"round {record['round']}/{self._rounds}: {figures}")


class MatrixProgress(_Bar):
    """A bar over the cells of a matrix, with the time left; a line for each cell where the output is a file."""

    def __init__(self, out: Console) -> None:
        super().__init__(out, "reading", None)
        self._cells, self._finished, self._before = 0, 0, 0
        self._began: float | None = None

    def plan(self, cells: int, finished: int) -> None:
        """There are at most so many cells; so many of them are finished, those of earlier sittings included."""
        ran = self._finished - self._before
        self._began = self._began or time.monotonic()
        self._cells, self._finished, self._before = cells, finished, finished - ran
        self._bar.update(self._task, total=cells, completed=finished)
        if not self._out.is_terminal:
            self._out.print(f"at most {cells} cells, {finished} are there")

    def cell(self, cell: Cell, outcome: Outcome) -> None:
        """A cell has been finished."""
        self._finished += 1
        left = f"{self._left()} left"
        self._bar.update(self._task, completed=self._finished, description=cell.label, behind=left)
        if outcome.failed:
            self._out.print(escape(f"{cell.label} failed: {outcome.failed}"), soft_wrap=True)
        elif not self._out.is_terminal:
            accuracy = outcome.figures["balanced_accuracy"]
            shown = f"{self._finished}/{self._cells} {cell.label}: balanced accuracy {accuracy:.3f}, at most {left}"
            self._out.print(escape(shown), soft_wrap=True)

    def _left(self) -> str:
        """By the pace of this sitting."""
        ran = self._finished - self._before
        if self._began is None or ran == 0:
            return "–"
        minutes = round((time.monotonic() - self._began) / ran * (self._cells - self._finished) / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def show_findings(out: Console, findings: Findings) -> None:
    """The headline of every defence, and where the rest is."""
    for setting in dict.fromkeys(verdict.setting for verdict in findings.verdicts):
        table = Table(title=f"{setting}: least robustness over the attacks, fresh seeds", title_justify="left")
        for column in ("defence", "robustness", "between", "worst attack", "backdoor gain", "cost"):
            table.add_column(column)
        for verdict in findings.verdicts:
            if verdict.setting == setting:
                least = verdict.robustness
                between = f"{least.low:.3f} – {least.high:.3f}" if math.isfinite(least.low) else "too few seeds"
                figures = [_number(estimate.value) for estimate in (least, verdict.gain, verdict.cost)]
                table.add_row(verdict.defence, figures[0], between, verdict.worst_attack, *figures[1:])
        out.print(table)
    if failed := sum(verdict.unfinished for verdict in findings.verdicts):
        out.print(f"{failed} cells failed; they are listed in table.md, and tried again when the matrix is run again")
    out.print(f"tables and pictures: {escape(str(findings.folder))}")


def show_comparison(out: Console, comparison: Comparison, page: Path) -> None:
    """The groups and their final figures, what a reader has to know, and where the page is."""
    from fedrobust.report.compare import FIGURES, shown

    figures = [name for name in comparison.figures if name not in _IN_THE_PAGE]
    numbers = {"": [str(place) for place in range(1, len(comparison.groups) + 1)]}
    options = {path: [group.options.get(path, "–") for group in comparison.groups] for path in comparison.columns}
    measured = {"n": [str(len(group.runs)) for group in comparison.groups]} | {
        FIGURES[name]: [shown(name, group.figures[name], len(group.runs)) for group in comparison.groups]
        for name in figures
    }
    whole = _columns(numbers | options | measured)
    if Measurement.get(out, out.options.update(max_width=10_000), whole).maximum <= out.width:
        out.print(whole)
    else:
        out.print(_columns(numbers | options), _columns(numbers | measured), sep="\n")
    out.print("mean ± standard deviation over n seeds")
    for note in comparison.notes:
        out.print(escape(note), soft_wrap=True)
    out.print(f"curves and reputations: {escape(str(page))}", soft_wrap=True)


def _columns(columns: Mapping[str, Sequence[str]]) -> Table:
    """A table whose heads are broken where their words end."""
    table = Table()
    for head in columns:
        table.add_column(escape(head.replace(".", ".\n") if "." in head else head.replace(" ", "\n")), overflow="fold")
    for line in zip(*columns.values(), strict=True):
        table.add_row(*map(escape, line))
    return table


_IN_THE_PAGE = ("defense/precision", "defense/recall")
"""Figures for which the terminal is too narrow."""


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _figures(metrics: dict[str, float]) -> str:
    text = f"balanced accuracy {metrics['test/balanced_accuracy']:.3f}"
    if "attack/success_rate" in metrics:
        text += f"  attack success {metrics['attack/success_rate']:.3f}"
    return text


_SHOWN = {
    "test/accuracy": "accuracy",
    "test/balanced_accuracy": "balanced accuracy",
    "test/auroc": "AUROC",
    "test/worst_hospital_accuracy": "accuracy at the worst hospital",
    "attack/success_rate": "attack success",
}


def show_result(out: Console, result: Result) -> None:
    """The final table, and where to look next."""
    table = Table(title=escape(result.name), title_justify="left", show_header=False)
    for key, label in _SHOWN.items():
        if key in result.final:
            table.add_row(label, f"{result.final[key]:.3f}")
    if "attack/success_rate" not in result.final:
        table.add_row("attack success", "– (no attack here has a target)")
    table.add_section()
    table.add_row("malicious hospitals", ", ".join(f"{c} ({a})" for c, a in sorted(result.attackers.items())) or "none")
    table.add_row("suspected", _suspected(result))
    out.print(table)
    out.print(f"run {result.run_id}, recorded in {escape(str(result.folder))}")
    out.print(f"report: {escape(str(result.folder / 'report.html'))}")
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    where = (
        f"the server at {escape(uri)}"
        if uri
        else "[bold]make ui[/bold], then http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
    )
    out.print(f"compare runs in the MLflow UI: {where}")


def _suspected(result: Result) -> str:
    rightly = [c for c in result.suspected if c in result.attackers]
    wrongly = [c for c in result.suspected if c not in result.attackers]
    missed = [c for c in result.attackers if c not in result.suspected]
    parts = [
        f"{label} {', '.join(f'hospital {c}' for c in sorted(clients))}"
        for label, clients in (("rightly", rightly), ("wrongly", wrongly), ("not suspected:", missed))
        if clients
    ]
    return "; ".join(parts) or "nobody, rightly so"


def show_verdict(out: Console, verdict: Verdict, key: Path | None) -> None:
    """What an audit log that holds vouches for, and what could not be compared."""
    table = Table(title=f"unbroken: {verdict.lines} lines, {verdict.rounds} rounds and the end", title_justify="left")
    table.show_header = False
    table.add_row("run", escape(verdict.run))
    compared = ["the journal", *([] if "checkpoint.npz" in verdict.missing else ["the model"]), *verdict.files]
    table.add_row("fits", escape(", ".join(compared)))
    table.add_row("not here to compare", escape(", ".join(verdict.missing)) or "–")
    table.add_row("last line", verdict.head)
    table.add_row("signed by", verdict.key)
    table.add_row("which is", f"the key in {escape(str(key))}" if key else "what the log says itself: give --key PUB")
    out.print(table)


def families() -> dict[str, dict[str, type[Options]]]:
    """Every family of options that an experiment file can choose from: heading → name → class."""
    from fedrobust.aggregation import RowRule, Rule, Stage
    from fedrobust.attacks import Attack, Identity, Schedule
    from fedrobust.data import Partition, Source, StainNormalisation
    from fedrobust.learning import LocalLoss, LocalOptimizer, Model, ServerOptimizer
    from fedrobust.secure import Privacy
    from fedrobust.trust import Detector, Reputation

    return {
        "data.source": members(Source),
        "data.partition": members(Partition),
        "data.stain_normalisation": members(StainNormalisation),
        "learning.model": members(Model),
        "learning.local.optimizer": members(LocalOptimizer),
        "learning.local.loss": members(LocalLoss),
        "learning.server": members(ServerOptimizer),
        "attacks": members(Attack),
        "attacks.schedule": members(Schedule),
        "attacks.identity": members(Identity),
        "aggregation.stages": members(Stage),
        "aggregation.rule": members(Rule, RowRule),
        "trust.detector": members(Detector),
        "trust.reputation": members(Reputation),
        "privacy": members(Privacy),
    }


def show_options(out: Console) -> None:
    """All options by family, one line each."""
    for family, options in families().items():
        out.print(f"[bold]{family}[/bold]")
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column()
        for name, option in options.items():
            table.add_row(name, escape(summary(option)))
        out.print(table)
    out.print('A class of your own goes wherever these go: name: "package.module:Class"')


def show_machine(out: Console) -> None:
    """Cores, memory, GPUs, versions, the tracking store, and which data sets are found."""
    import torch

    table = Table(show_header=False)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    table.add_row("cores", str(usable))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    table.add_row("GPUs", ", ".join(gpus) or "none")
    packages = ("torch", "ray", "pytorch-lightning", "mlflow", "optuna", "timm")
    table.add_row("Python", platform.python_version())
    table.add_row("packages", ", ".join(f"{name} {version(name)}" for name in packages))
    table.add_row("Ray cluster", os.environ.get("RAY_ADDRESS", "none: a local one is started for each run"))
    table.add_row("MLflow store", _store())
    table.add_section()
    for name, source in members(_source()).items():
        try:
            found = source.model_validate({"name": name}).found()  # type: ignore[attr-defined]
        except Exception as error:
            found = f"not looked for: {error}"
        table.add_row(f"data: {name}", escape(found or "not found; give it a path, or set FEDROBUST_DATA"))
    out.print(table)


def _source() -> type[Options]:
    from fedrobust.data import Source

    return Source


def _store() -> str:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri
    database = Path("mlruns/mlflow.db")
    return f"{database} ({'present' if database.exists() else 'made by the first run'})"
