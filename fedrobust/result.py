"""The result of a run, for Python: figures, tables, and the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Self

from fedrobust.records import Record, RecordedRun
from fedrobust.tracking import metrics

if TYPE_CHECKING:
    import pandas as pd

NAMED = 10
"""So many hospitals are named in the short text of a result; of more, their number is said."""
SHOWN = ("test/balanced_accuracy", "test/worst_hospital_accuracy", "attack/success_rate")
"""The figures in the short text of a result."""


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a run: its records, its final figures, and the model."""

    run_id: str
    """The id in MLflow, and the name of the folder."""
    name: str
    """The name in MLflow."""
    folder: Path
    """The run's folder, with journal, audit log, report and model."""
    recorded: RecordedRun
    """The journal: typed records of the start, the rounds, the evaluations and the end."""
    final: dict[str, Any]
    """The last figures under their MLflow names, `rounds_skipped`, `suspected`, `seconds`, and `model_sha256`, the
    digest of the state dict. After a stop: the last figures that there are, without the digest."""
    attackers: dict[int, str]
    """The truth of the simulation: malicious hospital → name of its attack."""
    suspected: list[int]
    """Hospitals whose reputation was below the threshold at the end."""
    stopped: str | None = None
    """Why a hook ended the run early, the text of its `fedrobust.Stop`; None if the run came to its end."""
    tensors: Callable[[], dict[str, Any]] = dict
    """Makes `state_dict`."""

    @cached_property
    def state_dict(self) -> dict[str, Any]:
        """Return the model's tensors, for `load_state_dict`; empty in the `Result` of a round that a sweep's objective
        gets. Imports torch."""
        return self.tensors()

    @classmethod
    def so_far(cls, records: Sequence[Record], folder: Path) -> Self:
        """Return the result of a run after these records of its journal, without the model.

        records: the first ones of the journal, in order.
        folder: the run's folder.
        """
        run = RecordedRun.of(records)
        final = figures_so_far(run)
        return cls(run.start.run, run.start.name, folder, run, final, run.attackers, final["suspected"])

    @cached_property
    def rounds(self) -> list[dict[str, Any]]:
        """Return the journal's records of the rounds, in order; `recorded.rounds` has them typed.

        Each has its evaluation's `metrics` if the model was evaluated, and `triggers` if there was a backdoor.
        Hospitals are texts, as in JSON: `rounds[-1]["weights"]["3"]`.
        """
        kept = ("metrics", "triggers")
        found = {record.round: record.fields() for record in self.recorded.evaluations}
        evaluated = {round: {name: own[name] for name in kept if name in own} for round, own in found.items()}
        return [record.fields() | evaluated.get(record.round, {}) for record in self.recorded.rounds]

    def frame(self) -> pd.DataFrame:
        """Return a pandas table with one row for each round, and the round as its index.

        The columns are the names of MLflow: `test/…` and `attack/success_rate` of rounds that were evaluated (NaN
        elsewhere), `defense/…`, `train/loss`, `round/seconds`, and so on; figures of single hospitals are in
        `hospitals`. The column `f` is what the rule allowed for, `skipped` the reason if a round was skipped.
        """
        import pandas as pd

        rows: dict[int, dict[str, Any]] = {}
        for record in self.recorded.rounds:
            rows[record.round] = {
                "skipped": record.skipped,
                "f": record.f,
                "attacking": len(record.attacking),
                **_without_hospitals(metrics(record)),
            }
        for evaluation in self.recorded.evaluations:
            rows.setdefault(evaluation.round, {}).update(metrics(evaluation))
        table = pd.DataFrame.from_dict(rows, orient="index").sort_index()
        table.index.name = "round"
        first = [name for name in table.columns if name.startswith(("test/", "attack/"))]
        return table[[*first, *(name for name in table.columns if name not in first)]]

    def hospitals(self) -> pd.DataFrame:
        """Return a pandas table with one row for each hospital, and its number as the index.

        `attack`: the name of its attack, empty for an honest one. `patches`, and `patches/LABEL` of each label: how
        many it trains on. `rounds`, `rejected`, `quarantined`: in how many rounds it took part, was refused, and was in
        quarantine. `reputation`, `suspected`: at the end. `weight`, `anomaly`, `train_loss`: means over its rounds, NaN
        where there are no figures. `accuracy`: of the last model on the test patches with the hospital's labels and
        stain, if that was measured.
        """
        import pandas as pd

        run, start = self.recorded, self.recorded.start
        last = run.evaluations[-1].hospitals if run.evaluations else {}
        labels = pd.DataFrame(start.hospital_labels, columns=[f"patches/{name}" for name in start.label_names])
        table = pd.DataFrame({"attack": [run.attackers.get(client, "") for client in range(start.clients)]})
        table["patches"] = labels.sum(axis=1)
        table = pd.concat([table, labels], axis=1)
        for name, field in (("rounds", "participants"), ("rejected", "rejected"), ("quarantined", "quarantined")):
            table[name] = run.marks(field).sum(axis=1)
        reputation = {client: value for record in run.rounds for client, value in record.reputation.items()}
        table["reputation"] = pd.Series(reputation, index=table.index, dtype=float)
        table["suspected"] = [client in self.suspected for client in range(start.clients)]
        for name, field in (("weight", "weights"), ("anomaly", "anomaly"), ("train_loss", "train_loss")):
            table[name] = pd.DataFrame(run.by_client(field)).mean(axis=1)
        table["accuracy"] = pd.Series(last, index=table.index, dtype=float)
        table.index.name = "hospital"
        return table

    def __repr__(self) -> str:
        """Return a few lines: the name, the main figures, who was suspected, and the folder."""
        made, planned = len(self.recorded.rounds), self.recorded.start.options.federation.rounds
        ended = (
            f"{made} rounds" if self.stopped is None else f"stopped after {made} of {planned} rounds: {self.stopped}"
        )
        figures = [f"{name} {self.final[name]:.3f}" for name in SHOWN if self.final.get(name) is not None]
        told = _some([f"{client} ({self.attackers.get(client, 'honest')})" for client in self.suspected])
        missed = _some(
            [f"{client} ({name})" for client, name in self.attackers.items() if client not in self.suspected]
        )
        lines = [
            f"Result of {shorten(self.name, 140, placeholder=' …')}: {ended}",
            "; ".join(figures) or "no figures",
            f"suspected: {told or 'nobody'}" + (f"; not suspected: {missed}" if missed else ""),
            str(self.folder),
        ]
        return "\n  ".join(lines)


def figures_so_far(run: RecordedRun, evaluated: Mapping[str, float | None] | None = None) -> dict[str, Any]:
    """Return the figures of a run up to now, as in `Result.final`, without the digest of the model.

    evaluated: the metrics of the model, by default those of the last evaluation.
    """
    last = run.rounds[-1] if run.rounds else None
    if evaluated is None:
        evaluated = run.evaluations[-1].metrics if run.evaluations else {}
    return {
        **evaluated,
        **(last.detection if last else {}),
        "suspected": list(last.suspected) if last else [],
        "rounds_skipped": run.skips.skipped,
        "seconds": sum(record.seconds.get("round") or 0.0 for record in run.rounds),
    }


def _without_hospitals(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if name.startswith(("round/", "train/", "defense/"))}


def _some(names: Sequence[str]) -> str:
    """Return the names; of many, how many there are and the first of them."""
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{len(names):,} hospitals ({', '.join(names[:NAMED])}, …; all are in .hospitals())"
