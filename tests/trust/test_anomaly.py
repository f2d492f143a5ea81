"""Anomaly scores: what must be seen, what must not, and what they must not depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from fedrobust.aggregation import Context, Gram
from fedrobust.trust import RobustZ, Scores, Trust, detection

CONTEXT = Context(f=0)


def score(rows: np.ndarray, detector: RobustZ | None = None, prior: np.ndarray | None = None) -> Scores:
    rows = rows.astype(np.float64)
    if prior is None:
        prior = np.full(len(rows), 1 / len(rows))
    return (detector or RobustZ()).score(Gram(matrix=rows @ rows.T, prior=prior), CONTEXT)


def honest(n: int, d: int = 200, common: float = 1.0, seed: int = 0) -> np.ndarray:
    """Rows around a common direction, as long as the noise times `common`."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d)
    return common * direction / np.linalg.norm(direction) * np.sqrt(d) + rng.normal(size=(n, d))


def test_parts_on_hand_computed_numbers() -> None:
    # Orthogonal rows of norms 3, 4, 5, 6, 12. The norms have the median 5 and the MAD 1.
    rows = np.diag([3.0, 4, 5, 6, 12])
    z = np.array([2, 1, 0, 1, 7]) / 1.4826
    found = score(rows)
    np.testing.assert_allclose(found.parts["norm"], z**2 / (z**2 + 3.5**2), rtol=1e-9)
    # The second nearest other row: √(9 + 25), √(16 + 25), √(25 + 16), √(36 + 16), √(144 + 16).
    distances = np.sqrt([34, 41, 41, 52, 160])
    deviations = distances - distances[1]
    z = np.maximum(deviations, 0) / (1.4826 * np.median(np.abs(deviations)))
    np.testing.assert_allclose(found.parts["neighbours"], z**2 / (z**2 + 3.5**2), rtol=1e-9)
    np.testing.assert_array_equal(found.score, np.max(list(found.parts.values()), axis=0))


def test_cosine_on_hand_computed_numbers() -> None:
    # Six equal rows are the geometric median; the seventh is at a right angle, the eighth opposite.
    rows = np.array([[1.0, 0]] * 6 + [[0, 1], [-1, 0]])
    z = np.array([0.0] * 6 + [1, 2]) / 0.05
    np.testing.assert_allclose(score(rows).parts["cosine"], z**2 / (z**2 + 3.5**2), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("n", [6, 10, 20, 40])
@pytest.mark.parametrize("common", [0.0, 0.3, 1.0])
def test_honest_rows_score_low(n: int, common: float) -> None:
    scores = np.concatenate([score(honest(n, common=common, seed=seed)).score for seed in range(60)])
    assert np.mean(scores >= 0.5) < (0.01 if n >= 10 else 0.03)  # few rows tell little of their spread
    assert np.median(scores) < 0.1


@pytest.mark.parametrize(("n", "f"), [(10, 2), (10, 3), (20, 4), (20, 8)])
@pytest.mark.parametrize("common", [0.3, 1.0])
@pytest.mark.parametrize("attack", ["sign_flip", "gaussian", "huge", "zero"])
def test_gross_lies_score_high_and_the_honest_beside_them_low(n: int, f: int, common: float, attack: str) -> None:
    for seed in range(10):
        rows = honest(n, common=common, seed=seed)
        rows[:f] = {
            "sign_flip": -4 * rows[:f],
            "gaussian": 10 * np.random.default_rng(seed).normal(size=(f, rows.shape[1])),
            "huge": 1e8 * rows[:f],
            "zero": np.zeros((f, rows.shape[1])),
        }[attack]
        found = score(rows).score
        assert (found[:f] > 0.5).all()
        assert (found[f:] < 0.5).all()


def test_a_reversed_update_of_ordinary_length_is_seen_by_its_direction() -> None:
    rows = honest(20, common=1.0)
    rows[:4] *= -1
    found = score(rows)
    assert (found.parts["cosine"][:4] > 0.5).all() and (found.parts["cosine"][4:] < 0.5).all()
    assert (found.parts["norm"] < 0.5).all()


def test_a_minority_that_sends_one_row_does_not_look_near() -> None:
    rows = honest(20)
    rows[:8] = 3 * np.random.default_rng(1).normal(size=rows.shape[1])
    assert (score(rows).parts["neighbours"][:8] > 0.5).all()


@given(
    n=st.integers(3, 12),
    exponent=st.integers(-12, 12),
    common=st.sampled_from([0.0, 1.0, 1000.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_neither_order_nor_scale_matters(n: int, exponent: int, common: float, seed: int) -> None:
    rows = honest(n, d=30, common=common, seed=seed)
    rows[0] *= -3
    order = np.random.default_rng(seed).permutation(n)
    found = score(rows)
    permuted, scaled = score(rows[order]), score(rows * 10.0**exponent)
    for part, values in found.parts.items():
        np.testing.assert_allclose(permuted.parts[part], values[order], atol=1e-3)
        np.testing.assert_allclose(scaled.parts[part], values, atol=1e-3)
    np.testing.assert_allclose(scaled.score, found.score, atol=1e-3)
    assert found.score.min() >= 0 and found.score.max() <= 1


@given(n=st.integers(1, 12), scale=st.sampled_from([0.0, 1e-20, 1.0, 1e15]))
def test_equal_rows_raise_no_alarm(n: int, scale: float) -> None:
    row = np.random.default_rng(n).normal(size=50) * scale
    assert score(np.tile(row, (n, 1))).score.max() < 1e-3
    # Nor does what float32 makes of equal rows.
    noisy = row * (1 + 6e-8 * np.random.default_rng(0).choice([-1, 0, 1], size=(n, 50)))
    assert score(noisy).score.max() < 0.05


def test_zero_rows_among_others_have_finite_scores() -> None:
    for zeros in range(9):
        rows = honest(8)
        rows[:zeros] = 0
        found = score(rows)
        assert np.isfinite(found.score).all()
        assert all(np.isfinite(values).all() for values in found.parts.values())


def test_the_largest_float32_is_as_strange_as_can_be() -> None:
    rows = honest(10)
    rows[3] = np.finfo(np.float32).max
    found = score(rows).score
    assert found[3] > 0.999 and np.delete(found, 3).max() < 0.5


def test_a_claimed_sample_count_changes_nothing() -> None:
    rows = honest(10)
    rows[0] *= -1
    claimed = np.array([0.91] + [0.01] * 9)
    np.testing.assert_array_equal(score(rows, prior=claimed).score, score(rows).score)


def test_one_or_two_rows_have_no_majority_to_differ_from() -> None:
    assert score(honest(1)).score.tolist() == [0]
    found = score(honest(2) * [[1], [-50]])
    assert found.score.tolist() == [0, 0] and set(found.parts) == {"norm", "cosine", "neighbours"}


def test_cutoff_is_where_the_score_is_one_half() -> None:
    rows = np.diag([3.0, 4, 5, 6, 12])
    assert score(rows, RobustZ(cutoff=7 / 1.4826)).parts["norm"][4] == pytest.approx(0.5)


def test_honest_rows_that_lie_apart_are_suspected_too() -> None:
    """A limit, kept in sight: a hospital with rare data is strange without being malicious."""
    rows = honest(20)
    rows[0] = honest(1, seed=99)[0]  # honest, with another direction of its own
    assert score(rows).score[0] > 0.5


def test_trust_is_read_from_a_file() -> None:
    trust = Trust.model_validate({"detector": {"name": "robust_z", "cutoff": 3.0}, "reputation": "beta"})
    assert trust.detector == RobustZ(cutoff=3.0)
    assert Trust.model_validate(trust.model_dump(mode="json", serialize_as_any=True)) == trust


def test_detection_on_hand_computed_numbers() -> None:
    suspected, malicious = np.array([0, 1, 1, 0, 0], dtype=bool), np.array([0, 0, 1, 1, 0], dtype=bool)
    # Malicious 0.6 and 0.2 against honest 0.1, 0.7, 0.2: 0.6 wins two of three, 0.2 one and a half.
    found = detection(np.array([0.1, 0.7, 0.6, 0.2, 0.2]), suspected, malicious)
    assert found == pytest.approx({"precision": 0.5, "recall": 0.5, "auroc": 3.5 / 6})


@given(
    clients=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), min_size=1, max_size=12),
)
def test_detection_agrees_with_scikit_learn(clients: list[tuple[int, bool, bool]]) -> None:
    scores = np.array([c[0] / 5 for c in clients])
    suspected, malicious = (np.array([c[i] for c in clients]) for i in (1, 2))
    found = detection(scores, suspected, malicious)
    assert ("precision" in found) == suspected.any()
    assert ("recall" in found) == malicious.any()
    assert ("auroc" in found) == (malicious.any() and not malicious.all())
    references = {"precision": precision_score, "recall": recall_score}
    for name, value in found.items():
        if name == "auroc":
            assert value == pytest.approx(roc_auc_score(malicious, scores))
        else:
            assert value == pytest.approx(references[name](malicious, suspected))


def test_detection_with_nobody_malicious_or_nobody_suspected() -> None:
    nobody, first, scores = np.zeros(3, dtype=bool), np.array([True, False, False]), np.array([0.9, 0.1, 0.1])
    assert detection(scores, nobody, nobody) == {}
    assert detection(scores, first, nobody) == {"precision": 0.0}
    assert detection(scores, nobody, first) == {"recall": 0.0, "auroc": 1.0}
