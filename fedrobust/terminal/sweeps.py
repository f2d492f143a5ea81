"""Sweeps and duels: trials as they finish, and the results."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedrobust.terminal.elements import Bar, number, plain
from fedrobust.terminal.pace import Pace
from fedrobust.texts import enumerated

if TYPE_CHECKING:
    from fedrobust.duels.results import Turn
    from fedrobust.duels.running import DuelResult
    from fedrobust.tuning.running import SweepResult, TrialDone
    from fedrobust.tuning.study import Trial


class SweepProgress(Bar):
    """A bar over the trials of a sweep, with the best value beside it; a line for each trial if the output is a
    file."""

    def __init__(self, out: Console, noun: str = "trials") -> None:
        super().__init__(out, None, noun)
        self._batch = self._last = time.monotonic()
        """When the current batch of trials began, and when the last trial was reported."""

    def plan(self, items: int, finished: int) -> None:
        """There are `items` trials; `finished` of them are done, including those of earlier executions."""
        self._pace = Pace()
        self._counted(finished, items)
        self._batch = self._last = time.monotonic()
        self._bar.update(self._task, total=items, completed=finished, behind="")
        if not self._out.is_terminal:
            self._line(self._count())

    def done(self, item: TrialDone) -> None:
        """A trial has been finished."""
        trial, best = item
        self._counted(trial.number + 1, self._total)
        self._pace_of_batch(time.monotonic())
        front = f"best {_values(best[0])} (trial {best[0].number})" if len(best) == 1 else f"{len(best)} none beats"
        shown = ", ".join(filter(None, (front if best else "", self._left())))
        self._bar.update(self._task, completed=self._done, behind=shown)
        reason = getattr(trial.outcome, "reason", "")
        if reason:
            self._line(f"trial {trial.number} failed: {reason}", keep="\n")
        elif not self._out.is_terminal:
            ended = _values(trial) or "ended early"
            self._line(f"{self._count()}: trial {trial.number}: {ended}; {front}")

    def _pace_of_batch(self, now: float) -> None:
        """Note the duration of a trial; those of a batch are reported together at its end."""
        if now - self._last > 0.1 * (self._last - self._batch):
            self._batch = self._last
        self._last = now
        self._pace.add(now - self._batch, now)


class DuelProgress(SweepProgress):
    """A bar over the trials of a turn's search, and a line for each turn."""

    def __init__(self, out: Console, turns: int | None = None) -> None:
        """`turns`: how many there are."""
        super().__init__(out, "trials of this search")
        self._turns, self._taken = turns, 0

    def done(self, item: Turn | TrialDone) -> None:
        """A turn has been judged, or has failed; or a trial of its search has been finished."""
        if isinstance(item, tuple):
            super().done(item)
            return
        turn = item
        self._taken += 1
        self._total = None  # the next turn may have no search
        shown = f"failed: {turn.failed}" if turn.failed else f"{turn.value:.3f}, under {enumerated(turn.equally_bad)}"
        counted = f"{self._taken}/{self._turns} turns: " if self._turns else ""
        self._line(f"{counted}{turn.defence}, {turn.label}: {shown}", keep="\n")


def show_duel(out: Console, findings: DuelResult) -> None:
    """Print the objective of each defence after each turn, and where to find the rest."""
    labels = list(dict.fromkeys(turn.label for turn in findings.turns))
    objective = findings.match.duel.objective
    title = plain(f"{objective.metric} under the worst known attack, fresh seeds")
    table = Table(title=title, title_justify="left")
    for column in ("defence", *labels):
        table.add_column(_lines(column.split(" ")), overflow="fold")
    for defence in findings.match.duel.defences:
        own = [turn for turn in findings.turns if turn.defence == defence]
        worth = {
            turn.label: ["failed"] if turn.failed else [f"{turn.value:.3f}", enumerated(turn.equally_bad)]
            for turn in own
        }
        table.add_row(plain(defence), *(_lines(worth.get(label, ["–"])) for label in labels))
    out.print(table)
    for turn in findings.turns:
        if turn.unlearnt:
            out.print(plain(f"{turn.defence}, {turn.label}: {turn.unlearnt}"), soft_wrap=True)
    if failed := sum(bool(turn.failed) for turn in findings.turns):
        out.print(f"{failed} turns failed; they are listed in duel.md, and taken again when the duel is started again")
    out.print(plain(f"every attack and seed, what was found, the curve: {findings.folder}"), soft_wrap=True)


def show_sweep(out: Console, findings: SweepResult) -> None:
    """Print the best trials, their values on fresh seeds, and where to find the rest."""
    from fedrobust.tuning.views import tied

    metrics = [objective.metric for objective in findings.plan.sweep.objectives]
    again = {each.trial.number: each.values for each in findings.fresh}
    table = Table(title=plain(findings.plan.sweep.name), title_justify="left")
    for column in ("trial", *metrics, *(f"{metric}, fresh seeds" for metric in metrics if again), "options"):
        table.add_column(plain(column), overflow="fold")
    for trial in [each.trial for each in findings.fresh] or findings.best:
        fresh = again.get(trial.number) or [math.nan] * len(metrics)
        figures = [*_numbers(trial), *([number(value) for value in fresh] if again else [])]
        options = _lines(f"{path}: {_told(value)}" for path, value in trial.values.items())
        table.add_row(str(trial.number), *figures, options)
    if findings.unlearnt:
        out.print(plain(findings.unlearnt), soft_wrap=True)
    out.print(table if findings.best else "no trial was completed")
    completed = [values for trial in findings.trials if (values := getattr(trial.outcome, "values", ()))]
    if findings.best and (equal := tied(completed, getattr(findings.best[0].outcome, "values", ()))):
        out.print(plain(equal), soft_wrap=True)
    counts = Counter(type(trial.outcome).__name__.lower() for trial in findings.trials)
    out.print(", ".join(f"{count} trials {name}" for name, count in sorted(counts.items())) or "no trials")
    for each in findings.fresh:
        for seed, reason in each.failed.items():
            out.print(
                plain(f"trial {each.trial.number}, fresh seed {seed} failed: {reason}", keep="\n"), soft_wrap=True
            )
    if any(each.failed for each in findings.fresh):
        out.print("runs on fresh seeds that failed are made again when the same command is given again")
    out.print(plain(f"tables, sweep.html, best.yaml: {findings.folder}"), soft_wrap=True)


def _numbers(trial: Trial) -> list[str]:
    return [number(value) for value in getattr(trial.outcome, "values", ())]


def _values(trial: Trial) -> str:
    return ", ".join(_numbers(trial))


def _lines(lines: Iterable[str]) -> Text:
    return Text("\n").join(map(plain, lines))


def _told(value: Any) -> str:
    """Return a value of an experiment file as a short text."""
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
