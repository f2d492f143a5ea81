"""Two servers and a dealer: what each sees is uniform, what they open is exact, and nothing happens out of turn."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chisquare

from fedrobust.secure import ring, shares
from fedrobust.secure.local import LocalParties, introduce
from fedrobust.secure.messages import DEALER, HEADER, OVERHEAD, Kind, MessageError, run_id, unpack
from fedrobust.secure.ring import Entropy
from fedrobust.secure.shares import Dealer, ShareServer, share
from fedrobust.secure.weights import OpeningError, support

RUN = run_id("shares")
D = 50
EXTREME = {
    "zeros": np.zeros(D, dtype=np.int64),
    "ones": np.ones(D, dtype=np.int64),
    "largest": np.full(D, 2**62),
    "negative": np.full(D, -1),
    "one large": np.eye(1, D, dtype=np.int64)[0] << 30,
}


def uniform(data: bytes) -> float:
    """The p-value of the bytes being uniform."""
    return float(chisquare(np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)).pvalue)


def views(words: np.ndarray, count: int = 300) -> list[bytes]:
    """What each server gets of `words` in so many sharings."""
    entropy, seen = np.random.default_rng(5).bytes, [b"", b""]
    for round in range(count):
        for server, message in enumerate(share(words, entropy, RUN, round, 3)):
            seen[server] += message.body
    return seen


def pair(**options: object) -> tuple[ShareServer, ShareServer]:
    """Two servers that can begin."""
    first, second = (ShareServer(k, RUN, D, **options) for k in range(2))
    introduce((first, second))
    return first, second


def met(both: tuple[ShareServer, ShareServer], entropy: Entropy = os.urandom) -> Dealer:
    """A dealer who knows their keys, which they have agreed by already."""
    dealer = Dealer(entropy)
    dealer.meet(RUN, [server.introduce() for server in both])
    return dealer


def servers(n: int = 4, **options: object) -> tuple[ShareServer, ShareServer]:
    """Two servers that have agreed on n clients with random shares."""
    first, second = pair(**options)
    entropy = np.random.default_rng(1).bytes
    for server in (first, second):
        server.begin(1, range(n))
    for client in range(n):
        for server, message in zip((first, second), share(EXTREME["ones"], entropy, RUN, 1, client), strict=True):
            server.receive(message.pack())
    lists = [first.senders(), second.senders()]
    assert first.agree(lists[1:]) == second.agree(lists[:1]) == tuple(range(n))
    return first, second


def test_the_shares_add_up_and_have_the_stated_sizes() -> None:
    words = np.arange(D) - 7
    to_0, to_1 = share(words, np.random.default_rng(0).bytes, RUN, 2, 5)
    assert (ring.expand(to_0.body, D) + np.frombuffer(to_1.body, dtype=np.int64) == words).all()
    assert (to_0.kind, to_0.receiver, to_0.sender, to_0.round) == (Kind.SEED, "server0", 5, 2)
    assert len(to_0.pack()) + len(to_1.pack()) == 32 + 8 * D + 2 * OVERHEAD


@pytest.mark.parametrize("name", EXTREME)
def test_what_each_server_sees_of_an_update_is_uniform(name: str) -> None:
    seed, words = views(EXTREME[name])
    assert uniform(seed) > 1e-3 and uniform(words) > 1e-3
    by_place = np.frombuffer(words, dtype=np.uint8).reshape(300, 8 * D)
    assert min(uniform(np.ascontiguousarray(column).tobytes()) for column in by_place.T) > 1e-3 / (8 * D)
    assert seed == views(EXTREME["zeros"])[0]  # whatever the update is


def test_that_test_would_notice_a_missing_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "expand", lambda seed, count, out: out.fill(0))
    assert uniform(views(EXTREME["ones"])[1]) < 1e-100


def test_what_the_servers_open_to_each_other_is_uniform() -> None:
    seen: list[bytes] = []

    def wire(data: bytes) -> bytes:
        if data[HEADER.size - 9] == Kind.DIFFERENCE:
            seen.append(data[HEADER.size + 8 : -32])
        return data

    parties = LocalParties("shares", RUN, D, np.random.default_rng(3).bytes, wire)
    for round in range(60):
        parties.play(np.zeros((5, D)), round, 1.0)
    assert len(seen) == 120
    assert uniform(b"".join(seen[::2])) > 1e-3 and uniform(b"".join(seen[1::2])) > 1e-3
    both = sum(np.frombuffer(b"".join(part), dtype=np.int64) for part in (seen[::2], seen[1::2]))
    assert uniform(both.tobytes()) > 1e-3  # E itself


def test_the_triple_is_a_square() -> None:
    both = pair()
    to_0, to_1 = met(both, np.random.default_rng(0).bytes).triple(RUN, 1, 3, 2_500)
    for number, sealed in enumerate((to_0, to_1)):
        with pytest.raises(MessageError, match=f"for server {1 - number}"):
            both[1 - number].links.unsealed(sealed.body)
    bodies = [server.links.unsealed(message.body) for server, message in zip(both, (to_0, to_1), strict=True)]
    seeds = [body[16:48] for body in bodies]
    parts = [ring.expand(seed, 3 * 2_500).reshape(3, 2_500) for seed in seeds]
    whole, first = (part.astype(object) for part in (parts[0] + parts[1], parts[0]))
    blind = ring.expand(bodies[0][48:], 9).reshape(3, 3)
    correction = np.frombuffer(bodies[1][48:], dtype=np.int64).reshape(3, 3)
    expected = 2 * (whole @ whole.T - first @ first.T)
    assert all(value % 2**64 == 0 for value in ((blind + correction).astype(object) - expected).reshape(-1))
    assert (len(bodies[0]), len(bodies[1])) == (16 + 64, 16 + 32 + 72)


def test_a_dealer_gives_no_round_two_triples() -> None:
    with pytest.raises(OpeningError, match="met"):
        Dealer().triple(RUN, 4, 2, 8)
    dealer = met(pair())
    dealer.triple(RUN, 4, 2, 8)
    for round in (4, 3):
        with pytest.raises(OpeningError, match="triple"):
            dealer.triple(RUN, round, 2, 8)
    dealer.triple(RUN, 5, 2, 8)
    dealer.triple(run_id("another"), 4, 2, 8)


def test_a_triple_for_other_rows_is_refused() -> None:
    first, second = servers(4)
    for rows, columns in ((3, D), (4, D + 1)):
        with pytest.raises(MessageError, match="4 rows and 50 columns"):
            first.receive_triple(met((first, second)).triple(RUN, 1, rows, columns)[0].pack())


def test_the_gram_matrix_is_exact_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring, "CHUNK_BYTES", 1)
    d = 3_001
    updates = np.random.default_rng(2).normal(size=(5, d))
    parties = LocalParties("shares", RUN, d, np.random.default_rng(3).bytes)
    opened = parties.play(updates, 1, 100.0)
    words = np.stack([ring.encode(update, 100.0) for update in updates]).astype(object)
    assert len(ring.column_chunks(5, d)) == 3
    assert np.array_equal(opened.gram().matrix, (words @ words.T).astype(float) * 1e4 * 2.0**-56)


STEPS: dict[str, tuple[Callable[[ShareServer], object], str]] = {
    "difference": (lambda s: s.difference(0), "triple must come first"),
    "add_difference": (lambda s: s.add_difference(b""), "triple must come first"),
    "gram": (lambda s: s.gram_share(), "triple must come first"),
    "anchor": (lambda s: s.anchor_share(EXTREME["ones"]), "gram must come first"),
    "combine": (lambda s: s.combine_share(np.ones(4, dtype=np.int64)), "gram must come first"),
    "remember": (lambda s: s.remember([], np.zeros(0, dtype=np.int64)), "gram must come first"),
    "receive": (lambda s: s.receive(b""), "agree is done"),
    "agree": (lambda s: s.agree([]), "agree is done"),
    "begin": (lambda s: s.begin(1, [0]), "round 1 is over"),
}


@pytest.mark.parametrize("step", STEPS)
def test_nothing_happens_out_of_turn(step: str) -> None:
    call, says = STEPS[step]
    with pytest.raises(OpeningError, match=says):
        call(servers()[0])


def test_chunks_are_exchanged_once() -> None:
    first, second = servers()
    for server, message in zip((first, second), met((first, second)).triple(RUN, 1, 4, D), strict=True):
        server.receive_triple(message.pack())
        with pytest.raises(OpeningError, match=r"check .*first"):
            server.gram_share()
        server.check_share()
    with pytest.raises(OpeningError, match="1 of 1 chunks"):
        first.gram_share()
    data = second.difference(0)
    with pytest.raises(MessageError, match="not awaited"):
        first.add_difference(data)
    first.difference(0)
    for call in (first.difference, second.difference):
        with pytest.raises(OpeningError, match="difference 0 is done"):
            call(0)
    with pytest.raises(MessageError, match="digest"):
        first.add_difference(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    with pytest.raises(MessageError, match="truncated"):
        first.add_difference(data[:100])
    first.add_difference(data)
    with pytest.raises(MessageError, match="has come already"):
        first.add_difference(data)
    first.gram_share()
    with pytest.raises(OpeningError, match="gram is done"):
        first.gram_share()


def test_servers_refuse_messages_that_are_not_for_them() -> None:
    server, other = pair()
    with pytest.raises(OpeningError, match="no round"):
        server.receive(b"")
    server.begin(1, [0, 1])
    entropy = np.random.default_rng(1).bytes
    good = [message.pack() for message in share(EXTREME["ones"], entropy, RUN, 1, 0)]
    with pytest.raises(MessageError, match="seed, got words"):
        server.receive(good[1])
    with pytest.raises(MessageError, match="sender 2"):
        server.receive(share(EXTREME["ones"], entropy, RUN, 1, 2)[0].pack())
    server.receive(good[0])
    with pytest.raises(MessageError, match="already"):
        server.receive(good[0])
    other.begin(1, [0, 1])
    with pytest.raises(MessageError, match="bytes, expected 400"):
        other.receive(share(np.ones(D - 1, dtype=np.int64), entropy, RUN, 1, 1)[1].pack())
    with pytest.raises(MessageError, match="senders"):
        server.agree([server.senders()])


def test_the_dealer_cannot_read_what_the_servers_open() -> None:
    """The blinds are the servers' own: taking the correction's mask from a part of the Gram leaves a uniform matrix."""
    seen, masks = [], []

    def wire(data: bytes) -> bytes:
        if data[HEADER.size - 9] == Kind.TRIPLE and data[37:44] == b"server0":
            masks.append(ring.expand(parties.servers[0].links.unsealed(unpack(data).body)[48:], 25))
        if data[HEADER.size - 9] == Kind.GRAM and unpack(data).sender == -10:
            seen.append(np.frombuffer(unpack(data).body, dtype=np.int64))
        return data

    parties = LocalParties("shares", RUN, D, np.random.default_rng(3).bytes, wire)
    for round in range(60):
        parties.play(np.zeros((5, D)), round, 1.0)
    rest = np.stack(seen) - np.stack(masks)
    assert uniform(rest.tobytes()) > 1e-3
    matrices = rest.reshape(60, 5, 5)
    assert not (matrices == matrices.transpose(0, 2, 1)).all(axis=(1, 2)).any()  # 2 V Vᵀ would be symmetric


def test_secrets_are_not_shown() -> None:
    server = servers()[0]
    assert repr(server) == "ShareServer(0)"
    assert "body" not in repr(share(EXTREME["ones"], np.random.default_rng(1).bytes, RUN, 1, 0)[1])


def test_support_by_hand() -> None:
    assert support(np.array([5, 5, 5, 5])) == 4.0
    assert support(np.array([2, -1, 1, 0])) == 1.5
    assert support(np.zeros(3, dtype=np.int64)) == 0.0


def test_the_sender_of_a_triple_is_the_dealer() -> None:
    assert unpack(met(pair()).triple(RUN, 1, 2, 8)[0].pack()).sender == DEALER
