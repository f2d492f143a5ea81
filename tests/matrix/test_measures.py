"""The figures of a cell from the records of its rounds, on hand-made ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedrobust.matrices.measures import base_rates, baselines, detection, performance, rarest
from fedrobust.records import EvaluationRecord, RoundRecord

COUNTS = np.array([[30, 30], [40, 2], [5, 50], [20, 20], [60, 5]])
"""Five hospitals, two labels: hospital 1 has the rarest data."""


def record(round: int, **fields: Any) -> RoundRecord:
    return RoundRecord.of({"round": round, "participants": [], **fields})


def evaluation(round: int, **fields: Any) -> EvaluationRecord:
    return EvaluationRecord.of({"round": round, "metrics": {}, **fields})


def test_performance_is_the_mean_over_the_evaluated_rounds() -> None:
    rounds = [
        evaluation(2, metrics={"test/balanced_accuracy": 0.6, "test/auroc": 0.7, "attack/success_rate": 0.2}),
        evaluation(3, metrics={"test/balanced_accuracy": 0.8, "test/auroc": None, "attack/success_rate": 0.4}),
    ]
    assert performance(rounds) == pytest.approx({"balanced_accuracy": 0.7, "auroc": 0.7, "attack_success": 0.3})


def test_base_rates_are_those_of_the_attacks_behind_the_first_under_their_present_names() -> None:
    rounds = [
        evaluation(1, triggers={str(place): {"success_rate": rate} for place, rate in ((1, 0.1), (2, 0.3), (3, 0.05))}),
        evaluation(2, triggers={str(place): {"success_rate": rate} for place, rate in ((1, 0.3), (2, 0.5), (3, 0.05))}),
    ]
    found = baselines(rounds)
    assert found == pytest.approx({"baseline/1": 0.2, "baseline/2": 0.4, "baseline/3": 0.05})
    assert base_rates(found, ["patch", "both", "both"]) == pytest.approx({"patch": 0.2, "both": 0.4})
    assert base_rates(found, ["one", "two", "patch"]) == pytest.approx({"one": 0.2, "two": 0.4, "patch": 0.05})
    assert baselines([evaluation(1)]) == {}
    assert base_rates({}, ["patch"]) == {}


def test_suspicions_are_judged_over_rounds_eleven_to_twenty() -> None:
    rounds = [record(round, detection={"defense/auroc": 0.25, "defense/recall": round / 40}) for round in range(1, 31)]
    found = detection(rounds, [0], COUNTS)
    assert found["last_auroc"] == 0.25
    assert found["recall"] == pytest.approx(15.5 / 40)
    assert "precision" not in found
    assert "detection_auroc" not in found  # nobody has a score


def test_scores_are_judged_by_their_means_over_the_attacked_rounds_up_to_twenty() -> None:
    """Hospitals 0 and 3 attack from round 5 on; who scored what before, or after round 20, does not count."""
    quiet, loud = {0: 0.0, 1: 1.0, 2: 1.0, 3: 0.0, 4: 1.0}, {0: 0.9, 1: 0.1, 2: 0.4, 3: 0.3, 4: 0.2}
    rounds = [
        record(
            round,
            attacking=[0, 3] if round >= 5 else [],
            anomaly={str(client): score for client, score in (loud if 5 <= round <= 20 else quiet).items()},
        )
        for round in range(1, 31)
    ]
    # 0 is above all three honest ones, 3 above two of them: five of six pairs.
    assert detection(rounds, [0, 3], COUNTS)["detection_auroc"] == pytest.approx(5 / 6)


def test_rounds_to_eject_count_rounds_of_attack() -> None:
    """Hospital 0 attacks in every second round from 3 on and is caught in its third; hospital 3 is never caught."""
    rounds = [
        record(
            round,
            attacking=[client for client, on in ((0, round >= 3 and round % 2), (3, True)) if on],
            quarantined=[0] if round >= 7 else [],
        )
        for round in range(1, 13)
    ]
    found = detection(rounds, [0, 3], COUNTS)
    assert found["rounds_to_eject"] == 3.0
    assert found["ejected"] == 0.5
    assert math.isinf(found["slowest_ejection"])
    assert "rounds_to_eject" not in detection([record(1, attacking=[0])], [0], COUNTS)


def test_honest_hospitals_that_come_back_and_those_that_do_not() -> None:
    """Of 22 rounds, hospital 2 is out in 3 and 4, hospital 1 in 6 and from 8 to the end."""
    inside = {2: {3, 4}, 1: {6, *range(8, 23)}}
    rounds = [
        record(round, attacking=[0], quarantined=[client for client, out in inside.items() if round in out])
        for round in range(1, 23)
    ]
    found = detection(rounds, [0], COUNTS)
    assert found["honest_quarantined"] == 2
    assert found["honest_ejected"] == 1
    assert found["rarest_ejected"] == 1.0
    assert found["rounds_to_forgive"] == pytest.approx((2 + 1 + 15) / 3)
    assert found["ejected"] == 0.0
    late = [*rounds[:-1], record(22, attacking=[0], quarantined=[])]
    assert detection(late, [0], COUNTS)["honest_ejected"] == 0


def test_new_ids_of_malicious_hospitals_are_nobody_honest() -> None:
    """A hospital that comes back as client 5 is malicious under both ids."""
    rounds = [
        record(round, attacking=[0] if round < 6 else [5], quarantined=[0, 5] if round > 6 else [])
        for round in range(1, 13)
    ]
    found = detection(rounds, [0], COUNTS)
    assert (found["honest_quarantined"], found["honest_ejected"], found["ejected"]) == (0, 0, 1.0)
    assert found["slowest_ejection"] == 5.0  # as client 0, in rounds 1 to 5; as client 5, in rounds 6 and 7


def test_without_quarantine_or_attack_there_is_nothing_to_tell() -> None:
    found = detection([record(1, skipped="too few"), record(2)], [], COUNTS)
    assert found == {"skipped": 1.0, "honest_quarantined": 0.0, "honest_ejected": 0.0, "rarest_ejected": 0.0}


def test_the_rarest_data() -> None:
    assert rarest(COUNTS, [0, 1, 2, 3, 4]) == 1
    assert rarest(COUNTS, [0, 2, 3, 4]) == 2, "as rare as hospital 4's, and fewer patches"
    nobody = np.zeros((5, 1), dtype=np.int64)
    assert rarest(np.hstack([nobody, COUNTS]), [0, 1, 2, 3, 4]) == 1, "a label that nobody has is nobody's rarest"
