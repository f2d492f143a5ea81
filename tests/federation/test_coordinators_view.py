"""What reaches the coordinator in a round of secret shares: products, one sum, digests, and nothing else."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from acted import House, flat, messages, options, updates

from fedrobust.secure.messages import OVERHEAD, Kind, Message
from fedrobust.secure.ring import Words, encode
from fedrobust.secure.sketch import PROJECTIONS

N, D = 8, 3_000
NAMES = ("shares", "replicated")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Wire:
    """The servers' side of everything: the bytes that clients and parties send each other."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.secret: list[bytes] = []
        pack = Message.pack
        hidden = (Kind.SEED, Kind.WORDS, Kind.TRIPLE, Kind.DIFFERENCE, Kind.RESHARED)

        def packed(message: Message, key: bytes | None = None) -> bytes:
            if message.kind in hidden:
                self.secret.append(bytes(message.body))
            return pack(message, key)

        patch.setattr(Message, "pack", packed)


def test_messages_to_the_coordinator_hold_products_one_sum_and_digests(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = Wire(monkeypatch)
    house = House(options(name, "centered_clipping"), D, monkeypatch)
    house.answers.seen.clear()
    rows = [updates(round) for round in range(2)]
    for each in rows:
        house.round(each)
    servers = 2 if name == "shares" else 3
    kinds = Counter((message.round, message.kind, len(message.body)) for message in messages(house))
    digests = 1 if name == "shares" else 2
    expected: dict[tuple[int, Kind, int], int] = {}
    for number in (0, 3):
        expected[number, Kind.SENDERS, 1 + N * (8 + 32 * digests)] = servers
        expected[number, Kind.PROJECTIONS, 8 * N * PROJECTIONS] = servers
        expected[number, Kind.GRAM, 8 * N * N] = servers
        expected[number, Kind.AGGREGATE, 8 * D] = servers
    expected[3, Kind.ANCHOR, 8 * (N + 1)] = servers  # the last aggregate, from the second round on
    assert kinds == expected
    assert [record["functionals"] for record in house.records] == [0, 1]
    # What else it was told are ids, counts of bytes, and the loop's own answers.
    others = [each for each in flat(house.answers.seen) if not isinstance(each, bytes)]
    arrays = [each for each in others if isinstance(each, np.ndarray)]
    assert all(isinstance(each, (int, dict, np.ndarray, type(None))) for each in others)
    assert len(arrays) == 2  # the new global weights of each round
    np.testing.assert_array_equal(arrays[-1], house.arrays["weights"])
    # No row, no share of one and no difference: not even sixteen bytes of them.
    told = b"".join(each for each in flat(house.answers.seen) if isinstance(each, bytes))
    assert len(wire.secret) > 2 * N
    secrets = [*wire.secret, *(encode(row, 10.0).tobytes() for each in rows for row in each)]
    secrets += [row.tobytes() for each in rows for row in each]
    for secret in secrets:
        for start in range(0, len(secret) - 16, max(8, len(secret) // 8 // 8 * 8)):
            piece = secret[start : start + 16]
            assert len(set(piece)) < 4 or piece not in told


def test_all_that_depends_on_single_updates_is_one_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every secret fixed, each client's update is changed along a line of its own.

    Of all vectors of length d that reach the coordinator, and of all sums of them, none changes by anything but the
    changes times the weights: their coefficients have the rank 1.
    """
    monkeypatch.setattr("fedrobust.secure.links.os.urandom", bytes)
    base, draw = updates(), np.random.default_rng(5)
    lines = 1e-4 * draw.normal(size=(N, D))

    def heard(rows: np.ndarray) -> list[Words]:
        house = House(options(name), D, monkeypatch)
        house.answers.seen.clear()
        house.round(rows)
        return [
            np.frombuffer(message.body, dtype=np.int64) for message in messages(house) if len(message.body) == 8 * D
        ]

    before = heard(base)
    assert len(before) == (2 if name == "shares" else 3)
    coefficients = np.zeros((len(before), N))
    for client in range(N):
        rows = base.copy()
        rows[client] += lines[client].astype(np.float32)
        change = encode(rows[client], 10.0) - encode(base[client], 10.0)
        for share, (one, other) in enumerate(zip(before, heard(rows), strict=True)):
            found = other - one
            at = int(np.argmax(np.abs(change)))
            weight = round(float(found[at]) / float(change[at]))
            np.testing.assert_array_equal(found, weight * change)  # mod 2^64, exactly
            coefficients[share, client] = weight
    assert np.linalg.matrix_rank(coefficients) == 1
    weights = coefficients.sum(axis=0)  # of the sum of all shares
    assert (weights / weights.sum()) == pytest.approx(np.full(N, 1 / N), rel=1e-6)
    assert len({tuple(row) for row in coefficients.tolist() if any(row)}) == 1


def test_the_sum_of_a_part_of_the_shares_says_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = updates()
    house = House(options({"name": name, "randomness": "system"}), D, monkeypatch)
    house.answers.seen.clear()
    house.round(rows)
    shares = [np.frombuffer(m.body, dtype=np.int64) for m in messages(house) if m.kind is Kind.AGGREGATE]
    words = np.stack([encode(row, 10.0) for row in rows]).astype(np.float64)
    for part in (sum(chosen) for size in range(1, len(shares)) for chosen in combinations(shares, size)):
        found = np.corrcoef(np.vstack([np.float64(part), words]))[0, 1:]
        assert np.abs(found).max() < 5 / np.sqrt(D)
    whole = np.corrcoef(np.vstack([np.float64(sum(shares)), words]))[0, 1:]
    assert whole.min() > 0.5


def test_traffic_is_what_the_messages_weigh(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(options(name), D, monkeypatch)
    record = house.round(updates())
    servers, digests = (2, 1) if name == "shares" else (3, 2)
    upload = 8 * D + 32 if name == "shares" else 16 * D + 128
    assert record["upload_bytes"] == N * (upload + servers * OVERHEAD)
    own = 1 + N * (8 + 32 * digests) + 8 * N * PROJECTIONS + 8 * N * N + 8 * D + 4 * OVERHEAD
    expected = servers * own
    if name == "shares":
        expected += 2 * (8 + 8 * N * D + OVERHEAD)  # one chunk of differences
        expected += 2 * (16 + 32 + 48) + 32 + 8 * N * N + 2 * OVERHEAD  # the triple, sealed
    assert record["server_bytes"] == expected
    again = house.round(updates(1))
    assert (again["upload_bytes"], again["server_bytes"]) == (record["upload_bytes"], expected)
    sketched = House(options({"name": name, "sketch": 128}), D, monkeypatch).round(updates())
    less = 2 * 8 * N * (D - 128) if name == "shares" else 0
    assert (sketched["upload_bytes"], sketched["server_bytes"]) == (record["upload_bytes"], expected - less)
