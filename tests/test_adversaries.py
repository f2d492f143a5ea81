"""Whole runs with attackers that know the defence, change their names or stay away, and a trust that acts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import ended_again, journal_without_seconds, run

import fedrobust
from fedrobust.federation.pool import Pool
from fedrobust.records import Record

pytestmark = pytest.mark.usefixtures("in_place")

ACTS = "trust={acts: true, quarantine: {enter: 0.4}}"
AWARE = "attacks=[{name: optimal_ipm, count: 2, evaluations: 8}]"
FLIP = "attacks=[{name: sign_flip, count: 2, scale: 4}]"
LARGE = ["learning.model.channels=[32,64]", "federation.rounds=4", "learning.local.steps=2"]
"""A model of 20,000 parameters: both shards have columns to hold."""


def stopped_after(round: int, *overrides: str, pool: Pool) -> fedrobust.Result:
    """A run that was stopped after a round, and resumed."""
    before = set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == round:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*overrides, hooks=[stop], pool=pool)
    return ended_again(list(overrides), before, pool)


@pytest.mark.slow
def test_quarantine_keeps_attackers_out_and_survives_a_crash(place: Path, pool: Pool) -> None:
    options = [FLIP, ACTS, "aggregation.stages=[]", "aggregation.rule=mean"]
    whole = run(*options, pool=pool)
    attackers = sorted(int(client) for client in whole.attackers)
    assert whole.rounds[-1]["quarantined"] == attackers
    assert [whole.rounds[-1]["weights"][str(client)] for client in attackers] == [0, 0]
    assert all(whole.rounds[-1]["anomaly"][str(client)] > 0.5 for client in attackers)  # probes are scored
    assert whole.final["test/balanced_accuracy"] > 0.8
    again = stopped_after(4, *options, pool=pool)
    assert again.final["model_sha256"] == whole.final["model_sha256"]
    assert journal_without_seconds(again) == journal_without_seconds(whole)
    recorded_only = run(*options[:1], *options[2:], pool=pool)
    assert recorded_only.final["test/balanced_accuracy"] < whole.final["test/balanced_accuracy"] - 0.1


@pytest.mark.long
@pytest.mark.parametrize("rule", ["foolsgold", "fltrust"])
def test_attackers_that_know_the_defence_do_the_same_after_a_crash(place: Path, pool: Pool, rule: str) -> None:
    options = [AWARE, ACTS, "aggregation.stages=[]", f"aggregation.rule={rule}", "federation.rounds=4"]
    whole, again = run(*options, pool=pool), stopped_after(2, *options, pool=pool)
    assert again.final["model_sha256"] == whole.final["model_sha256"]
    assert journal_without_seconds(again) == journal_without_seconds(whole)


@pytest.mark.long
def test_attackers_that_know_the_defence_and_shards(place: Path, pool: Pool, sharded: Pool) -> None:
    options = [*LARGE, AWARE, ACTS, "aggregation.stages=[]", "aggregation.rule=foolsgold"]
    whole, parts = run(*options, pool=pool), run(*options, "workers.shards=2", pool=sharded)
    assert parts.final["model_sha256"] == whole.final["model_sha256"]


@pytest.mark.long
def test_whitewashing_attackers_come_back_as_strangers(place: Path, pool: Pool) -> None:
    washing = "attacks=[{name: sign_flip, count: 2, scale: 4, identity: {name: whitewash, every: 3}}]"
    options = [washing, ACTS, "aggregation.stages=[]", "aggregation.rule=mean"]
    found = run(*options, pool=pool)
    attackers = sorted(str(client) for client in found.attackers)
    for record in found.rounds:
        assert sorted(record["reputation"]) == sorted(map(str, range(8)))
        assert sorted(record["anomaly"]) == sorted(map(str, range(8)))
        assert set(map(str, record["attacking"])) == set(attackers)
    kept = run(FLIP, *options[1:], pool=pool)
    assert [record["quarantined"] for record in found.rounds[:3]] == [r["quarantined"] for r in kept.rounds[:3]]
    assert "identities" not in found.rounds[2]
    ids = [found.rounds[round]["identities"] for round in (3, 6)]
    assert [sorted(each) for each in ids] == [attackers, attackers]
    assert sorted([*ids[0].values(), *ids[1].values()]) == [8, 9, 10, 11]
    bad = [[record["reputation"][client] for client in attackers] for record in (found.rounds[5], kept.rounds[5])]
    assert min(bad[0]) > max(bad[1])  # a stranger again, three bad rounds instead of six
    again = stopped_after(5, *options, pool=pool)
    assert journal_without_seconds(again) == journal_without_seconds(found)


def test_the_oracle_is_the_mean_of_the_honest(place: Path, pool: Pool) -> None:
    options = ["aggregation.stages=[]", "aggregation.rule=mean", "federation.rounds=3"]
    absent = run("attacks=[{name: absent, count: 2}]", *options, pool=pool)
    attackers = {int(client) for client in absent.attackers}
    for record in absent.rounds:
        assert record["participants"] == sorted(set(range(8)) - attackers)
        assert all(weight == pytest.approx(1 / 6) for weight in record["weights"].values())
    flip = run(FLIP, *options, pool=pool)
    assert {int(client) for client in flip.attackers} == attackers  # the same hospitals for every attack of this size


def test_sybils_send_one_poisoned_update(place: Path, pool: Pool) -> None:
    attack = "attacks=[{name: label_flip, count: 3, identity: sybil}]"
    found = run(attack, "aggregation.stages=[]", "aggregation.rule=mean", "federation.rounds=2", pool=pool)
    for record in found.rounds:
        norms = {record["update_norm"][str(client)] for client in found.attackers}
        assert len(norms) == 1
        assert len(set(record["update_norm"].values())) == 6
