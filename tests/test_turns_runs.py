"""Whole runs in which the referee opens one sum a round: under every protocol that opens one, with the choices of the
clear; resumed with the same bits; recorded like everything else."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny import ended_again, journal_without_seconds, run

import fedrobust
from fedrobust.federation.pool import Pool
from fedrobust.records import Record

pytestmark = pytest.mark.usefixtures("in_place")

OVERRIDES = [
    "attacks=[{name: sign_flip, count: 3, scale: 4, schedule: {name: sleeper, rounds: 3}}]",
    "aggregation={rule: mean}",
    "trust.referee={openings: in_turn, certainty: 1}",
    "data.root={patches: 40, set_aside: 0.3}",
    "learning.server=fedavg",
    "federation.rounds=12",
]
SHARES = "privacy={name: shares, sketch: null, randomness: seed}"
IN_TURN = "trust.referee={certainty: 1}"


@pytest.fixture(scope="module")
def clear(place: Path, pool: Pool) -> fedrobust.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(*OVERRIDES, "name=in-turn", pool=pool)


def refusals(result: fedrobust.Result) -> list[tuple[str, bool]]:
    return [(record["referee"]["chosen"], record["referee"]["refused"]) for record in result.rounds]


def test_a_refused_sum_leaves_the_model_as_it_was(clear: fedrobust.Result) -> None:
    models = [clear.recorded.start.model, *(record["model"] for record in clear.rounds)]
    refused = [record["referee"]["refused"] for record in clear.rounds]
    assert refused == [before == after for before, after in pairwise(models)]
    assert 1 <= sum(refused) <= 11
    for record in clear.rounds:
        chosen = record["referee"]["chosen"]
        assert list(record["referee"]["losses"]) == [chosen]  # one sum is opened
        assert (f"the referee refused the sum: {chosen}" in record["notes"]) == record["referee"]["refused"]


def test_figures_are_in_mlflow(clear: fedrobust.Result) -> None:
    from mlflow import MlflowClient

    metrics = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db").get_run(clear.run_id).data.metrics
    assert metrics["defense/refused"] in (0.0, 1.0) and metrics["referee/defence"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [SHARES, SHARES.replace("shares", "replicated")])
def test_secret_shares_make_the_choices_of_the_clear(protocol: str, clear: fedrobust.Result, pool: Pool) -> None:
    overrides = [each for each in OVERRIDES if "referee" not in each]
    found = run(*overrides, IN_TURN, protocol, pool=pool)
    assert refusals(found) == refusals(clear)
    for own, other in zip(found.rounds, clear.rounds, strict=True):
        # Shares have weights of 12 bits.
        (loss,), (expected,) = (each["referee"]["losses"].values() for each in (own, other))
        assert loss == pytest.approx(expected, rel=0.01, abs=0.01)
        assert own["weights"] == pytest.approx(other["weights"], abs=2e-3)


def test_masks_open_one_sum_which_may_be_refused(pool: Pool) -> None:
    overrides = [each for each in OVERRIDES if "referee" not in each]
    found = run(*overrides, IN_TURN, "privacy=masked", pool=pool)
    assert {chosen for chosen, _ in refusals(found)} == {"defence"}
    assert any(refused for _, refused in refusals(found))


def test_resumed_in_the_middle_with_the_same_bits(clear: fedrobust.Result, pool: Pool) -> None:
    before = set(Path("mlruns/runs").iterdir())
    first = refusals(clear).index(("defence", True)) + 1

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == first:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*OVERRIDES, "name=in-turn", hooks=[stop], pool=pool)
    again = ended_again([*OVERRIDES, "name=in-turn"], before, pool)
    assert again.final["model_sha256"] == clear.final["model_sha256"]
    assert journal_without_seconds(again) == journal_without_seconds(clear)


def test_a_run_whose_defence_believes_the_attackers_is_saved(clear: fedrobust.Result, pool: Pool) -> None:
    alone = run(*[each for each in OVERRIDES if "referee" not in each], pool=pool)
    assert alone.final["test/balanced_accuracy"] + 0.1 < clear.final["test/balanced_accuracy"]
    assert np.isfinite(clear.final["test/loss"])


@pytest.mark.slow
def test_under_shares_no_mix_of_labels_explains_the_same_hospitals_as_in_the_clear(pool: Pool) -> None:
    """Scores by the coordinator's gradients, and the referee in turn with the hypothesis that they are right."""
    mixed = [
        "attacks=[{name: ipm, count: 3, epsilon: 0.5}]",
        "aggregation={rule: mean}",
        "data.root={patches: 40, set_aside: 0.3}",
        "learning.server=fedavg",
        "federation.rounds=4",
    ]
    turns = "trust={detector: label_mix, referee: {openings: in_turn, hypotheses: [ordinary], certainty: 1}}"
    clear, found = run(*mixed, turns, pool=pool), run(*mixed, turns, SHARES, pool=pool)
    assert refusals(found) == refusals(clear)
    for own, other in zip(found.rounds, clear.rounds, strict=True):
        assert set(own["anomaly_parts"]["0"]) == {"label_mix", "consensus", "length"}
        for client, parts in own["anomaly_parts"].items():
            assert parts == pytest.approx(other["anomaly_parts"][client], abs=5e-3)
        assert own["weights"] == pytest.approx(other["weights"], abs=2e-3)
        # Two labels, each with every update and its history; 8 updates and 8 histories with each other.
        assert (own["functionals"], own["products"]) == (4, 16 * 17 // 2)
    assert max(parts["label_mix"] for parts in found.rounds[-1]["anomaly_parts"].values()) > 0.1
