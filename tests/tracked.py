"""Small journals, and what MLflow's own database holds of them: for the tests of tracking."""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path

import reported

from fedrobust import tracking
from fedrobust.records import EvaluationRecord, Record, RoundRecord, RunEnd, RunStart, read_run
from fedrobust.tracking import metrics

ROUNDS = 4


def journal(rounds: int = ROUNDS, clients: int = 3) -> list[Record]:
    """A small journal in the order in which a run writes it: the evaluation of r follows round r + 1."""
    ids = range(clients)
    start = reported.journal(clients=clients, attackers=())[0]
    records: list[Record] = [RunStart.of(start)]
    for number in range(1, rounds + 1):
        records.append(
            RoundRecord.of(
                {
                    "round": number,
                    "participants": [],
                    "weights": {str(i): 1 / clients for i in ids},
                    "anomaly": {str(i): 0.1 * i for i in ids},
                    "reputation": {str(i): 0.5 for i in ids},
                    "train_loss": {str(i): 1.0 / number for i in ids},
                    "upload_bytes": 120,
                    "detection": {"defense/precision": 1.0},
                    "seconds": {"round": 0.75, "train": 0.5, "aggregate": 0.125},
                }
            )
        )
        if number > 1:
            records.append(evaluation(number - 1))
    return [*records, evaluation(rounds), RunEnd.of({"round": rounds, "final": {"test/accuracy": 0.99}})]


def evaluation(number: int) -> EvaluationRecord:
    metrics = {"test/accuracy": number / 10, "test/auroc": None}
    return EvaluationRecord.of({"round": number, "metrics": metrics})


def write(folder: Path, records: list[Record]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "journal.jsonl").write_bytes(b"".join(record.line() for record in records))


def sync(folder: Path) -> int:
    return tracking.sync(folder, read_run(folder))


def rows(database: Path, run_id: str) -> list[tuple[str, int, float, int]]:
    """Every metric row that MLflow holds for the run, read past MLflow."""
    with sqlite3.connect(database) as connection:
        query = "select key, step, value, timestamp from metrics where run_uuid = ?"
        return sorted(connection.execute(query, [run_id]).fetchall())


def status(database: Path, run_id: str) -> str:
    with sqlite3.connect(database) as connection:
        return str(connection.execute("select status from runs where run_uuid = ?", [run_id]).fetchone()[0])


def reasons(database: Path, run_id: str) -> dict[str, str]:
    """The tags of the run that say why it has ended."""
    with sqlite3.connect(database) as connection:
        query = "select key, value from tags where run_uuid = ? and key in ('failed', 'stopped')"
        return dict(connection.execute(query, [run_id]).fetchall())


def expected(records: list[Record]) -> Counter[tuple[str, int]]:
    return Counter((name, getattr(record, "round", 0)) for record in records for name in metrics(record))


def exactly_once(database: Path, run_id: str, records: list[Record]) -> None:
    assert Counter((key, step) for key, step, _, _ in rows(database, run_id)) == expected(records)
    assert set(expected(records).values()) == {1}
