"""What an attacker who knows the defence works out must be what the defence then does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrobust.experiment import Experiment
from fedrobust.federation.adversary import Adversary, Outlook
from fedrobust.federation.coordinator import Coordinator
from fedrobust.federation.preview import DefencePreview
from fedrobust.records import below

CLIENTS, D = 8, 60
GROUP = [2, 5]
DEFENCES: dict[str, dict[str, Any]] = {
    "mean": {"aggregation": {"rule": "mean"}},
    "weighted mean": {"aggregation": {"rule": "mean", "weighting": "samples"}},
    "clip, nnm, geometric median": {"aggregation": {"stages": ["clip", "nnm"], "rule": "geometric_median"}},
    "last aggregate": {"aggregation": {"rule": {"name": "centered_clipping", "tau": 3.0}}},
    "histories": {"aggregation": {"rule": "foolsgold"}},
    "coordinates": {"aggregation": {"rule": "trimmed_mean", "f": 2}},
    "signs": {"aggregation": {"rule": "signguard"}},
    "the server's update": {"aggregation": {"rule": "fltrust"}},
    "reputation": {"aggregation": {"rule": "mean"}, "trust": {"acts": True}},
    "quarantine": {
        "aggregation": {"rule": "krum", "f": 1},
        "trust": {"acts": True, "quarantine": {"enter": 0.45, "leave": 0.5}},
    },
}


def federation(options: dict[str, Any]) -> tuple[Experiment, Coordinator, np.ndarray]:
    options = {"federation": {"clients": CLIENTS}, "attacks": [{"name": "ipm", "clients": GROUP}]} | options
    experiment, samples = Experiment.model_validate(options), np.array([10, 10, 30, 10, 12, 10, 14, 16])
    made = Coordinator()
    made.setup(experiment, samples, np.zeros(D, dtype=np.float32), {})
    return experiment, made, samples


def rows_of(round: int) -> np.ndarray:
    rng = np.random.default_rng(round)
    rows = rng.standard_normal((CLIENTS, D)) + 2 * np.random.default_rng(99).standard_normal(D)
    rows[7] *= 5  # one that is quarantined in time
    return rows.astype(np.float32)


@pytest.mark.parametrize("name", DEFENCES)
@pytest.mark.parametrize(("broken", "late"), [(None, None), (3, None), (None, 6)])
def test_the_preview_is_what_then_happens(name: str, broken: int | None, late: int | None) -> None:
    experiment, coordinator, samples = federation(DEFENCES[name])
    root = rows_of(0)[:1]
    arrays: dict[str, np.ndarray] = {}
    for round in range(1, 5):
        _, _, arrays = coordinator.aggregate(round, [range(CLIENTS)], [], root, rows_of(round))
    rows = rows_of(5)
    if broken is not None:
        rows[broken, 7] = np.nan
    defence = experiment.defence()
    preview = DefencePreview(
        defence,
        defence.memory(arrays, CLIENTS),
        GROUP,
        {client: row for client, row in enumerate(rows) if client != late},
        {client: client for client in range(CLIENTS)},
        5,
        samples if experiment.aggregation.weighting == "samples" else None,
        below(arrays, "history"),
        root[0],
    )
    direction = np.random.default_rng(7).standard_normal(D).astype(np.float32)
    search = preview.lines([direction])
    here = [client for client in range(CLIENTS) if client != late]
    others = [client for client in here if client not in GROUP and client != broken]
    crafted = np.zeros((2, len(GROUP) + len(others) + 1))
    crafted[0, 2], crafted[0, 4], crafted[1, -1] = -0.5, 0.25, 3.0
    foreseen = search.damage(crafted)
    search.damage(np.eye(*crafted.shape))
    assert search.damage(crafted) == foreseen  # asking changes nothing

    lines = np.vstack([rows[GROUP], rows[others], direction]).astype(np.float64)
    sent = rows.copy()
    sent[GROUP] = crafted @ lines
    before = coordinator._weights.copy()
    _, weights, _ = coordinator.aggregate(5, [here], GROUP, root, sent[here])
    honest = rows[others].mean(axis=0)
    assert foreseen == pytest.approx(np.linalg.norm((weights - before) - honest), rel=1e-3)


def test_someone_is_in_quarantine_in_the_case_of_that_name() -> None:
    _, coordinator, _ = federation(DEFENCES["quarantine"])
    for round in range(1, 6):
        record, _, _ = coordinator.aggregate(round, [range(CLIENTS)], [], None, rows_of(round))
    assert record["quarantined"] == [7]
    assert record["weights"][7] == 0
    assert record["anomaly"][7] > 0.5  # it is a probe still


def test_a_round_that_would_be_skipped_does_no_damage() -> None:
    experiment, _, _ = federation({"aggregation": {"rule": "krum", "f": 0.3}})
    defence = experiment.defence()
    late = (0, 1, 3, 4)
    updates = {client: row for client, row in enumerate(rows_of(1)) if client not in late}
    ids = {client: client for client in range(CLIENTS)}
    preview = DefencePreview(defence, defence.start(CLIENTS), GROUP, updates, ids, 1)
    assert preview.lines([]).damage(np.eye(2, 4)) == 0


def test_only_attacks_that_know_the_defence_get_a_preview() -> None:
    options = {"federation": {"clients": CLIENTS}, "attacks": [{"name": "optimal_ipm", "clients": GROUP}]}
    experiment = Experiment.model_validate(options)
    adversary, samples = Adversary(), np.ones(CLIENTS)
    adversary.setup(experiment, samples, ())
    rows = rows_of(1)
    sent = adversary.replace(1, [range(CLIENTS)], GROUP, [slice(0, D)], Outlook(), None, rows)
    honest = rows[[client for client in range(CLIENTS) if client not in GROUP]].mean(0)
    assert isinstance(sent, np.ndarray)
    cosine = sent[0] @ honest / np.linalg.norm(sent[0]) / np.linalg.norm(honest)
    assert cosine == pytest.approx(-1, abs=1e-3)
