"""One run: its progress, its final table, its audit."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedrobust.databases import without_password
from fedrobust.records import EvaluationRecord, Record, RoundRecord
from fedrobust.terminal.elements import Bar, plain
from fedrobust.users_code import loaded

if TYPE_CHECKING:
    from fedrobust.audit.verification import Verdict
    from fedrobust.experiment import Experiment
    from fedrobust.result import Result


HERE = "http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
"""Where the MLflow UI of this machine shows the runs."""


class Progress(Bar):
    """A bar over the rounds, with the latest figures beside it."""

    def __init__(self, out: Console, experiment: Experiment) -> None:
        super().__init__(out, experiment.federation.rounds, "rounds")
        self._rounds = experiment.federation.rounds
        self._skipped = 0
        self._first, self._made = 0, math.inf
        """The first round that it was notified of, and the first one that was made."""

    def on_record(self, record: Record) -> None:
        """Hook of the federation: receives each committed record of the journal."""
        if isinstance(record, RoundRecord):
            self._first = self._first or record.round
            if record.skipped is not None:
                self._skipped += 1
            else:
                self._made = min(self._made, record.round)
            training = f"training, {self._skipped} skipped" if self._skipped else "training"
            self._counted(record.round, self._rounds)
            if took := record.seconds.get("round"):
                self._pace.add(took, time.monotonic())
            self._bar.update(self._task, completed=record.round, description=training)
            if record.skipped is not None and not self._out.is_terminal:
                self._line(f"round {record.round}/{self._rounds} skipped: {record.skipped}")
        elif isinstance(record, EvaluationRecord):
            untrained = self._first == 1 and record.round < self._made
            figures = "no round made yet" if untrained else _figures(record.metrics)
            self._bar.update(self._task, behind="  ".join(filter(None, (figures, self._left()))))
            if not self._out.is_terminal:
                self._line(f"round {record.round}/{self._rounds}: {figures}")


def _figures(metrics: Mapping[str, float | None]) -> str:
    names = {"balanced accuracy": "test/balanced_accuracy", "attack success": "attack/success_rate"}
    there = {title: value for title, name in names.items() if (value := metrics.get(name)) is not None}
    return "  ".join(f"{title} {value:.3f}" for title, value in there.items())


def show_code(out: Console) -> None:
    """Print which code of the user's was loaded, and from where."""
    for name, file in loaded().items():
        out.print(plain(f"your code: {name} from {file}"), soft_wrap=True)


def show_result(out: Console, result: Result, experiment: Experiment | None = None) -> None:
    """Print the final table, and where to look next; with `experiment`, also whether its secrets are really secret."""
    from fedrobust.naming import NOT_SECRET, secret, shared
    from fedrobust.report.story import SHORT_LIST, unlearnt
    from fedrobust.report.titles import titles_of_one

    table = Table(title=plain(result.name), title_justify="left", show_header=False)
    for name, title in titles_of_one(result.final).items():
        if result.final.get(name) is not None and not name.startswith("defense/"):  # suspicions are listed below
            table.add_row(plain(title), f"{result.final[name]:.3f}")
    if "attack/success_rate" not in result.final:
        table.add_row("attack success", "– (no attack here has a target)")
    skips = result.recorded.skips
    table.add_row("rounds skipped", plain(skips.summary() or f"none of {skips.rounds}"))
    table.add_section()
    attackers = result.attackers
    named = ", ".join(f"{client} ({name})" for client, name in sorted(attackers.items()))
    if len(attackers) > SHORT_LIST:
        named = f"{len(attackers):,} of {result.recorded.start.clients:,}: " + ", ".join(
            f"{count:,} {name}" for name, count in Counter(attackers.values()).most_common()
        )
    table.add_row("malicious hospitals", plain(named or "none"))
    acts = result.recorded.acts
    table.add_row("suspected" if acts else "suspected (recorded only)", _suspected(result))
    protocol = result.recorded.start.options.privacy.name
    if experiment is not None and shared(experiment):
        fixed = f"{NOT_SECRET}: all secrets come from the experiment's seed (privacy.randomness)"
        protocol = f"{experiment.privacy.name}, {'real secrets' if secret(experiment) else fixed}"
    table.add_row("protocol", plain(protocol))
    out.print(table)
    if warning := unlearnt(result.recorded):
        out.print(plain(warning), soft_wrap=True)
    out.print(plain(f"run {result.run_id}, recorded in {result.folder}"))
    out.print(plain(f"report: {result.folder / 'report.html'}"))
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    where = (
        plain(f"{without_password(uri).rstrip('/')}/#/runs/{result.run_id}")
        if uri.startswith("http")
        else Text.assemble(("fedrobust ui", "bold"), f", then {HERE}")
    )
    out.print("in the MLflow UI:", where, soft_wrap=True)


def _suspected(result: Result) -> str:
    """Say who is suspected: by name, or, of many, how many and whom to look at first."""
    from fedrobust.report.story import SHORT_LIST, hospitals, ranked

    suspected, attackers = set(result.suspected), set(result.attackers)
    kinds = {
        "rightly": suspected & attackers,
        "wrongly": suspected - attackers,
        "not suspected:": attackers - suspected,
    }
    if sum(map(len, kinds.values())) <= 2 * SHORT_LIST:
        parts = [
            f"{label} {', '.join(f'hospital {c}' for c in sorted(clients))}"
            for label, clients in kinds.items()
            if clients
        ]
        return "; ".join(parts) or "nobody, rightly so"
    stories = [replace(story, acts=False) for story in hospitals(result.recorded)]  # the verdict is then suspicion
    looked_at = {"wrongly, in most rounds:": "wrongly", "not suspected, with most weight:": "missed"}
    first = {label: ranked(stories)[kind][: SHORT_LIST // 2] for label, kind in looked_at.items()}
    rightly, wrongly, missed = map(len, kinds.values())
    return "; ".join(
        [
            f"{rightly:,} rightly, {wrongly:,} wrongly, {missed:,} attackers not",
            *(f"{label} {', '.join(f'hospital {each.client}' for each in own)}" for label, own in first.items() if own),
            "more in the report",
        ]
    )


def show_profile(out: Console, folder: Path) -> None:
    """Print the share of each step in the round of median length, from the timeline in a run's folder, if there is
    one."""
    from fedrobust.records.trace import TRACE, read_trace

    if not (folder / TRACE).exists():
        return
    trace = read_trace(folder / TRACE)
    if (whole := trace.median_round) is None:
        return
    title = f"round {whole.args.get('round', 0)}, the median: {whole.seconds:.2f} s"
    table = Table(title=plain(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    for name, seconds in trace.shares().items():
        table.add_row(plain(name), f"{seconds:.3f} s", f"{seconds / whole.seconds:.1%}")
    out.print(table)
    out.print(plain(f"timeline: {folder / TRACE}, for chrome://tracing or Perfetto"), soft_wrap=True)


def show_verdict(out: Console, verdict: Verdict, key: Path | None) -> None:
    """Print what a valid audit log covers, and what could not be compared; `key`: the public key file used, if any."""
    table = Table(title=f"unbroken: {verdict.lines} lines, {verdict.rounds} rounds and the end", title_justify="left")
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # keys and paths must not be cut
    table.add_row("run", plain(verdict.run))
    table.add_row("fits", plain(", ".join(verdict.files)))
    table.add_row("not covered", plain(", ".join(verdict.uncovered) or "–"))
    table.add_row("not here to compare", plain(", ".join(verdict.missing) or "–"))
    untrained = "; no round changed the model" if 0 < verdict.rounds == verdict.skipped else ""
    table.add_row("rounds skipped", f"{verdict.skipped} of {verdict.rounds}{untrained}")
    table.add_row("last line", plain(verdict.head))
    table.add_row("signed by", plain(verdict.key))
    table.add_row("which is", plain(f"the key in {key}" if key else "what the log says itself: give --key PUB"))
    out.print(table)
