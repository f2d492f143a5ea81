"""Rounds of pairwise masks over actors: the mean and no more, whoever drops out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from acted import updates
from masked_house import CLIP, GROUPS, D, N, house, silent

from fedrobust.secure.messages import Kind, unpack


@pytest.mark.parametrize("privacy", [CLIP, GROUPS, CLIP | {"neighbours": 4}, CLIP | {"bits": 64}], ids=str)
def test_the_model_moves_by_the_mean_of_the_clipped_updates(privacy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(privacy, monkeypatch), updates(0, N, D, malicious=(1, 4))
    record = made.round(rows)
    clipped = rows * np.minimum(1, 1 / np.linalg.norm(rows, axis=1))[:, None]
    expected = clipped.mean(axis=0)
    assert np.linalg.norm(made.arrays["weights"] - expected) <= 1e-5 * np.linalg.norm(expected)
    assert record["weights"] == pytest.approx(dict.fromkeys(range(N), 1 / N))
    assert record["rejected"] == {} and sorted(record["commitments"]) == list(range(N))
    assert ("anomaly" in record) == (privacy["name"] == "grouped")
    # Masks are real randomness: another run sends other messages, and opens the same bits.
    again = house(privacy, monkeypatch)
    other = again.round(rows)
    assert other["model"] == record["model"] and other["commitments"] != record["commitments"]


def test_the_bits_do_not_depend_on_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for privacy in (CLIP, GROUPS):
        runs = [house(privacy, monkeypatch, workers=workers) for workers in (1, 2, 9)]
        assert len({run.round(updates(0, N, D))["model"] for run in runs}) == 1


def test_sample_counts_are_weights_that_only_their_sum_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = house(CLIP | {"largest_count": 15}, monkeypatch, {"rule": "mean", "weighting": "samples"})
    rows = updates(0, N, D)
    made.round(rows)
    counts = np.minimum(made.samples, 15)
    expected = counts @ rows / counts.sum()
    assert np.linalg.norm(made.arrays["weights"] - expected) <= 1e-5 * np.linalg.norm(expected)


def test_what_reaches_the_coordinator_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    made.answers.seen.clear()
    made.round(rows)
    sent = [data for each in made.answers.seen if isinstance(each, dict) for data in each.values()]
    found = [unpack(data) for data in sent if isinstance(data, bytes)]
    kinds = {kind: [m for m in found if m.kind is kind] for kind in {message.kind for message in found}}
    assert {kind: len(each) for kind, each in kinds.items()} == dict.fromkeys(
        (Kind.KEYS, Kind.KEY_SHARES, Kind.MASKED, Kind.UNMASK), N
    )
    words = np.stack([np.frombuffer(m.body, dtype=np.uint32)[:-1] for m in kinds[Kind.MASKED]])
    correlations = np.corrcoef(np.vstack([words.astype(np.float64), rows]))[:N, N:]
    assert np.abs(correlations).max() < 5 / np.sqrt(D)
    pairs = words[:, None] + words[None]  # nor do those of any two
    correlations = np.corrcoef(np.vstack([pairs.reshape(N * N, D).astype(np.float64), rows]))[: N * N, N * N :]
    assert np.abs(correlations).max() < 5.5 / np.sqrt(D)


@pytest.mark.parametrize("privacy", [CLIP, GROUPS], ids=["masked", "grouped"])
def test_an_update_that_is_not_finite_is_left_out(privacy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(privacy | ({"size": 4} if "size" in privacy else {}), monkeypatch), updates(0, N, D)
    rows[3, 7] = np.nan
    record = made.round(rows)
    assert record["rejected"] == {3: "dropped out while the masks were made"}
    assert 3 not in record["weights"] and 3 not in record["commitments"]
    expected = np.delete(rows, 3, axis=0).mean(axis=0)
    np.testing.assert_allclose(made.arrays["weights"], expected, rtol=0, atol=1e-6)
    assert record["reputation"][3] < 0.5
    assert "skipped" not in made.round(updates(1, N, D))


@pytest.mark.parametrize("step", range(4))
def test_who_drops_out_at_a_step(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch), updates(0, N, D)
    with monkeypatch.context() as patch:
        silent(patch, {2, 5}, step)
        record = made.round(rows)
    there = [client for client in range(N) if step == 3 or client not in (2, 5)]
    assert sorted(record["weights"]) == there and sorted(record["commitments"]) == there
    assert sorted(record["rejected"]) == sorted(set(range(N)) - set(there))
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)
    assert "skipped" not in made.round(updates(1, N, D))


@pytest.mark.parametrize(("step", "reason"), [(0, "2 clients sent keys, at least 3 are needed"), (1, "2 clients sent shares"), (2, "2 of 9 updates were usable, below the quorum"), (3, "1 of the 8 neighbours of client 0")])  # fmt: skip  # noqa: E501
def test_too_few_left_skip_the_round_with_nothing_opened(
    step: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = house(CLIP | {"threshold": 0.5}, monkeypatch)
    with monkeypatch.context() as patch:
        silent(patch, set(range(2, N)), step)
        patch.setattr("fedrobust.secure.masking_server.decode", lambda *_: pytest.fail("a sum was opened"))
        record = made.round(updates(0, N, D))
    assert reason in record["skipped"]
    assert "weights" not in record and not made.arrays["weights"].any()
    # Only who did not do its part loses its standing.
    assert sorted(record["rejected"]) == list(range(2, N))
    assert record["reputation"][0] == 0.5
    assert "skipped" not in made.round(updates(1, N, D))


def test_below_the_quorum_the_sum_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = house(CLIP, monkeypatch, federation={"clients": N, "quorum": 0.9})
    with monkeypatch.context() as patch:
        silent(patch, {4}, 1)
        patch.setattr("fedrobust.secure.masking_server.decode", lambda *_: pytest.fail("a sum was opened"))
        record = made.round(updates(0, N, D))
    assert record["skipped"] == (
        "8 of 9 updates were usable, below the quorum of 0.9 (dropped out while the masks were made: 1)"
    )
    assert sorted(record["rejected"]) == [4]


@pytest.mark.parametrize("step", range(4))
def test_a_worker_that_dies_is_a_few_hospitals_that_drop_out(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made, rows = house(CLIP, monkeypatch, workers=9), updates(0, N, D)
    calls: list[str] = []

    def dies(method: str, arguments: Any) -> bool:
        calls.append(arguments[0])
        return len(calls) == step + 1

    made.hospitals[6].dies = dies
    record = made.round(rows)
    there = [client for client in range(N) if client != 6 or step == 3]
    assert sorted(record["weights"]) == there
    np.testing.assert_allclose(made.arrays["weights"], rows[there].mean(axis=0), rtol=0, atol=1e-6)
