"""What clients, servers and a curious coordinator may try, each with the defence on, and with it switched off."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.aggregation import Combination
from fedrobust.secure import opened as coordinator
from fedrobust.secure import opening, server, shares
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import HEADER, Kind, MessageError, run_id, unpack
from fedrobust.secure.opened import Opened
from fedrobust.secure.opening import THRESHOLD, culprits
from fedrobust.secure.ring import FRACTION, encode, halved, signs, square_sum
from fedrobust.secure.server import PROJECTIONS, OpeningError, Server
from fedrobust.secure.shares import Dealer, ShareServer

RUN = run_id("attacks")
N, D, CLIP = 8, 2_000, 1.0
DEAD = 500
"""So many of the first coordinates are zero in every honest update."""
NAMES = ("shares", "replicated")
EQUAL = np.full(N, 1 / N)
UNEQUAL = np.arange(10, 10 + N) / np.arange(10, 10 + N).sum()
ODD = (np.rint(UNEQUAL * 2.0**32).astype(np.int64) | 1) / 2.0**32
"""The same with weights that are odd in fixed point."""

Attack = Callable[[np.ndarray], None]


def honest(n: int = N) -> np.ndarray:
    """Encoded updates (n, D) of norm 0.9 with dead coordinates."""
    rows = np.random.default_rng(0).normal(size=(n, D)) + 0.5
    rows[:, :DEAD] = 0.0
    rows *= 0.9 / np.linalg.norm(rows, axis=1)[:, None]
    return np.stack([encode(row, CLIP) for row in rows])


def at(columns: slice, value: int) -> Attack:
    """Adds `value` mod 2^64 to these columns."""

    def attack(row: np.ndarray) -> None:
        row[columns] += np.array(value, dtype=np.uint64).astype(np.int64)

    return attack


def scaled(row: np.ndarray) -> None:
    """What an honest client's update times a million is in the ring."""
    row *= 1_000_000


WRAPS: dict[str, Attack] = {
    "a dead coordinate at 2^32": at(slice(0, 1), 2**32),
    "256 at 2^28": at(slice(0, 256), 2**28),
    "4 at 2^31": at(slice(0, 4), 2**31),
    "one at 2^60, one at 2^33": lambda row: (at(slice(0, 1), 2**60)(row), at(slice(1, 2), 2**33)(row))[0],
    "1,000 live ones + 2^63": at(slice(600, 1600), 2**63),
    "999 live ones + 2^63": at(slice(600, 1599), 2**63),
    "a million times as long": scaled,
}


def parties(name: str, **options: Any) -> LocalParties:
    """The servers, with the same randomness every time."""
    return LocalParties(name, RUN, D, np.random.default_rng(7).bytes, **options)  # type: ignore[arg-type]


def play(played: LocalParties, rows: Sequence[np.ndarray], round: int = 1) -> Opened:
    """A round of clients who may send any words."""
    played.receive(round, {client: played.sent(row, round, client) for client, row in enumerate(rows)})
    return Opened(played, D, CLIP, None, played.entropy, played.servers[0].min_support)


def mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted mean of honest words."""
    return np.asarray(weights @ rows * 2.0**-FRACTION / weights.sum())


def defended(opened: Opened, weights: np.ndarray) -> np.ndarray:
    """What a coordinator does: it leaves out impossible rows, and opens the sum of the others."""
    finite = opened.finite_rows()
    rows = opened.subset(np.flatnonzero(finite))
    return rows.combine(Combination(weights[finite] / weights[finite].sum()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", WRAPS)
@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_a_wrapped_update_is_found_and_taken_out(name: str, attack: str, weights: np.ndarray) -> None:
    rows = honest()
    WRAPS[attack](rows[2])
    others = np.arange(N) != 2
    opened = play(parties(name), rows)
    refused = not opened.finite_rows()[2]
    found = defended(opened, weights)
    if attack.endswith("2^63") and opened.culprits == ():
        others[2] = True  # times an even weight it is nothing, and what is left of it is an honest row
        rows = honest()
    else:
        assert refused or opened.culprits == (2,)
    assert np.abs(found - mean(rows[others], weights[others])).max() < 1e-7
    if opened.culprits:
        assert opened.notes == ("client 2 sent an update that wraps around",)
        assert opened.functionals == PROJECTIONS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", [name for name in WRAPS if "live" in name])
def test_half_the_ring_is_found_where_its_weight_is_odd(
    name: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "dithered", lambda weights, entropy: weights)
    rows = honest()
    WRAPS[attack](rows[2])
    opened = play(parties(name), rows)
    assert opened.finite_rows()[2]
    opened.combine(Combination(ODD))
    assert opened.culprits == (2,)


@pytest.mark.parametrize("attack", WRAPS)
def test_without_the_check_it_does_more_than_any_honest_row(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "fits", lambda *_: True)
    monkeypatch.setattr(coordinator, "largest_square", lambda d: 2**62)
    monkeypatch.setattr(coordinator, "dithered", lambda weights, entropy: weights)
    rows = honest()
    WRAPS[attack](rows[2])
    others = np.arange(N) != 2
    opened = play(parties("shares"), rows)
    found = opened.combine(Combination(ODD))
    moved = np.linalg.norm(found - ODD[others] @ rows[others] * 2.0**-FRACTION)
    assert moved > 3 * ODD[2] * CLIP


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_a_pair_that_cancels_is_found_where_it_does_not(name: str, weights: np.ndarray) -> None:
    rows = honest()
    clean = mean(rows, weights)
    at(slice(0, 5), 2**40)(rows[1])
    at(slice(0, 5), 2**64 - 2**40)(rows[4])
    others = ~np.isin(np.arange(N), [1, 4])
    opened = play(parties(name), rows)
    assert opened.finite_rows().all()  # squares and products say nothing
    found = opened.combine(Combination(weights))
    assert opened.culprits == (1, 4)  # equal weights, too: their last bits are drawn afterwards
    assert np.abs(found - mean(rows[others], weights[others])).max() < 1e-7
    assert np.linalg.norm(clean) <= CLIP


def test_a_pair_that_cancels_exactly_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "dithered", lambda weights, entropy: weights)
    rows = honest()
    clean = mean(rows, EQUAL)
    at(slice(0, 5), 2**40)(rows[1])
    at(slice(0, 5), 2**64 - 2**40)(rows[4])
    opened = play(parties("shares"), rows)
    assert np.abs(opened.combine(Combination(EQUAL)) - clean).max() < 1e-7 and opened.culprits == ()


def test_an_unequal_pair_harms_without_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "fits", lambda *_: True)
    rows = honest()
    clean = mean(rows, UNEQUAL)
    at(slice(0, 5), 2**40)(rows[1])
    at(slice(0, 5), 2**64 - 2**40)(rows[4])
    found = play(parties("shares"), rows).combine(Combination(UNEQUAL))
    assert np.linalg.norm(found - clean) > 3 * (UNEQUAL[1] + UNEQUAL[4]) * CLIP


def test_a_word_that_a_known_weight_makes_small_is_found_all_the_same() -> None:
    """2^50 times the inverse of the weight mod 2^64, among those whose square looks like nothing."""
    weight, found = 2**27 + 1, 0
    for target in range(2**50, 2**50 + 20_000):
        word = target * pow(weight, -1, 2**64) % 2**64
        if 0 <= word**2 % 2**63 <= 2**57:
            found = word
            break
    rows = honest()
    at(slice(0, 1), found)(rows[2])
    assert 2**50 <= weight * found % 2**64 < 2**51
    opened = play(parties("shares"), rows)
    assert opened.finite_rows()[2]
    weights = np.full(N, 2.0**-3)
    weights[2] = weight / 2**32
    opened.combine(Combination(weights))
    assert opened.culprits == (2,)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, D - 1), st.integers(1, 400), st.integers(20, 63), st.booleans()), max_size=4),
    st.sampled_from(["equal", "unequal"]),
)
def test_what_passes_moves_the_sum_no_more_than_a_clipped_row(
    changes: list[tuple[int, int, int, bool]], weighting: str
) -> None:
    weights = EQUAL if weighting == "equal" else UNEQUAL
    rows = honest()
    for start, width, bits, negative in changes:
        at(slice(start, start + width), (2**64 - 2**bits) % 2**64 if negative else 2**bits)(rows[2])
    others = np.arange(N) != 2
    opened = play(parties("shares"), rows)
    if not opened.finite_rows()[2]:
        return
    try:
        found = opened.combine(Combination(weights))
    except OpeningError:
        return  # the round is skipped
    kept = found - weights[others] @ rows[others] * 2.0**-FRACTION
    if opened.culprits:
        assert opened.culprits == (2,)
        assert np.abs(found - mean(rows[others], weights[others])).max() < 1e-7
    else:
        assert np.linalg.norm(kept) <= weights[2] * CLIP * (1 + 1e-5)


def test_honest_rows_are_never_blamed() -> None:
    """The length of 32 projections beside the threshold, over many rows of very different shapes."""
    draw = np.random.default_rng(3)
    shapes = [draw.normal(size=400), np.eye(1, 400)[0], draw.normal(size=400) ** 3, np.ones(400), np.zeros(400)]
    rows = np.stack([encode(shape, 1e-3) for shape in shapes])
    gram = np.array(
        [[sum(int(a) * int(b) for a, b in zip(u, v, strict=True)) for v in rows] for u in rows], dtype=object
    )
    worst = 0.0
    for trial in range(300):
        projections = rows @ signs(draw.bytes(32), slice(0, 400), PROJECTIONS).T
        assert culprits(projections, range(5), gram) == [], trial
        worst = max(worst, *(square_sum(p) / gram[k, k] for k, p in enumerate(projections[:4])))
    assert PROJECTIONS / 2 < worst < 0.8 * THRESHOLD**2


def test_a_round_is_skipped_where_too_few_would_be_left() -> None:
    rows = honest(4)
    for row in rows[:2]:
        at(slice(0, 1), 2**32)(row)
    opened = play(parties("shares"), rows)
    with pytest.raises(OpeningError, match=r"without rows 0, 1 the weights lie on 2.00 updates"):
        opened.combine(Combination(np.full(4, 0.25)))
    assert opened.culprits == (0, 1)  # and no term was opened
    assert opened.verdict is not None and opened.verdict.aggregate is None


def test_a_sum_that_nobody_explains_skips_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "culprits", lambda *_: [])
    rows = honest()
    at(slice(0, 1), 2**32)(rows[2])
    with pytest.raises(OpeningError, match="no row explains it"):
        play(parties("shares"), rows).combine(Combination(EQUAL))


@pytest.mark.parametrize("name", NAMES)
def test_weights_on_one_update_are_not_opened(name: str) -> None:
    rows, alone = honest(), np.eye(N)[3]
    for weights in (alone, 0.98 * alone + 0.02 * EQUAL):
        with pytest.raises(OpeningError, match=r"min_support is 3.*multi_krum"):
            play(parties(name), rows).combine(Combination(weights))
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="min_support"):  # the servers look for themselves
        played.ask("combine_share", np.rint(alone * 2**30).astype(np.int64))
    # Switched off, it is the update.
    found = play(parties(name, min_support=1.0), rows).combine(Combination(alone))
    assert np.abs(found - rows[3] * 2.0**-FRACTION).max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_second_sum_would_be_the_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, first = honest(), np.full(N, 2**20)
    second = first.copy()
    second[5] += 1
    played = parties(name)
    play(played, rows)
    played.ask("combine_share", first)
    with pytest.raises(OpeningError, match="aggregate is done"):
        played.ask("combine_share", second)
    # Switched off, the two differ by a single update.
    monkeypatch.setattr(Server, "_once", lambda self, step: self._done.add(step))
    monkeypatch.setattr(Server, "_before", lambda self, step: None)
    played = parties(name)
    play(played, rows)
    sums = []
    for weights in (first, second):
        bodies = [unpack(data).body for data in played.ask("combine_share", weights)]
        sums.append(sum(np.frombuffer(body, dtype=np.int64) for body in bodies))
    assert np.array_equal(sums[1] - sums[0], rows[5])


def test_the_coordinator_object_opens_one_sum_too() -> None:
    opened = play(parties("shares"), honest())
    opened.combine(Combination(EQUAL))
    with pytest.raises(OpeningError, match="second"):
        opened.combine(Combination(UNEQUAL))


def test_single_terms_cannot_be_opened_until_one_is_left() -> None:
    played = parties("shares")
    play(played, honest(5))
    played.ask("combine_share", np.full(5, 2**27))
    with pytest.raises(OpeningError, match="projection must come first"):
        played.ask("term_share", 0)
    played.ask("projection_share", bytes(32))
    with pytest.raises(OpeningError, match="projection is done"):
        played.ask("projection_share", bytes(32))
    for row in (0, 1):
        played.ask("term_share", row)
    with pytest.raises(OpeningError, match=r"2\.00 updates"):
        played.ask("term_share", 2)


def differences(dealer: Dealer, rows: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """E = U − A of two rounds, as both servers see it."""
    seen: list[list[np.ndarray]] = [[], []]

    def wire(data: bytes) -> bytes:
        if data[HEADER.size - 9] == Kind.DIFFERENCE:
            seen[now].append(np.frombuffer(data[HEADER.size + 8 : -32], dtype=np.int64))
        return data

    played = parties("shares", wire=wire)
    played.dealer = dealer
    for now, words in enumerate(rows):
        play(played, words, now + 1)
    return [sum(parts) for parts in seen]


def test_a_triple_that_is_used_again_would_show_what_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest(), honest()
    rows[1][3, 700] += 123
    with pytest.raises(MessageError, match="used in an earlier round"):
        differences(Dealer(lambda count: b"\1" * count), rows)
    # Switched off: the servers see the difference of the updates.
    begin = ShareServer.begin

    def forgetful(self: ShareServer, round: int, clients: Sequence[int]) -> None:
        begin(self, round, clients)
        self._used = set()

    monkeypatch.setattr(ShareServer, "begin", forgetful)
    first, second = differences(Dealer(lambda count: b"\1" * count), rows)
    assert np.flatnonzero(second - first).tolist() == [3 * D + 700]
    first, second = differences(Dealer(np.random.default_rng(1).bytes), rows)
    assert np.count_nonzero(second - first) > 0.99 * N * D


@pytest.mark.parametrize("name", NAMES)
def test_a_share_of_another_round_or_run_is_not_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def replayed(source_run: str = RUN) -> tuple[LocalParties, Opened]:
        played = parties(name)
        other = LocalParties(name, source_run, D, np.random.default_rng(1).bytes)  # type: ignore[arg-type]
        old = other.sent(honest()[0], 1, 6)
        play(played, honest(), 1)
        sent = {client: played.sent(row, 2, client) for client, row in enumerate(honest())}
        sent[6] = old
        played.receive(2, sent)
        return played, Opened(played, D, CLIP, None, played.entropy)

    played, opened = replayed()
    assert played.clients == (0, 1, 2, 3, 4, 5, 7) and "belongs to round 1, this is round 2" in played.refused[6]
    keep = np.array(played.clients)
    assert np.abs(opened.combine(Combination(np.full(7, 1 / 7))) - mean(honest()[keep], np.ones(7))).max() < 1e-7
    assert "another run" in replayed(run_id("elsewhere"))[0].refused[6]
    # Switched off, an old update of somebody counts again.
    monkeypatch.setattr(server, "expect", lambda message, *_: message)
    played, opened = replayed()
    assert played.clients == tuple(range(8))
    assert opened.gram().distances_squared()[0, 6] == 0.0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["truncated", "longer", "changed", "empty"])
def test_a_damaged_share_costs_only_its_client(name: str, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(data: bytes) -> bytes:
        forms = {"truncated": data[:-8], "longer": data + b"12345678", "empty": b""}
        return forms.get(change, data[: HEADER.size] + bytes([data[HEADER.size] ^ 1]) + data[HEADER.size + 1 :])

    played, rows = parties(name), honest()
    sent = {client: played.sent(row, 1, client) for client, row in enumerate(rows)}
    sent[1] = [*sent[1][:-1], damaged(sent[1][-1])]
    played.receive(1, sent)
    assert played.clients == (0, 2, 3, 4, 5, 6, 7)
    assert any(word in played.refused[1] for word in ("truncated", "extra bytes", "changed on its way"))
    found = Opened(played, D, CLIP, None, played.entropy).combine(Combination(np.full(7, 1 / 7)))
    assert np.abs(found - mean(np.delete(rows, 1, axis=0), np.ones(7))).max() < 1e-7


def test_a_changed_share_would_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrobust.secure.messages.compare_digest", lambda *_: True)
    monkeypatch.setattr(opening, "fits", lambda *_: True)
    played, rows = parties("shares"), honest()
    sent = {client: played.sent(row, 1, client) for client, row in enumerate(rows)}
    sent[1][1] = sent[1][1][: HEADER.size + 7] + b"\x31" + sent[1][1][HEADER.size + 8 :]
    played.receive(1, sent)
    found = Opened(played, D, CLIP, None, played.entropy).combine(Combination(EQUAL))
    assert np.abs(found - mean(rows, EQUAL)).max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [0, 1])
def test_a_share_that_reached_one_server_only_is_dropped(name: str, missing: int) -> None:
    played, rows = parties(name), honest()
    sent: dict[int, list[bytes | None]] = {c: list(played.sent(row, 1, c)) for c, row in enumerate(rows)}
    sent[4][missing] = None
    played.receive(1, sent)
    assert played.clients == (0, 1, 2, 3, 5, 6, 7) and "did not reach every server" in played.refused[4]
    found = Opened(played, D, CLIP, None, played.entropy).combine(Combination(np.full(7, 1 / 7)))
    assert np.abs(found - mean(np.delete(rows, 4, axis=0), np.ones(7))).max() < 1e-7


def test_without_the_comparison_the_servers_would_add_up_different_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShareServer, "_matching", lambda self, number, digests: set(range(N)))
    played, rows = parties("shares"), honest()
    sent: dict[int, list[bytes | None]] = {c: list(played.sent(row, 1, c)) for c, row in enumerate(rows)}
    sent[4][0] = None
    with pytest.raises(MessageError, match="do not agree"):
        played.receive(1, sent)


@pytest.mark.parametrize("name", NAMES)
def test_a_round_is_repeated_after_a_server_has_died(name: str) -> None:
    names, rows = ("sum",), honest()
    played, undisturbed = parties(name, histories=names), parties(name, histories=names)
    for each in (played, undisturbed):
        first = play(each, rows, 0)
        first.combine(Combination(EQUAL))
        first.remembered(names)
    kept = [pickle.loads(pickle.dumps((each.memory(), each.functionals))) for each in played.servers]
    play(played, rows, 1)  # a server dies after the Gram matrix was opened
    again = parties(name, histories=names)
    again.entropy = np.random.default_rng(8).bytes
    for each, (memory, functionals) in zip(again.servers, kept, strict=True):
        each.restore(memory, 1, functionals)
    if name == "shares":
        again.dealer = Dealer(again.entropy)
    with pytest.raises(OpeningError, match="round 1 is over"):
        play(again, rows, 1)
    repeated, expected = play(again, rows, 2), play(undisturbed, rows, 2)
    ours, theirs = repeated.gram({}, names), expected.gram({}, names)
    assert np.array_equal(ours.matrix, theirs.matrix)
    assert np.allclose(ours.histories["sum"].matrix, theirs.histories["sum"].matrix, rtol=1e-12)
    assert np.allclose(repeated.combine(Combination(EQUAL)), expected.combine(Combination(EQUAL)), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_functionals_are_counted_and_limited(name: str) -> None:
    played, vector = parties(name, max_functionals=2 * 3 + 3, colluders=2), np.ones(D)
    for round in range(3):
        opened = play(played, honest(), round)
        opened.gram({"momentum": vector})
        opened.gram({"momentum": vector})  # the same one again is not opened again
        assert opened.functionals == 1
        assert {each.functionals for each in played.servers} == {3 * (round + 1)}
    with pytest.raises(OpeningError, match="9 linear functionals of the updates were opened, 2 more"):
        play(played, honest(), 3)
    endless = parties(name)
    for round in range(4):
        play(endless, honest(), round).gram({"momentum": vector})
    assert endless.servers[0].functionals == 4


def test_projections_count_as_functionals() -> None:
    rows = honest()
    at(slice(0, 1), 2**32)(rows[2])
    with pytest.raises(OpeningError, match="32 more would pass max_functionals = 31"):
        play(parties("shares", max_functionals=31), rows).combine(Combination(EQUAL))
    played = parties("shares", max_functionals=32)
    play(played, rows).combine(Combination(EQUAL))
    assert played.servers[0].functionals == 32


@pytest.mark.parametrize("name", NAMES)
def test_a_history_that_cannot_be_starts_again(name: str) -> None:
    names = ("sum",)
    rows, played = honest(), parties(name, histories=names)
    at(slice(0, 1), 2**36)(rows[2])  # its square is 2^72; that of its history is 2^52
    opened = play(played, rows, 0)
    assert opened.finite_rows()[2]
    opened.remembered(names)
    opened = play(played, honest(), 1)
    assert opened.notes == ("history sum of client 2 was not possible and starts again",)
    gram = opened.gram({}, names).histories["sum"]
    assert (gram.matrix[2] == 0).all() and (gram.cross[:, 2] == 0).all() and (gram.matrix.diagonal() > 0).sum() == 7
    assert all(2 not in lines for each in played.servers for lines in each.memory()["sum"].values())


@pytest.mark.parametrize("late", [False, True])
def test_a_culprit_loses_its_history(late: bool) -> None:
    names = ("last",)
    rows, played = honest(), parties("shares", histories=names)
    at(slice(0, 1), 2**32)(rows[2])
    opened = play(played, rows, 0)
    if not late:
        opened.remembered(names)
    opened.combine(Combination(EQUAL))
    if late:
        opened.remembered(names)
    assert opened.culprits == (2,)
    for each in played.servers:
        assert [sorted(lines) for lines in each.memory()["last"].values()] == [[0, 1, 3, 4, 5, 6, 7]]


def test_a_product_hides_in_the_ring_and_not_in_the_sum() -> None:
    """Why the check is over integers: modulo 2^64 the squares of a wrapped update always add up."""
    rows = honest()
    at(slice(0, 1), 2**32)(rows[2])
    weights = np.full(N, 2**27 + 1)
    total = (weights[:, None] * rows).sum(axis=0)
    doubled = 2 * (rows.astype(object) @ rows.T.astype(object))
    gram = halved(np.array([[(int(g) + 2**63) % 2**64 - 2**63 for g in line] for line in doubled]))
    form = int(weights.astype(object) @ gram @ weights.astype(object))
    assert (square_sum(total) - form) % 2**63 == 0
    assert square_sum(total) != form
    assert shares.SHAPE.size == 16
