"""Where a defence needs lengths alone, or nothing, no product of two updates leaves the servers."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare
from wrapped import CLIP, NAMES, RUN, UNEQUAL, WRAPS, D, N, defended, honest, mean, parties, play

from fedrobust.aggregation import Combination
from fedrobust.secure import shared_updates as coordinator
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import HEADER, Kind, unpack
from fedrobust.secure.opening import misfit
from fedrobust.secure.ring import FRACTION, halved
from fedrobust.secure.shares import Dealer
from fedrobust.secure.weights import LARGEST_WEIGHT, OpeningError
from fedrobust.updates import ClearUpdates, NotRevealed

OPENS = ("gram", "norms", "sum")
CLEAR = honest() * (CLIP * 2.0**-FRACTION)


def sent_to_coordinator(name: str, opens: str, rows: np.ndarray) -> tuple[dict[Kind, np.ndarray], list[bytes]]:
    """What the coordinator gets in a round in which it asks for all that it may: the sums of the servers' parts by
    their kind, and the parts themselves. Every secret is the same each time."""
    seen: list[bytes] = []

    def wire(data: bytes) -> bytes:
        if data[37:48] == b"coordinator":
            seen.append(data)
        return data

    played = LocalParties(name, RUN, D, np.random.default_rng(7).bytes, wire, opens=opens, vectors=1)  # type: ignore[arg-type]
    opened = play(played, list(rows))
    if opens != "sum":
        opened.norms({"public": np.ones(D)})
    opened._round.combine(np.full(N, LARGEST_WEIGHT))
    found: dict[Kind, np.ndarray] = {}
    for message in map(unpack, seen):
        part = np.frombuffer(message.body, dtype=np.int64)
        found[message.kind] = found.get(message.kind, np.zeros_like(part)) + part
    return found, [bytes(unpack(data).body) for data in seen if unpack(data).kind == Kind.GRAM]


def turned_apart() -> tuple[np.ndarray, np.ndarray]:
    """Two worlds with the same lengths, the same sum and the same products with a vector of ones, but other angles: in
    one, updates 0 and 1 differ by a vector in the first coordinate, in the other by one in the second."""
    rows = honest()
    rows[:, :2] = np.arange(2 * N).reshape(N, 2) ** 2 << 12
    rows[1] = rows[0]
    worlds = []
    for place in range(2):
        rows[:2, :2] = 0
        rows[0, place], rows[1, place] = 1 << 20, -(1 << 20)
        worlds.append(rows.copy())
    return worlds[0], worlds[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opens", OPENS)
def test_the_coordinator_is_sent_the_same_whatever_the_angles_are(
    opens: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Servers' keys come from the system otherwise: here, so that both worlds can be compared to the last bit.
    monkeypatch.setattr("fedrobust.secure.links.os.urandom", lambda count: hashlib.sha256(b"nonce").digest()[:count])
    one, other = turned_apart()
    angles = [world.astype(object) @ world.T.astype(object) for world in (one, other)]
    assert (np.diag(angles[0]) == np.diag(angles[1])).all() and (angles[0] != angles[1]).sum() > 2 * N
    (first, parts), (second, _) = (sent_to_coordinator(name, opens, world) for world in (one, other))
    kinds = {Kind.PROJECTIONS, Kind.AGGREGATE} | ({Kind.GRAM, Kind.ANCHOR} if opens != "sum" else set())
    assert set(first) == set(second) == kinds
    for kind in kinds - {Kind.PROJECTIONS}:  # random combinations, under noise
        assert np.array_equal(first[kind], second[kind]) == (opens != "gram" or kind != Kind.GRAM), kind
    if opens == "norms":
        assert (halved(first[Kind.GRAM]) == np.diag(angles[0])).all()
        assert all(len(part) == 8 * N for part in parts) and len(set(parts)) == len(parts)


@pytest.mark.parametrize("name", NAMES)
def test_each_part_of_the_lengths_is_uniform(name: str) -> None:
    seen: list[bytes] = []

    def wire(data: bytes) -> bytes:
        if data[HEADER.size - 9] == Kind.GRAM:
            seen.append(bytes(unpack(data).body))
        return data

    played = LocalParties(name, RUN, D, np.random.default_rng(3).bytes, wire, opens="norms")  # type: ignore[arg-type]
    for round in range(60):
        played.play(np.zeros((N, D)), round, CLIP)
    for server in range(played.count):
        part = np.frombuffer(b"".join(seen[server :: played.count]), dtype=np.uint8)
        assert chisquare(np.bincount(part, minlength=256)).pvalue > 1e-3
    assert not any(np.frombuffer(b"".join(seen), dtype=np.int64).reshape(60, played.count, N).sum(axis=1).ravel())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opens", OPENS)
def test_what_is_not_opened_cannot_be_asked_for(opens: str, name: str) -> None:
    opened = play(parties(name, opens=opens), list(honest()))
    assert opened.reveals == {"sum", opens} and opened.finite_rows().all()
    public = {"public": np.ones(D)}
    for ask, least in ((opened.gram, "gram"), (opened.norms, "norms")):
        if OPENS.index(opens) > OPENS.index(least):
            with pytest.raises(NotRevealed):
                ask(public)
    if opens == "norms":
        ours, theirs = opened.norms(public), ClearUpdates([CLEAR]).norms(public)
        assert np.allclose(ours.norms(), theirs.norms(), rtol=1e-7)
        assert np.isnan(ours.matrix[~np.eye(N, dtype=bool)]).all()
        nearer = Combination(np.zeros(N), {"public": 0.01})
        assert np.allclose(ours.distances_squared_to(nearer), theirs.distances_squared_to(nearer), rtol=1e-6)
    part = opened.subset(np.arange(1, N))
    assert part.reveals == opened.reveals
    weights = UNEQUAL[1:] / UNEQUAL[1:].sum()
    found = part.combine(Combination(weights))
    assert np.abs(found - mean(honest()[1:], weights)).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_servers_that_open_a_sum_take_no_step_towards_a_product(name: str) -> None:
    played = parties(name, opens="sum")
    play(played, list(honest()))
    steps: dict[str, tuple[Any, ...]] = {"gram_share": (), "anchor_share": (np.zeros(D, dtype=np.int64),)}
    if name == "shares":
        steps |= {"receive_triple": (b"",), "difference": (0,), "add_difference": (b"",)}
    for step, arguments in steps.items():
        with pytest.raises(OpeningError):
            played.ask(step, *arguments)
    with pytest.raises(ValueError, match="whole"):
        parties(name, opens="norms", histories=("sum",))


def test_a_dealer_of_lengths_gives_no_triple_for_a_whole_matrix() -> None:
    played = parties("shares", opens="norms")
    played.receive(1, {client: played.sent(row, 1, client) for client, row in enumerate(honest())})
    dealer = Dealer()
    dealer.meet(RUN, [server.introduce() for server in played.servers])
    for server, triple in zip(played.servers, dealer.triple(RUN, 1, N, D), strict=True):
        if server.number:  # the message to server 0 is a seed and a mask, whatever they are expanded to
            with pytest.raises(Exception, match="triple is not for"):
                server.receive_triple(triple.pack())  # type: ignore[union-attr]
    own = Dealer(opens="sum")
    own.meet(RUN, [server.introduce() for server in played.servers])
    with pytest.raises(OpeningError, match="no triple"):
        own.triple(RUN, 1, N, D)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_has_no_more_public_vectors_than_the_defence(name: str) -> None:
    """A coordinator that spends all functionals of a run in one round would read that many numbers of each update."""
    played = parties(name, vectors=2, max_functionals=40)
    for round in range(2):
        opened = play(played, list(honest()), round)
        opened.gram({str(place): np.eye(D)[place] for place in range(600, 602)})
        with pytest.raises(OpeningError, match="2 public vectors at most"):
            opened.gram({"another": np.eye(D)[700]})
        assert {server.functionals for server in played.servers} == {2 * (round + 1)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opens", ["norms", "sum"])
@pytest.mark.parametrize("attack", list(WRAPS))
def test_updates_that_wrap_around_are_left_out(attack: str, opens: str, name: str) -> None:
    rows = honest()
    WRAPS[attack](rows[2])
    opened = play(parties(name, opens=opens), list(rows))
    assert opened.dropped == (2,) and 2 not in opened.clients
    found = defended(opened, UNEQUAL)
    weights = np.delete(UNEQUAL, 2)
    assert np.abs(found - mean(np.delete(honest(), 2, axis=0), weights)).max() < 1e-5


@pytest.mark.parametrize("opens", ["norms", "sum"])
def test_one_that_passes_is_found_in_the_sum(opens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "too_long", lambda *arguments: False)
    rows = honest()
    WRAPS["a dead coordinate at 2^32"](rows[2])
    opened = play(parties("shares", opens=opens), list(rows))
    assert opened.finite_rows().all()  # its length is that of the others, as far as it shows
    with pytest.raises(OpeningError, match="longer than updates of such products"):
        opened.combine(Combination(np.full(N, 1 / N)))


@pytest.mark.parametrize("sketch", [None, 256])
def test_a_sum_is_no_longer_than_all_updates_in_one_direction(sketch: int | None) -> None:
    weights, along = np.full(4, 4000), np.zeros(D, dtype=np.int64)
    along[0] = 1 << 27
    squares = np.full(4, 1 << 54, dtype=object)
    kept = 1.0 if sketch is None else 1 - 7 / 16
    for factor, fits in ((0.0, True), (1.0, True), (1.01 / kept, False)):
        total = (along * 4 * 4000 * factor).astype(np.int64)
        assert (misfit(total, weights, squares, 2, sketch) is None) == fits
