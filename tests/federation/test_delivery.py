"""The ways of updates: which one a protocol takes, and where its parties are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import ray
from acted import House, options, updates

from fedrobust.errors import FederationError
from fedrobust.federation.delivery import ByMasks, Delivery, ToCoordinator, ToParties
from fedrobust.federation.party_host import PartyHost
from fedrobust.federation.pool import Share, Team


@pytest.mark.parametrize(
    ("privacy", "kind", "attempts"),
    [
        ("clear", ToCoordinator, 1),
        ("shares", ToParties, 3),
        ("replicated", ToParties, 3),
        ("masked", ByMasks, 1),
        ("grouped", ByMasks, 1),
    ],
)
def test_each_protocol_has_its_way(
    privacy: str, kind: type[Delivery], attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(options(privacy), 100, monkeypatch)
    assert type(house.way) is kind and house.way.attempts == attempts
    record = house.round(updates(d=100))
    np.testing.assert_allclose(house.arrays["weights"], updates(d=100).mean(axis=0), rtol=0, atol=1e-6)
    assert len(record["commitments"]) == 8
    assert len(house.parties) == (3 if kind is ToParties else 0)


@pytest.mark.parametrize("privacy", ["clear", "shares", "masked", "grouped"])
def test_a_federation_in_which_nobody_sends_an_update_goes_on(privacy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(options(privacy), 100, monkeypatch)
    record = house.round(np.full((8, 100), np.nan))
    assert record["skipped"] and sorted(record["rejected"]) == list(range(8))
    assert set(record["reputation"].values()) == {0.5} and record["suspected"] == []  # that sets nobody apart
    assert "skipped" not in house.round(updates(d=100))


def test_a_detector_that_remembers_does_not_stop_a_protocol_that_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(options("masked", trust={"detector": "consensus"}), 100, monkeypatch)
    for round in range(2):
        record = house.round(updates(round, d=100))
        assert "skipped" not in record and "anomaly" not in record


def test_only_the_coordinators_arrays_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(options("shares", "adaptive"), 100, monkeypatch)
    house.round(updates(d=100))
    kept = {name for name in house.arrays if name.startswith("party/")}
    assert {name.split("/")[1] for name in kept} == {"0", "1"} and len(kept) == 2 * (2 + 8)
    left = house.way.setup(1, house.arrays)
    assert set(left) == set(house.arrays) - kept
    # No party is given what is another's.
    for number, party in enumerate(house.parties[:2]):
        components = {k for parts in party.made._party.memory().values() for k, lines in parts.items() if lines}
        assert components == {number}


class Handle:
    """What Ray would return for an actor that is started with these options."""

    def __init__(self, **given: Any) -> None:
        self.given = given


def team(monkeypatch: pytest.MonkeyPatch, places: tuple[str, ...], known: dict[str, float]) -> Team:
    class Remote:
        def __init__(self, actor: type) -> None:
            assert actor is PartyHost

        def options(self, **given: Any) -> Any:
            return type("Ready", (), {"remote": staticmethod(lambda: Handle(**given))})

    monkeypatch.setattr(ray, "remote", Remote)
    monkeypatch.setattr(ray, "cluster_resources", lambda: known)
    nobody: Any = None
    return Team([], nobody, [], nobody, Share(1, 1.0, 0.0, 1), places)


def test_parties_are_pinned_to_the_nodes_that_have_their_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    made = team(monkeypatch, ("here", "there", "there"), {"CPU": 2.0, "here": 1.0, "there": 1.0})
    found: list[Any] = made.parties(3, 1.0)
    assert [list(each.given["resources"]) for each in found] == [["here"], ["there"], ["there"]]
    assert all(each.given["num_cpus"] == 0.0 for each in found)  # they take no client actor's core
    # So little that many runs have room, and no party waits for ever.
    assert all(amount <= 0.001 for each in found for amount in each.given["resources"].values())


def test_a_resource_that_no_node_has_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"CPU": 2.0, "node:10.0.0.1": 1.0, "memory": 1e9, "object_store_memory": 1e9, "here": 1.0, "hospital": 2.0}
    with pytest.raises(FederationError) as refused:
        team(monkeypatch, ("here", "ther", "here"), known).parties(3, 1.0)
    assert str(refused.value) == (
        "workers.parties.1: no node of the cluster has the resource 'ther'; there are: here, hospital"
    )
    with pytest.raises(FederationError, match="there are: none"):
        team(monkeypatch, ("here", "here", "here"), {"CPU": 2.0, "GPU": 1.0}).parties(3, 1.0)
