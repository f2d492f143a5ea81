"""A journal in which it is known who attacks, who is caught, and who is wrongly suspected: for the tests of reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedrobust.records import RecordedRun, run_of, written


def journal(clients: int = 6, rounds: int = 5, attackers: tuple[int, ...] = (1, 4), weights: bool = True) -> list[Any]:
    """A run in which hospital 1 is caught from round 3 on, hospital 0 is wrongly suspected once, and 5 is rejected."""
    start = {
        "kind": "start",
        "run": "0123",
        "experiment": {
            "name": "a <b>trial</b> & more",
            "seed": 7,
            "data": {"partition": {"name": "dirichlet", "alpha": 0.5}},
            "attacks": [{"name": "sign_flip"}] if attackers else [],
            "aggregation": {"stages": [{"name": "nnm"}], "rule": {"name": "krum"}},
        },
        "clients": clients,
        "label_names": ["benign", "<script>alert(1)</script>"],
        "attackers": {str(client): "sign_flip" for client in attackers},
        "hospital_labels": [[10 * client, 5] for client in range(clients)],
        "parameters": 1234,
        "digest": "ab" * 32,
    }
    records: list[dict[str, Any]] = [start]
    for number in range(1, rounds + 1):
        present = [client for client in range(clients) if client != 3 or number != 2]
        records.append(
            {
                "kind": "round",
                "round": number,
                "participants": present,
                "attacking": list(attackers),
                "rejected": {"5": "not finite"} if number == 2 and clients > 5 else {},
                "weights": {str(client): client / 100 for client in present} if weights else None,
                "anomaly": {str(client): None if client == 0 else 0.2 for client in present},
                "anomaly_parts": {str(client): {"norm": 0.2, "average_cosine": client / 100} for client in present},
                "reputation": {str(client): 0.1 * number for client in range(clients)},
                "suspected": [
                    client for client in (0, 1) if (client == 0 and number == 2) or (client == 1 and number > 2)
                ],
                "detection": {"defense/precision": 0.5},
                "seconds": {"round": 0.25},
            }
        )
        metrics = {"test/accuracy": 0.9, "test/balanced_accuracy": 0.1 * number, "attack/success_rate": None}
        records.append(
            {
                "kind": "evaluation",
                "round": number,
                "metrics": metrics,
                "hospitals": {str(client): 0.5 for client in range(clients)},
                "confusion": [[8, 2], [1, 9]],
            }
        )
    misread = {"indices": [2, 0], "truth": [0, 1], "predicted": [1, 0], "confidence": [0.6, 0.99]}
    return [*records, {"kind": "end", "round": rounds, "final": {}, "misread": misread}]


def quarantining(acts: bool = True) -> list[Any]:
    """The same run with quarantine: 1 is in from round 4 on, 2 in round 2 alone; 4 attacks from round 3 on, and changes
    its identity in rounds 3 and 5."""
    records = journal()
    records[0]["experiment"]["trust"] = {"acts": acts}
    for record in records:
        if record["kind"] == "round":
            number = record["round"]
            record["quarantined"] = [client for client, inside in ((1, number > 3), (2, number == 2)) if inside]
            record["attacking"] = [1, 4] if number > 2 else [1]
            if number > 2:
                record["identities"] = {"4": 6 if number < 5 else 7}
    return records


def recorded(records: list[Any]) -> RecordedRun:
    """The run that these lines of a journal say."""
    return run_of(b"".join(map(written, records)))


def one_round(accuracy: float, clients: int = 5) -> RecordedRun:
    """A run of one round, in which nobody attacks."""
    start, made, evaluated, _ = journal(clients=clients, rounds=1, attackers=())
    metrics = {"test/balanced_accuracy": accuracy}
    own = {"suspected": [], "detection": {}, "anomaly": {}}
    return recorded([start, made | own, evaluated | {"metrics": metrics}])


def write(folder: Path, records: list[Any]) -> Path:
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


IMAGES = np.random.default_rng(0).integers(0, 255, (4, 12, 12, 3), dtype=np.uint8)


def compared(rule: str = "krum", seed: int = 7, accuracy: float = 0.5, **changes: Any) -> list[Any]:
    """The same run with another rule and seed, whose balanced accuracy is known: that of rounds 3 to 5.

    `changes` are made to the experiment.
    """
    records = journal()
    aggregation = {"stages": [{"name": "nnm"}], "rule": {"name": rule}, "f": 1}
    experiment = records[0]["experiment"] | {"seed": seed, "aggregation": aggregation} | changes
    records[0] |= {"run": f"{rule}{seed}", "experiment": experiment}
    for record in records:
        if record["kind"] == "evaluation" and record["round"] > 2:
            record["metrics"] |= {"test/balanced_accuracy": accuracy}
        if record["kind"] == "round":
            record["upload_bytes"] = 1_000_000
    return records
