"""Whole runs with patches of the coordinator's own: the referee overrules a defence that fails, the repair takes a
backdoor away, and both are recorded and resumed like everything else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import ended_again, journal_without_seconds, run

import fedrobust
from fedrobust.federation.pool import Pool
from fedrobust.records import Record

pytestmark = pytest.mark.usefixtures("in_place")

ASIDE = "data.root={patches: 40, set_aside: 0.3}"
OVERRIDES = [
    "attacks=[{name: sign_flip, count: 3, scale: 2}]",
    "aggregation={rule: mean}",
    "trust={detector: label_mix, referee: {certainty: 1}, repair: {every: 3, steps: 20}}",
    ASIDE,
    "learning.server=fedavg",
    "name=refereed",
]


LATE = [
    "attacks=[{name: sign_flip, count: 6, scale: 4, schedule: {name: on_off, on: 2, off: 2, start: 4}}]",
    "aggregation={rule: mean}",
    "learning.server=fedavg",
    "trust.referee={hypotheses: [mean]}",
    "federation.rounds=12",
    "name=late",
    ASIDE,
]


@pytest.fixture(scope="module")
def reference(place: Path, pool: Pool) -> fedrobust.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(*OVERRIDES, pool=pool)


@pytest.fixture(scope="module")
def late(place: Path, pool: Pool) -> fedrobust.Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(*LATE, pool=pool)


def test_the_record_has_every_choice_and_every_repair(reference: fedrobust.Result) -> None:
    earlier = [reference.recorded.start.model]
    for number, record in enumerate(reference.rounds, start=1):
        found = record["referee"]
        assert found["chosen"] in found["losses"] and "defence" in found["losses"]
        assert set(found["certainty"]) <= {"mean", "rest", "ordinary"}
        assert not found["refused"] or record["model"] in earlier or "repair" in record
        earlier.append(record["model"])
        assert all("label_mix" in parts for parts in record["anomaly_parts"].values())
        assert ("repair" in record) == (number in (3, 6, 8))
        if found["chosen"] != "defence":
            assert f"the referee overruled the defence: {found['chosen']}" in record["notes"]
    assert all(0 <= record.get("repair", 0) <= 20 for record in reference.rounds)


def test_the_weights_are_those_of_the_hypothesis_that_was_chosen(reference: fedrobust.Result) -> None:
    chosen = [record for record in reference.rounds if record["referee"]["chosen"] == "mean"]
    for record in chosen:  # the mean gives nobody the weight zero, and cuts long updates
        norms, weights = record["update_norm"], record["weights"]
        middle = np.median(list(norms.values()))
        expected = {client: min(1.0, middle / norm) / len(norms) for client, norm in norms.items()}
        assert weights == pytest.approx(expected, rel=1e-6)


def test_figures_of_both_are_in_mlflow(reference: fedrobust.Result) -> None:
    from mlflow import MlflowClient

    metrics = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db").get_run(reference.run_id).data.metrics
    assert metrics["referee/defence"] > 0 and metrics["defense/overruled"] in (0.0, 1.0)
    assert metrics["defense/repair_steps"] == reference.rounds[-1]["repair"]


@pytest.mark.slow
@pytest.mark.parametrize(("overrides", "name", "last"), [(OVERRIDES, "reference", 5), (LATE, "late", 6)])
def test_resumed_in_the_middle_with_the_same_bits(
    overrides: list[str], name: str, last: int, request: pytest.FixtureRequest, pool: Pool
) -> None:
    reference, before = request.getfixturevalue(name), set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*overrides, hooks=[stop], pool=pool)
    again = ended_again(overrides, before, pool)
    assert again.final["model_sha256"] == reference.final["model_sha256"]
    assert journal_without_seconds(again) == journal_without_seconds(reference)


def test_a_referee_saves_a_run_whose_defence_believes_the_attackers(pool: Pool) -> None:
    attacked = [
        "attacks=[{name: sign_flip, count: 3, scale: 4}]",
        "aggregation={rule: foolsgold}",
        "learning.server=fedavg",
        ASIDE,
    ]
    alone = run(*attacked, pool=pool)
    saved = run(*attacked, "trust.referee={}", pool=pool)
    assert alone.final["test/balanced_accuracy"] < 0.7 < saved.final["test/balanced_accuracy"]
    overruled = [record["referee"]["chosen"] for record in saved.rounds]
    assert len([name for name in overruled if name != "defence"]) >= 3


def test_the_best_model_comes_back_where_every_hypothesis_makes_the_model_worse(late: fedrobust.Result) -> None:
    found = late
    refused = [record["referee"]["refused"] for record in found.rounds]
    assert sum(refused) >= 3
    best = (np.inf, found.recorded.start.model)
    for record, no in zip(found.rounds, refused, strict=True):
        ruling = record["referee"]
        if no:
            assert record["model"] == best[1]
        else:
            best = min(best, (ruling["losses"][ruling["chosen"]], record["model"]))
        assert ("the referee refused the sum: defence" in record["notes"]) == no
    from mlflow import MlflowClient

    metrics = MlflowClient(f"sqlite:///{Path.cwd()}/mlruns/mlflow.db").get_run(found.run_id).data.metrics
    assert metrics["defense/refused"] == float(refused[-1])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["lean", "stacked"])
def test_attackers_that_know_the_patches_look_better_to_the_referee(engine: str, pool: Pool) -> None:
    def losses(knowledge: str) -> list[float]:
        flip = f"attacks=[{{name: label_flip, count: 6, knowledge: {knowledge}, pleasing: 0.7}}]"
        options = ["aggregation={rule: mean}", "learning.server=fedavg", "trust.referee={hypotheses: []}", ASIDE]
        found = run(flip, *options, f"learning.local.engine={engine}", "federation.rounds=4", pool=pool)
        return [record["referee"]["losses"]["defence"] for record in found.rounds]

    assert sum(losses("patches")) < sum(losses("own")) - 0.2


@pytest.mark.parametrize("protocol", ["shares", "masked"])
def test_a_repair_works_where_no_update_is_seen(protocol: str, pool: Pool) -> None:
    options = ["attacks=[]", "aggregation={rule: mean}", "federation.rounds=2", f"privacy={protocol}", ASIDE]
    found = run(*options, "trust.repair={steps: 5, certainty: 100}", pool=pool)
    assert [record.get("repair") for record in found.rounds] == [None, 5]


def test_a_repair_needs_no_referee(pool: Pool) -> None:
    options = ["attacks=[]", "aggregation={rule: mean}", "federation.rounds=4", ASIDE]
    plain = run(*options, pool=pool)
    repaired = run(*options, "trust.repair={steps: 10, certainty: 100}", pool=pool)
    assert ["repair" in record for record in repaired.rounds] == [False, False, False, True]
    assert repaired.rounds[-1]["repair"] == 10 and "referee" not in repaired.rounds[-1]
    assert [record["model"] for record in plain.rounds[:3]] == [record["model"] for record in repaired.rounds[:3]]
    assert repaired.final["model_sha256"] != plain.final["model_sha256"]
