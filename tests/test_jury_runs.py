"""Whole runs with a jury: hospitals vote on patches of their own, malicious ones lie, all is recorded and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import ended_again, journal_without_seconds, run

import fedrobust
from fedrobust.federation.pool import Pool
from fedrobust.records import Record

pytestmark = pytest.mark.usefixtures("in_place")

ATTACKED = [
    "attacks=[{name: sign_flip, count: 2, scale: 4}]",
    "aggregation={rule: foolsgold}",
    "learning.server=fedavg",
]
JURY = "trust.jury={fraction: 0.15}"  # three votes about each label: the honest hospitals alone have them


@pytest.fixture(scope="module")
def reference(place: Path, pool: Pool) -> fedrobust.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(*ATTACKED, JURY, pool=pool)


def test_the_record_has_every_poll_and_the_weights_of_the_hypothesis_that_won(reference: fedrobust.Result) -> None:
    for record in reference.rounds:
        found = record["jury"]
        best = max(found["gains"], key=found["gains"].get)
        assert found["chosen"] == (best if found["gains"][best] > 0 else "defence")
        assert min(found["voters"]) > 2 and set(found["gains"]) <= {"mean", "rest"}
        overruled = f"the jury overruled the defence: {found['chosen']}"
        assert (overruled in record["notes"]) == (found["chosen"] != "defence")
        if found["chosen"] == "mean":
            norms = record["update_norm"]
            middle = np.median(list(norms.values()))
            expected = {client: min(1.0, middle / norm) / len(norms) for client, norm in norms.items()}
            assert record["weights"] == pytest.approx(expected, rel=1e-6)


def test_a_jury_saves_a_run_whose_defence_believes_the_attackers(reference: fedrobust.Result, pool: Pool) -> None:
    alone = run(*ATTACKED, pool=pool)
    assert alone.final["test/balanced_accuracy"] < 0.7 < reference.final["test/balanced_accuracy"]


def test_figures_are_in_mlflow(reference: fedrobust.Result) -> None:
    from mlflow import MlflowClient

    metrics = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db").get_run(reference.run_id).data.metrics
    assert metrics["jury/mean"] == pytest.approx(reference.rounds[-1]["jury"]["gains"]["mean"])
    assert metrics["defense/overruled"] in (0.0, 1.0)


@pytest.mark.slow
def test_resumed_in_the_middle_with_the_same_bits(reference: fedrobust.Result, pool: Pool) -> None:
    before = set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*ATTACKED, JURY, hooks=[stop], pool=pool)
    again = ended_again([*ATTACKED, JURY], before, pool)
    assert again.final["model_sha256"] == reference.final["model_sha256"]
    assert journal_without_seconds(again) == journal_without_seconds(reference)


def test_a_round_without_hypotheses_or_updates_has_no_poll(pool: Pool) -> None:
    """In the second round too few hospitals are there; the mean has no weights below half a share."""
    absent = "attacks=[{name: absent, count: 5, schedule: {name: sleeper, rounds: 1}}]"
    few = "federation={clients: 8, rounds: 2, quorum: 0.9}"
    found = run(absent, few, "aggregation={rule: mean}", JURY, pool=pool)
    assert ["jury" in record for record in found.rounds] == [True, False]
    assert "skipped" in found.rounds[1] and set(found.rounds[0]["jury"]["gains"]) == {"mean"}
