"""The coordinator, called directly: what it makes of the updates, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedrobust.experiment import Experiment
from fedrobust.federation.coordinator import Coordinator

CLIENTS, D = 6, 50


def coordinator(**options: Any) -> Coordinator:
    experiment = Experiment.model_validate({"federation": {"clients": CLIENTS}} | options)
    made = Coordinator()
    made.setup(experiment, np.array([10, 10, 10, 10, 10, 1000]), np.zeros(D, dtype=np.float32), {})
    return made


@pytest.fixture
def updates() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((CLIENTS, D)).astype(np.float32)


def test_mean_moves_the_model_by_the_mean_update(updates: np.ndarray) -> None:
    record, weights, _ = coordinator(aggregation={"rule": "mean"}).aggregate(1, [range(CLIENTS)], [], None, updates)
    np.testing.assert_allclose(weights, updates.mean(0), rtol=1e-5, atol=1e-6)
    assert record["participants"] == list(range(CLIENTS))
    assert sum(record["weights"].values()) == pytest.approx(1)
    assert record["upload_bytes"] == CLIENTS * D * 4


@pytest.mark.parametrize("rule", ["mean", "krum", "geometric_median", "median", "centered_clipping"])
def test_the_result_does_not_depend_on_how_rows_arrive(updates: np.ndarray, rule: str) -> None:
    aggregation = {"rule": rule, "f": 1, "stages": ["nnm"]}
    _, one, _ = coordinator(aggregation=aggregation).aggregate(1, [range(CLIENTS)], [], None, updates)
    parts = [[4, 1], [5, 0, 3], [2]]
    _, other, _ = coordinator(aggregation=aggregation).aggregate(1, parts, [], None, *(updates[part] for part in parts))
    assert one.tobytes() == other.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rule", ["mean", "median", "geometric_median"])
def test_updates_whose_squares_overflow_have_a_norm(updates: np.ndarray, rule: str) -> None:
    small, _, _ = coordinator(aggregation={"rule": rule}).aggregate(1, [range(CLIENTS)], [], None, updates)
    huge, _, _ = coordinator(aggregation={"rule": rule}).aggregate(1, [range(CLIENTS)], [], None, 1e30 * updates)
    assert huge["aggregate_norm"] == pytest.approx(1e30 * small["aggregate_norm"], rel=1e-3)


def test_counts_are_capped_at_twice_the_median(updates: np.ndarray) -> None:
    record, _, _ = coordinator(aggregation={"rule": "mean", "weighting": "samples"}).aggregate(
        1, [range(CLIENTS)], [], None, updates
    )
    assert record["weights"][5] == pytest.approx(20 / 70)


def test_rows_that_are_not_finite_are_dropped_and_told(updates: np.ndarray) -> None:
    updates[2, 7], updates[4, 0] = np.nan, np.inf
    record, weights, _ = coordinator(aggregation={"rule": "mean", "f": 2}).aggregate(
        1, [range(CLIENTS)], [2, 4], None, updates
    )
    np.testing.assert_allclose(weights, updates[[0, 1, 3, 5]].mean(0), rtol=1e-5, atol=1e-6)
    assert set(record["rejected"]) == {2, 4}
    assert record["f"] == 0
    assert record["reputation"][2] < min(record["reputation"][client] for client in (0, 1, 3, 5))


def test_below_the_quorum_the_model_stays(updates: np.ndarray) -> None:
    updates[:4] = np.nan
    record, weights, _ = coordinator().aggregate(1, [range(CLIENTS)], [0, 1, 2, 3], None, updates)
    assert not weights.any()
    assert record["skipped"] == "2 of 6 updates were usable, below the quorum of 0.5 (not finite: 4)"
    assert record["suspected"] == [0, 1, 2, 3]


def test_an_aggregate_of_zero_is_a_round_that_was_made(updates: np.ndarray) -> None:
    record, weights, _ = coordinator().aggregate(1, [range(CLIENTS)], [], None, 0 * updates)
    assert "skipped" not in record and not weights.any()


def test_too_few_for_the_rule_skip_the_round_and_do_not_end_the_run(updates: np.ndarray) -> None:
    updates[:2] = np.nan
    made = coordinator(aggregation={"rule": "krum"}, federation={"clients": CLIENTS, "quorum": 0.1})
    record, weights, _ = made.aggregate(1, [range(CLIENTS)], [0, 1], None, updates)
    assert weights.any()
    updates[:4] = np.nan
    record, after, _ = made.aggregate(2, [range(CLIENTS)], [0, 1, 2, 3], None, updates)
    assert "krum needs n ≥ 2f + 3" in record["skipped"]
    assert after.tobytes() == weights.tobytes()


def test_a_server_whose_own_training_diverged_skips_the_round(updates: np.ndarray) -> None:
    made = coordinator(aggregation={"rule": "fltrust"})
    root = updates.mean(0, keepdims=True)
    _, weights, _ = made.aggregate(1, [range(CLIENTS)], [], root, updates)
    assert weights.any()
    root[0, 3] = np.inf
    record, after, _ = made.aggregate(2, [range(CLIENTS)], [], root, updates)
    assert record["skipped"] == "the server's own update is not finite"
    assert after.tobytes() == weights.tobytes()


@pytest.mark.parametrize("f", [3, 0.3])
def test_hospitals_that_are_late_lower_no_declared_f(f: float) -> None:
    """Ten are drawn, three honest ones are late: the three liars that were declared are all among the seven."""
    honest = np.random.default_rng(1).standard_normal((10, D)).astype(np.float32)
    made = Coordinator()
    options = {"federation": {"clients": 10}, "aggregation": {"rule": "trimmed_mean", "f": f}}
    made.setup(Experiment.model_validate(options), np.full(10, 10), np.zeros(D, dtype=np.float32), {})
    honest[[0, 1, 2]] = 1e6
    record, weights, _ = made.aggregate(1, [range(7)], [0, 1, 2], None, honest[:7])
    assert record["f"] == 3
    assert np.abs(weights).max() < 5


def test_where_a_declared_f_cannot_be_kept_the_round_is_skipped(updates: np.ndarray) -> None:
    made = coordinator(aggregation={"rule": "trimmed_mean", "f": 2})
    record, weights, _ = made.aggregate(1, [range(4)], [], None, updates[:4])
    assert record["skipped"] == "trimmed_mean needs n ≥ 2f + 1: n = 4, f = 2; largest f here: 1"
    assert not weights.any()


def test_where_all_updates_are_rejected_nobody_is_judged(updates: np.ndarray) -> None:
    made = coordinator()
    for round in range(1, 4):
        record, weights, _ = made.aggregate(round, [range(CLIENTS)], [3], None, updates * np.nan)
        assert record["skipped"] == "0 of 6 updates were usable, below the quorum of 0.5 (not finite: 6)"
    assert record["suspected"] == [] and record["detection"] == {}
    assert set(record["reputation"].values()) == {0.5}
    assert not weights.any()


@pytest.mark.parametrize(("quorum", "needed"), [(0.14, 1), (0.5, 3), (0.51, 4), (1.0, 6)])
def test_a_quorum_is_the_least_count_that_is_not_below_its_share(
    updates: np.ndarray, quorum: float, needed: int
) -> None:
    made = coordinator(federation={"clients": CLIENTS, "quorum": quorum})
    for there in range(1, CLIENTS + 1):
        record, _, _ = made.aggregate(there, [range(there)], [], None, updates[:there])
        assert ("skipped" in record) == (there < needed)


def test_seven_of_fifty_are_a_quorum_of_0_14() -> None:
    """0.14 · 50 is a little above 7 in binary floats."""
    made = Coordinator()
    experiment = Experiment.model_validate({"federation": {"clients": 50, "quorum": 0.14}})
    made.setup(experiment, np.full(50, 10), np.zeros(D, dtype=np.float32), {})
    record, _, _ = made.aggregate(1, [range(7)], [], None, np.ones((7, D), dtype=np.float32))
    assert "skipped" not in record


@pytest.mark.parametrize("server", ["fedavgm", "fedadam"])
@pytest.mark.parametrize("rule", ["mean", "centered_clipping"])
def test_the_arrays_of_a_checkpoint_are_all_of_its_state(updates: np.ndarray, server: str, rule: str) -> None:
    options: dict[str, Any] = {"aggregation": {"rule": rule}, "learning": {"server": server}}
    one = coordinator(**options)
    _, weights, arrays = one.aggregate(1, [range(CLIENTS)], [], None, updates)
    other = Coordinator()
    samples = np.full(CLIENTS, 10)
    other.setup(Experiment.model_validate({"federation": {"clients": CLIENTS}} | options), samples, weights, arrays)
    first, second = (made.aggregate(2, [range(CLIENTS)], [], None, updates * 0.5) for made in (one, other))
    assert first[1].tobytes() == second[1].tobytes()
    assert first[0]["reputation"] == second[0]["reputation"]
