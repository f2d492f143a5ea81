"""Anomaly scores: what must be seen, what must not, and what they must not depend on."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from refused import problems, refused
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from fedrobust.aggregation import Context, Gram, History
from fedrobust.trust import Detector, Quarantine, RobustZ, Scores, Trust, detection
from fedrobust.trust.anomaly import RobustZPart

CONTEXT = Context(f=0)


def score(
    rows: np.ndarray,
    detector: RobustZ | None = None,
    prior: np.ndarray | None = None,
    averages: np.ndarray | None = None,
) -> Scores:
    rows = rows.astype(np.float64)
    if prior is None:
        prior = np.full(len(rows), 1 / len(rows))
    histories = {} if averages is None else {"average": History(averages @ averages.T, rows @ averages.T)}
    return (detector or RobustZ()).score(Gram(matrix=rows @ rows.T, prior=prior, histories=histories), CONTEXT)


def squashed(z: np.ndarray) -> np.ndarray:
    """The part that a z makes."""
    return np.asarray(z**2 / (z**2 + 3.5**2))


def honest(n: int, d: int = 200, common: float = 1.0, seed: int = 0) -> np.ndarray:
    """Rows around a common direction, as long as the noise times `common`."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=d)
    return np.asarray(common * direction / np.linalg.norm(direction) * np.sqrt(d) + rng.normal(size=(n, d)))


def test_parts_on_hand_computed_numbers() -> None:
    # Orthogonal rows of norms 3, 4, 5, 6, 12. The norms have the median 5 and the MAD 1.
    rows = np.diag([3.0, 4, 5, 6, 12])
    z = np.array([2, 1, 0, 1, 7]) / 1.4826
    found = score(rows)
    np.testing.assert_allclose(found.parts["norm"], squashed(z), rtol=1e-9)
    # The second nearest other row: √(9 + 25), √(16 + 25), √(25 + 16), √(36 + 16), √(144 + 16).
    distances = np.sqrt([34, 41, 41, 52, 160])
    deviations = distances - distances[1]
    z = np.maximum(deviations, 0) / (1.4826 * np.median(np.abs(deviations)))
    np.testing.assert_allclose(found.parts["neighbours"], squashed(z), rtol=1e-9)
    np.testing.assert_array_equal(found.score, np.max(list(found.parts.values()), axis=0))


def test_cosine_on_hand_computed_numbers() -> None:
    # Six equal rows are the geometric median; the seventh is at a right angle, the eighth opposite.
    rows = np.array([[1.0, 0]] * 6 + [[0, 1], [-1, 0]])
    z = np.array([0.0] * 6 + [1, 2]) / 0.05
    np.testing.assert_allclose(score(rows).parts["cosine"], squashed(z), rtol=1e-3, atol=1e-9)


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


# Parts that are asked for


ALL = get_args(RobustZPart)


def test_spectral_on_hand_computed_numbers() -> None:
    # On a line, around a common part. Deviations from the median position 0: 0, 1, 1, 2, 10, with the median 1.
    rows = np.array([5.0, 5]) + np.outer([0.0, -1, 1, -2, 10], [0.6, 0.8])
    found = score(rows, RobustZ(parts=("spectral",), floor=0.01))
    np.testing.assert_allclose(found.parts["spectral"], squashed(np.array([0, 1, 1, 2, 10]) / 1.4826), rtol=1e-3)
    np.testing.assert_array_equal(found.score, found.parts["spectral"])


def test_agreement_on_hand_computed_numbers() -> None:
    # Six rows in one direction, one at a right angle, one opposite: median cosines 1, 0 and −1 with the others.
    rows = np.array([[1.0, 0]] * 6 + [[0, 1], [-1, 0]])
    z = np.array([0.0] * 6 + [1, 2]) / 0.05
    np.testing.assert_allclose(score(rows, RobustZ(parts=("agreement",))).score, squashed(z), atol=1e-9)


def test_duplicates_on_hand_computed_numbers() -> None:
    # Of length 1, the second row is √0.4 from the first, the others √2 from all: ln √5 above the median 0, MAD 0.
    rows = np.diag([1.0, 1, 2, 3, 4])
    rows[1, :2] = [8, 6]
    found = score(rows, RobustZ(parts=("duplicates",))).parts["duplicates"]
    z = np.log(np.sqrt(5)) / 0.05
    np.testing.assert_allclose(found, squashed(np.array([z, z, 0, 0, 0])), atol=1e-9)


def test_consistency_on_hand_computed_numbers() -> None:
    # Cosines with the own past: 1, 0.8, 0.6, −1. The last client is new. Of the turns 0, 0.2, 0.4, 2 and, for it, the
    # median 0.3, the median is 0.3 and the MAD 0.3, 0.1, 0.1, 1.7, 0 → 0.1.
    rows = np.array([[1.0, 0], [4, 3], [3, 4], [-2, 0], [0, 1]])
    averages = np.array([[1.0, 0]] * 4 + [[0, 0]])
    found = score(rows, RobustZ(parts=("consistency",)), averages=averages).parts["consistency"]
    np.testing.assert_allclose(found, squashed(np.array([0, 0, 0.1, 1.7, 0]) / 0.14826), atol=1e-9)


@pytest.mark.parametrize("part", ["cosine", "agreement", "neighbours", "spectral", "duplicates"])
def test_averages_are_scored_like_updates_and_newcomers_not_at_all(part: RobustZPart) -> None:
    rows, averages = honest(9, seed=1), honest(9, seed=2)
    averages[0] *= -1
    averages[1] = averages[0]
    averages[[3, 7]] = 0
    old = [0, 1, 2, 4, 5, 6, 8]
    found = score(rows, RobustZ.model_validate({"parts": [f"average_{part}"]}), averages=averages).score
    expected = score(averages[old], RobustZ(parts=(part,))).score
    np.testing.assert_allclose(found[old], expected, atol=1e-9)
    assert expected.max() > 0.1
    np.testing.assert_array_equal(found[[3, 7]], [0, 0])


def test_each_part_is_the_same_beside_others() -> None:
    rows, averages = honest(10), honest(10, seed=1)
    rows[:2] *= -1
    everything = score(rows, RobustZ(parts=ALL), averages=averages)
    assert list(everything.parts) == list(ALL)
    for part in ALL:
        np.testing.assert_array_equal(
            score(rows, RobustZ(parts=(part,)), averages=averages).score, everything.parts[part]
        )
    np.testing.assert_array_equal(everything.score, np.max(list(everything.parts.values()), axis=0))
    for part, values in score(rows).parts.items():
        np.testing.assert_array_equal(values, everything.parts[part])


def test_only_parts_that_look_back_want_the_averages() -> None:
    assert RobustZ().histories == RobustZ(parts=("spectral", "duplicates")).histories == ()
    assert RobustZ(parts=("norm", "consistency")).histories == RobustZ(parts=("average_cosine",)).histories
    assert RobustZ(parts=("consistency",)).histories == ("average",)


@pytest.mark.parametrize("f", [4, 8])
def test_a_lie_behind_noise_is_seen_by_what_its_rows_share(f: int) -> None:
    for seed in range(5):
        rows, noise = honest(20, d=2000, seed=seed), np.random.default_rng(seed + 50).normal(size=(f, 2000))
        rows[:f] = -0.7 * rows[f:].mean(axis=0) + 1.2 * noise
        found = score(rows, RobustZ(parts=("spectral", "norm"))).parts
        assert found["spectral"][:f].min() > 0.5 > found["spectral"][f:].max()
        assert found["norm"].max() < 0.5


@pytest.mark.parametrize("parts", [ALL, ("spectral",), ("duplicates", "consistency")])
def test_honest_rows_with_an_honest_past_score_low_in_every_part(parts: tuple[RobustZPart, ...]) -> None:
    scores = []
    for seed in range(40):
        averages = honest(20, seed=seed) / 3 + 2 * honest(1, seed=seed) / 3
        scores.append(score(honest(20, seed=seed), RobustZ(parts=parts), averages=averages).score)
    assert np.mean(np.array(scores) >= 0.5) < 0.02


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5])
def test_every_part_is_finite_for_a_few_rows_and_zero_rows(n: int) -> None:
    for rows in (np.zeros((n, 4)), np.ones((n, 4)), np.eye(n, 4)):
        for averages in (np.zeros((n, 4)), rows, np.eye(n, 4)[::-1]):
            if n:
                found = score(rows, RobustZ(parts=ALL), averages=averages)
                assert found.score.shape == (n,) and np.isfinite(found.score).all()
                if n < 3:
                    assert not found.score.any()


class Loud(Detector):
    """A detector of one's own: the squared norm beside the largest, and how many rounds it has seen."""

    name: str = f"{__name__}:Loud"

    @property
    def histories(self) -> tuple[str, ...]:
        return ("last",)

    def score(self, gram: Gram, context: Context) -> Scores:
        squares = np.diag(gram.matrix) / np.diag(gram.matrix).max()
        rounds = context.state.get("rounds", np.zeros(1)) + 1
        return Scores(squares, {"loud": squares}, {"rounds": rounds})


def test_a_detector_of_ones_own_is_read_and_remembers() -> None:
    trust = Trust.model_validate({"detector": {"name": f"{__name__}:Loud"}})
    assert isinstance(trust.detector, Loud) and trust.detector.histories == ("last",)
    gram = Gram(np.diag([1.0, 4]), np.full(2, 0.5))
    first = trust.detector.score(gram, CONTEXT)
    second = trust.detector.score(gram, Context(f=0, state=first.state))
    assert first.score.tolist() == [0.25, 1] and second.state["rounds"].tolist() == [2]
    assert dict(score(honest(3)).state) == {}


def test_parts_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        Trust.model_validate({"detector": {"parts": ["nrom"]}})
    assert problems(caught.value)[0].path == "detector.robust_z.parts.0"
    with refused(ValidationError, path="detector.robust_z.parts"):
        Trust.model_validate({"detector": {"parts": []}})


def test_trust_is_read_from_a_file() -> None:
    written = {
        "detector": {"name": "robust_z", "cutoff": 3.0, "parts": ["norm", "duplicates"]},
        "reputation": "beta",
        "quarantine": {"enter": 0.3},
        "acts": True,
    }
    trust = Trust.model_validate(written)
    assert trust.detector == RobustZ(cutoff=3.0, parts=("norm", "duplicates"))
    assert trust.quarantine == Quarantine(enter=0.3) and trust.acts
    assert Trust.model_validate(trust.model_dump(mode="json", serialize_as_any=True)) == trust
    assert not Trust().acts


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
