"""Journals of large federations, for the tests of tables and pages: who attacks and who is found is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

PARTS = ("norm", "average_cosine", "nearest", "sign_share")


def large(hospitals: int = 1000, rounds: int = 6, part: float = 1.0, malicious: float = 0.2) -> list[Any]:
    """The lines of a run: three quarters of the attackers are found, one in twenty of the honest is suspected wrongly.

    hospitals: how many there are.
    part: the part of them that is drawn for a round.
    malicious: the part of them that attacks.
    """
    rng = np.random.default_rng(hospitals)
    attackers = sorted(rng.choice(hospitals, int(malicious * hospitals), replace=False).tolist())
    found = {client for client in attackers if rng.random() < 0.75}
    found |= {client for client in range(hospitals) if client not in attackers and rng.random() < 0.05}
    names = ["sign_flip", "ipm", "label_flip"]
    experiment = {
        "name": "a large federation",
        "seed": 7,
        "data": {"partition": {"name": "dirichlet", "alpha": 0.5}},
        "federation": {"clients": hospitals, "rounds": rounds, "participation": part},
        "attacks": [{"name": name, "fraction": malicious / 3} for name in names],
        "aggregation": {"stages": [{"name": "nnm"}], "rule": {"name": "krum"}},
        "trust": {"acts": True},
    }
    records: list[dict[str, Any]] = [
        {
            "kind": "start",
            "run": "0123456789abcdef" * 2,
            "name": "a large federation",
            "experiment": experiment,
            "clients": hospitals,
            "label_names": ["benign", "malignant"],
            "attackers": {str(client): names[index % 3] for index, client in enumerate(attackers)},
            "hospital_labels": rng.integers(5, 90, (hospitals, 2)).tolist(),
            "parameters": 240_000,
            "digest": "ab" * 32,
        }
    ]
    reputation = np.full(hospitals, 0.8)
    for number in range(1, rounds + 1):
        drawn = sorted(rng.choice(hospitals, max(1, round(part * hospitals)), replace=False).tolist())
        bad = np.array([0.7 if client in found else 0.1 for client in range(hospitals)])
        scores = np.clip(bad + rng.normal(0, 0.05, hospitals), 0, 1)
        reputation = 0.7 * reputation + 0.3 * (1 - scores)
        suspected = np.flatnonzero(reputation < 0.6).tolist()
        rejected = {str(client): "not finite" for client in drawn[::97]} if number == 2 else {}
        usable = [client for client in drawn if str(client) not in rejected]
        weights = {str(client): (1 - scores[client]) / len(usable) for client in usable}
        anomaly = {str(client): float(scores[client]) for client in usable}
        records.append(
            {
                "kind": "round",
                "round": number,
                "participants": drawn,
                "attacking": [client for client in attackers if client in set(drawn)],
                "rejected": rejected,
                "weights": weights,
                "anomaly": anomaly,
                "anomaly_parts": {client: dict.fromkeys(PARTS, value) for client, value in anomaly.items()},
                "stages": [{"name": "nnm"}, {"name": "krum", "scores": anomaly, "weights": weights}],
                "f": len(attackers),
                "reputation": {str(client): float(value) for client, value in enumerate(reputation)},
                "suspected": suspected,
                "quarantined": suspected if number > 3 else [],
                "train_loss": {str(client): 0.5 for client in drawn},
                "detection": {"defense/auroc": 0.9, "defense/precision": 0.7, "defense/recall": 0.75},
                "seconds": {"train": 0.2, "aggregate": 0.1, "round": 0.3},
            }
        )
        records.append(
            {
                "kind": "evaluation",
                "round": number,
                "metrics": {
                    "test/accuracy": 0.9,
                    "test/balanced_accuracy": 1 - 0.5**number,
                    "test/worst_hospital_accuracy": 0.4,
                },
                "hospitals": {str(client): 0.5 for client in range(hospitals)},
                "confusion": [[80, 20], [10, 90]],
            }
        )
    final = {**records[-1]["metrics"], **records[-2]["detection"], "rounds_skipped": 0, "suspected": suspected}
    return [*records, {"kind": "end", "round": rounds, "final": final | {"seconds": 0.3 * rounds}}]
