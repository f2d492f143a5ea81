"""Whole runs whose updates nobody sees: as in the clear, with the same bits whatever the workers and the crashes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from tiny import ended_again, run

import fedrobust
from fedrobust.audit.log import timeless
from fedrobust.audit.verification import verify_all
from fedrobust.federation.delivery import ByMasks
from fedrobust.federation.parties import PartyTeam
from fedrobust.federation.pool import Pool
from fedrobust.records import Record
from fedrobust.runner import run as run_experiment

pytestmark = pytest.mark.usefixtures("in_place")

ROUNDS = 5
FLIPS = "attacks=[{name: sign_flip, count: 2, scale: 3}]"
WORN = [f"federation.rounds={ROUNDS}", FLIPS, "aggregation={stages: [nnm], rule: adaptive}", "trust.acts=true", "trust.detector=consensus"]  # fmt: skip  # noqa: E501
"""A defence that remembers updates, at the servers, and reputations, which act."""
REPEATABLE = {
    "clear": "privacy=clear",
    "shares": "privacy={name: shares, sketch: null, randomness: seed}",
    "replicated": "privacy={name: replicated, sketch: null, randomness: seed}",
}
MEAN = ["federation.rounds=3", "attacks=[]", "aggregation={rule: mean}"]


@pytest.fixture(scope="module")
def worn(place: Path, pool: Pool) -> dict[str, fedrobust.Result]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return {name: run(*WORN, privacy, pool=pool) for name, privacy in REPEATABLE.items()}


def ended(actor: Any) -> None:
    """Kill an actor, and wait until it is dead: until then it may still answer."""
    ray.kill(actor)
    with pytest.raises(ray.exceptions.RayActorError):
        while True:
            ray.get(actor.__ray_ready__.remote(), timeout=60)


def timeless_rounds(result: fedrobust.Result) -> list[dict[str, Any]]:
    """What a run tells of its rounds, but what depends on the attempt: how long, and digests of messages."""
    left_out = ("commitments", "server_bytes")
    return [{key: value for key, value in timeless(record).items() if key not in left_out} for record in result.rounds]


def difference(one: fedrobust.Result, other: fedrobust.Result) -> float:
    a, b = (np.concatenate([t.numpy().ravel() for t in each.state_dict.values()]) for each in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", ["shares", "replicated"])
def test_a_run_ends_as_in_the_clear(name: str, worn: dict[str, fedrobust.Result]) -> None:
    clear, secret = worn["clear"], worn[name]
    assert [record.get("skipped") for record in secret.rounds] == [None] * ROUNDS
    for theirs, ours in zip(clear.rounds, secret.rounds, strict=True):
        assert (ours["quarantined"], ours["rejected"]) == (theirs["quarantined"], {})
        for what in ("weights", "reputation", "anomaly"):
            assert ours[what] == pytest.approx(theirs[what], abs=5e-3)
        assert (ours["functionals"], len(ours["commitments"])) == (0, 8)
        assert ours["upload_bytes"] > theirs["upload_bytes"] * (1.9 if name == "shares" else 3.8)
    assert secret.attackers == clear.attackers
    assert secret.final["test/balanced_accuracy"] == pytest.approx(clear.final["test/balanced_accuracy"], abs=0.02)
    assert difference(secret, clear) < 2e-3
    attackers = set(secret.attackers)
    assert set(secret.rounds[-1]["quarantined"]) == attackers
    assert not verify_all(secret.folder).broken


@pytest.mark.parametrize("name", ["shares", pytest.param("replicated", marks=pytest.mark.long)])
def test_the_default_has_real_secrets_and_a_sketch(
    name: str, worn: dict[str, fedrobust.Result], pool: Pool, place: Path
) -> None:
    found = run(*WORN, f"privacy={name}", pool=pool)
    assert [record.get("skipped") for record in found.rounds] == [None] * ROUNDS
    assert all(record["rejected"] == {} for record in found.rounds)
    assert found.final["test/balanced_accuracy"] == pytest.approx(
        worn["clear"].final["test/balanced_accuracy"], abs=0.05
    )
    assert set(found.rounds[-1]["quarantined"]) >= set(found.attackers)
    assert found.final["model_sha256"] != worn[name].final["model_sha256"]
    assert not verify_all(found.folder).broken


def test_a_masked_mean_is_the_mean(worn: dict[str, fedrobust.Result], pool: Pool) -> None:
    clear, masked = (run(*MEAN, f"privacy={name}", pool=pool) for name in ("clear", "masked"))
    assert difference(masked, clear) <= 1e-5
    assert all(record["weights"] == pytest.approx(dict.fromkeys(map(str, range(8)), 1 / 8)) for record in masked.rounds)
    again = run(*MEAN, "privacy=masked", pool=pool)
    assert again.final["model_sha256"] == masked.final["model_sha256"]  # although masks are real randomness


@pytest.mark.long
def test_the_same_bits_with_one_worker(worn: dict[str, fedrobust.Result]) -> None:
    again = run(*WORN, REPEATABLE["shares"], "workers.count=1")
    assert again.final["model_sha256"] == worn["shares"].final["model_sha256"]
    assert timeless_rounds(again) == timeless_rounds(worn["shares"])
    assert [r["commitments"] for r in again.rounds] != [r["commitments"] for r in worn["shares"].rounds]  # another run


@pytest.mark.parametrize("name", ["shares", pytest.param("replicated", marks=pytest.mark.long)])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    name: str, worn: dict[str, fedrobust.Result], pool: Pool
) -> None:
    before = set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*WORN, REPEATABLE[name], hooks=[stop], pool=pool)
    resumed = ended_again([*WORN, REPEATABLE[name]], before, pool)
    assert resumed.final["model_sha256"] == worn[name].final["model_sha256"]
    assert timeless_rounds(resumed) == timeless_rounds(worn[name])
    assert not verify_all(resumed.folder).broken


@pytest.mark.long
def test_actors_that_die_in_the_middle_of_a_round_change_nothing(
    worn: dict[str, fedrobust.Result], pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In round 2 a server, in round 3 the dealer, in round 4 the first worker, after it has trained."""
    send, attempts = PartyTeam.send, list[tuple[int, int]]()

    def killing(self: PartyTeam, round: int, attempt: int, blocks: Sequence[Any]) -> Any:
        attempts.append((round, attempt))
        if (round, attempt) == (4, 0):
            ray.kill(pool._all[0].workers[0])
        sent = send(self, round, attempt, blocks)
        if attempt == 0 and round in (2, 3):
            ray.kill(self._servers[1] if round == 2 else self._dealer)
        return sent

    monkeypatch.setattr(PartyTeam, "send", killing)
    survived = run(*WORN, REPEATABLE["shares"], pool=pool)
    assert attempts == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1), (5, 0)]
    assert survived.final["model_sha256"] == worn["shares"].final["model_sha256"]
    assert timeless_rounds(survived) == timeless_rounds(worn["shares"])
    assert not verify_all(survived.folder).broken


@pytest.mark.long
def test_a_worker_that_dies_under_masks_costs_its_hospitals_the_round(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has lost its masks has dropped out; in the next round they are all there."""
    begin = ByMasks.send

    def killing(self: ByMasks, round: int, attempt: int, blocks: Sequence[Any]) -> Any:
        if round == 2:
            ended(pool._all[0].workers[0])
        return begin(self, round, attempt, blocks)

    monkeypatch.setattr(ByMasks, "send", killing)
    found = run(*MEAN, "privacy=masked", pool=pool)
    first, second, third = found.rounds
    assert set(second["rejected"].values()) == {"dropped out while the masks were made"}
    assert len(second["rejected"]) == len(second["weights"]) == len(second["commitments"]) == 4
    assert not set(second["rejected"]) & set(second["weights"])
    assert first["rejected"] == third["rejected"] == {}
    assert len(third["weights"]) == 8 and third["model"] != second["model"]


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "name",
    ["shares", "masked", *(pytest.param(name, marks=LONG) for name in ("clear", "replicated", "grouped"))],
)
def test_a_hospital_that_sends_no_update_is_told_so_and_the_run_goes_on(name: str, pool: Pool) -> None:
    found = run(
        "federation.rounds=2",
        "attacks=[{name: non_finite, count: 1}]",
        "aggregation={rule: mean}",
        f"privacy={name}",
        pool=pool,
    )
    (bad,) = found.attackers
    for record in found.rounds:
        assert "skipped" not in record
        assert list(record["rejected"]) == [str(bad)] and str(bad) not in record["weights"]
    reputation = found.rounds[-1]["reputation"]
    assert reputation[str(bad)] < 0.5


def test_one_strong_attacker_stands_out_from_its_groups(pool: Pool) -> None:
    found = run(
        "federation.rounds=10",
        "federation.clients=12",
        "learning.local.steps=2",
        "attacks=[{name: sign_flip, count: 1, scale: 3}]",
        "aggregation={rule: geometric_median, f: 1}",
        "privacy={name: grouped, size: 3}",
        "evaluation.last=1",
        pool=pool,
    )
    (attacker,) = found.attackers
    assert [record.get("skipped") for record in found.rounds] == [None] * 10
    reputation = found.rounds[-1]["reputation"]
    others = [value for client, value in reputation.items() if client != str(attacker)]
    assert reputation[str(attacker)] < min(others)
    assert found.final["test/balanced_accuracy"] > 0.6


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_on_real_tissue_the_secret_run_ends_within_noise_of_the_clear(
    idc_file: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDROBUST_DATA", str(idc_file))
    path = Path(__file__).parent.parent / "experiments" / "secure.yaml"
    quiet = ["tracking.model=false", "evaluation.last=5"]
    ways = {"clear": "privacy=clear", "shares": "privacy.name=shares", "replicated": "privacy.name=replicated"}

    def accuracy(seed: int, way: str) -> float:
        found = run_experiment(fedrobust.load(path, [*quiet, f"seed={seed}", way]), pool=pool)
        assert not any("skipped" in record or record["rejected"] for record in found.rounds)
        return float(np.mean([r["metrics"]["test/balanced_accuracy"] for r in found.rounds if "metrics" in r]))

    seeds = {"clear": range(1, 6), "shares": range(1, 6), "replicated": range(1, 2)}
    figures = {name: [accuracy(seed, ways[name]) for seed in seeds[name]] for name in ways}
    assert abs(np.mean(figures["shares"]) - np.mean(figures["clear"])) <= 0.005, figures
    for name in ("shares", "replicated"):
        assert all(abs(one - other) <= 0.02 for one, other in zip(figures[name], figures["clear"], strict=False)), (
            figures
        )
