"""The coordinator's side: it agrees with the clear, and sees the Gram matrix and one sum and nothing else."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fedrobust.aggregation import NNM, Clip, Combination, Context, GeometricMedian, Mean, Pipeline, Rule
from fedrobust.aggregation.base import Stage
from fedrobust.options import members
from fedrobust.secure import opening
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import HEADER, OVERHEAD, Kind, MessageError, run_id, unpack
from fedrobust.secure.opening import encode_anchor, joined
from fedrobust.secure.ring import encode, largest_square
from fedrobust.secure.shared_updates import SharedUpdates
from fedrobust.secure.sketch import PROJECTIONS
from fedrobust.secure.weights import LARGEST_WEIGHT, OpeningError, shortened, support
from fedrobust.updates import ClearUpdates

RUN = run_id("opening")
N, D, CLIP = 12, 3_000, 2.0
RULES = {name: rule for name, rule in members(Rule).items() if rule().needs <= {"gram", "norms", "sum"}}
NAMES = ("shares", "replicated")


def updates(n: int = N, d: int = D, seed: int = 0) -> np.ndarray:
    """Honest rows around a common direction, two attackers, one long row: (n, d) float32, as of a real round."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=d) + draw.normal(size=(n, d)) * draw.uniform(0.5, 1.5, size=(n, 1))
    rows[:2] *= -1.0
    rows *= 0.7 * CLIP / np.linalg.norm(rows, axis=1).mean()
    rows[2] *= 3.0
    return rows.astype(np.float32)


def clipped(rows: np.ndarray) -> np.ndarray:
    """What the clients send."""
    factors = np.minimum(1.0, CLIP / np.linalg.norm(rows.astype(np.float64), axis=1))
    return np.asarray(rows * factors[:, None])


def played(name: str, rows: np.ndarray, round: int = 1, **options: Any) -> SharedUpdates:
    """A round of honest clients."""
    parties = LocalParties(name, RUN, rows.shape[1], np.random.default_rng(9).bytes, **options)  # type: ignore[arg-type]
    return parties.play(rows, round, CLIP)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", RULES)
def test_every_gram_rule_agrees_with_the_clear(rule: str, name: str) -> None:
    rows, draw = updates(), np.random.default_rng(4)
    parts: list[Stage | Rule] = [RULES[rule]()]
    if support_of(rule, rows) < 3:
        parts = [NNM(), *parts]
    pipeline = Pipeline(parts)
    context = Context(f=2, previous=draw.normal(size=D) * 0.01, root=rows[4] + draw.normal(size=D) * 0.01, round=3)
    parties = LocalParties(name, RUN, D, np.random.default_rng(9).bytes, histories=pipeline.histories)  # type: ignore[arg-type]
    remembered: dict[str, np.ndarray] = {}
    for round in range(3):
        now = updates(seed=round)
        clear = ClearUpdates([clipped(now)], histories=remembered)
        opened = parties.play(now, round, CLIP)
        if round < 2:
            remembered = clear.remembered(pipeline.histories)
            opened.remembered(pipeline.histories)
    theirs = pipeline.decide(clear, context, pipeline.gram(clear, context))
    ours = pipeline.decide(opened, context, pipeline.gram(opened, context))
    assert isinstance(theirs.decided, Combination) and isinstance(ours.decided, Combination)
    selected, expected = ours.decided.weights != 0, theirs.decided.weights != 0
    assert np.array_equal(selected, expected)
    if 0 < support(theirs.decided.weights) < 3:
        with pytest.raises(OpeningError, match="min_support"):
            opened.combine(ours.decided)
        return
    exact = clear.combine(theirs.decided)
    # The histories keep 20 bits, and their coefficients 12.
    tolerance = 2e-3 if pipeline.histories else 3e-4  # weights have 12 bits
    assert np.linalg.norm(opened.combine(ours.decided) - exact) <= tolerance * np.linalg.norm(exact)
    assert opened.notes == () and not opened.dropped and opened.finite_rows().all()


def support_of(rule: str, rows: np.ndarray) -> float:
    """On how many rows the rule's weights lie in the clear."""
    try:
        gram = ClearUpdates([clipped(rows)]).gram()
        combination = RULES[rule]().combine(gram, Context(f=2, round=3))
    except Exception:  # it wants anchors or histories
        return 3.0
    return support(combination.weights)


@pytest.mark.parametrize("name", NAMES)
def test_the_gram_has_the_digits_of_small_differences(name: str) -> None:
    rows = updates()
    rows = (rows[3] + 1e-5 * rows).astype(np.float32)
    exact = clipped(rows).astype(np.float64)
    ours = played(name, rows).gram().distances_squared()
    theirs = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)
    assert np.allclose(ours, theirs, rtol=3e-3, atol=0)  # 1e-5 beside 2^-29 √d


@pytest.mark.parametrize("name", NAMES)
def test_anchors_of_any_length_agree_with_the_clear(name: str) -> None:
    rows, draw = updates(), np.random.default_rng(1)
    anchors = {"short": draw.normal(size=D) * 1e-5, "long": draw.normal(size=D) * 1e5, "zero": np.zeros(D)}
    ours, theirs = played(name, rows).gram(anchors), ClearUpdates([clipped(rows)]).gram(anchors)
    for each in anchors:
        size = np.linalg.norm(anchors[each]) * CLIP
        assert np.allclose(ours.anchors[each].products, theirs.anchors[each].products, rtol=0, atol=1e-6 * size)
        assert ours.anchors[each].squared_norm == pytest.approx(theirs.anchors[each].squared_norm, rel=1e-6)
    point = Combination(np.full(N, 0.1), {"long": 1e-5, "short": 3.0})
    assert np.allclose(ours.distances_squared_to(point), theirs.distances_squared_to(point), rtol=1e-5)


def test_a_public_vector_of_another_length_or_direction_replaces_the_last_one() -> None:
    rows, vector = updates(), np.random.default_rng(1).normal(size=D)
    opened = played("shares", rows)
    for count, other in enumerate([vector, 4.0 * vector, vector[::-1].copy()]):
        expected = clipped(rows) @ other
        found = opened.gram({"root": other}).anchors["root"].products
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-6 * np.linalg.norm(other))
        assert len(opened._round.products) == max(1, count)  # four times as long, it is known already


@pytest.mark.parametrize("name", NAMES)
def test_histories_agree_with_the_clear(name: str) -> None:
    names = ("last", "sum", "average")
    parties = LocalParties(name, RUN, D, np.random.default_rng(9).bytes, histories=names)  # type: ignore[arg-type]
    remembered: dict[str, np.ndarray] = {}
    for round in range(4):
        rows = updates(seed=round)
        anchors = {"root": rows[5].astype(np.float64)}
        clear, opened = ClearUpdates([clipped(rows)], histories=remembered), parties.play(rows, round, CLIP)
        ours, theirs = opened.gram(anchors, names), clear.gram(anchors, names)
        for each, tolerance in (("last", 1e-6), ("sum", 1e-4), ("average", 6e-3)):
            one, other = ours.histories[each], theirs.histories[each]
            scale = np.diag(other.matrix).max() + 1e-12
            assert np.abs(one.matrix - other.matrix).max() <= tolerance * scale
            assert np.abs(one.cross - other.cross).max() <= tolerance * scale * 4
            assert np.abs(one.anchors["root"] - other.anchors["root"]).max() <= tolerance * scale * 4
        assert opened.notes == ()
        opened.remembered(names), opened.combine(Combination(np.full(N, 1 / N)))
        remembered = clear.remembered(names)


@pytest.mark.parametrize("name", NAMES)
def test_absent_clients_keep_their_histories_and_new_ones_have_none(name: str) -> None:
    rows = updates()
    parties = LocalParties(name, RUN, D, np.random.default_rng(9).bytes, histories=("sum",))  # type: ignore[arg-type]
    present = [[0, 1, 2, 3], [0, 4, 5, 2], [0, 1, 4, 7]]
    times = Counter[int]()
    for round, clients in enumerate(present):
        sent = {client: parties.sent(encode(rows[client], CLIP), round, client) for client in clients}
        parties.receive(round, sent)
        opened = SharedUpdates(parties, D, CLIP)
        assert parties.clients == tuple(sorted(clients))
        found = np.diag(opened.gram({}, ["sum"]).histories["sum"].matrix)
        norms = np.linalg.norm(clipped(rows), axis=1)
        expected = [(times[client] * norms[client]) ** 2 for client in sorted(clients)]
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-9)
        opened.remembered(["sum"])
        times.update(clients)


@pytest.mark.parametrize("name", NAMES)
def test_subsets_are_rows_of_the_same_opening(name: str) -> None:
    rows = updates()
    opened = played(name, rows)
    keep = np.array([1, 3, 4, 7, 9])
    part, clear = opened.subset(keep), ClearUpdates([clipped(rows)]).subset(keep)
    assert np.allclose(part.gram().matrix, clear.gram().matrix, rtol=1e-5, atol=1e-7)
    again = part.subset(np.array([True, True, False, True, True]))
    assert again.n == 4 and np.allclose(again.prior, 0.25)
    weights = Combination(np.full(4, 0.25))
    assert np.allclose(again.combine(weights), clipped(rows)[[1, 3, 7, 9]].mean(axis=0), atol=1e-7)
    with pytest.raises(OpeningError, match="second"):
        opened.combine(Combination(np.full(N, 1 / N)))


def test_real_updates_agree_with_the_clear() -> None:
    """Differences of a network's own weights, whose sizes differ by layer and coordinate."""
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 3), torch.nn.Linear(64, 200), torch.nn.GroupNorm(4, 16)]
    base = torch.cat([p.detach().flatten() for layer in layers for p in layer.parameters()]).numpy()
    draw = np.random.default_rng(0)
    rows = np.stack([base * draw.normal(0.05, 0.02, size=len(base)) for _ in range(8)]).astype(np.float32)
    parts = [Clip(), NNM(), GeometricMedian()]
    pipeline, context = Pipeline(parts), Context(f=2)
    theirs = pipeline.run(ClearUpdates([clipped(rows)]), context)
    for name in NAMES:
        ours = pipeline.run(played(name, rows), context)
        assert np.linalg.norm(ours.aggregate - theirs.aggregate) <= 3e-4 * np.linalg.norm(theirs.aggregate)
        assert ours.weights is not None and theirs.weights is not None
        assert np.allclose(ours.weights, theirs.weights, atol=1e-4)


@pytest.mark.parametrize(("name", "count"), [("shares", 2), ("replicated", 3)])
def test_what_reaches_the_coordinator(name: str, count: int) -> None:
    seen: list[bytes] = []

    def wire(data: bytes) -> bytes:
        seen.append(data)
        return data

    opened = played(name, updates(), wire=wire)
    gram = opened.gram({"root": updates()[3]})
    opened.combine(Mean().combine(gram, Context(f=0)))
    messages = [unpack(data) for data in seen if data[HEADER.size - 9] != Kind.DIFFERENCE]
    kinds = Counter((message.kind, len(message.body)) for message in messages if message.receiver == "coordinator")
    assert kinds == {
        (Kind.PROJECTIONS, 8 * N * PROJECTIONS): count,
        (Kind.GRAM, 8 * N * N): count,
        (Kind.ANCHOR, 8 * (N + 1)): count,
        (Kind.AGGREGATE, 8 * D): count,
    }
    everyone = Counter((message.kind, len(message.body)) for message in messages if message.receiver == "all")
    digests = 1 if name == "shares" else 2
    assert everyone == {(Kind.SENDERS, 1 + N * (8 + 32 * digests)): count}
    sizes = sum(len(data) for data in seen if data[HEADER.size - 9] in (Kind.SEED, Kind.WORDS))
    assert sizes == N * (count * OVERHEAD + (8 * D + 32 if name == "shares" else 16 * D + 128))


@pytest.mark.parametrize("name", NAMES)
def test_the_coordinator_cannot_tell_updates_with_the_same_gram_and_sum(name: str) -> None:
    """What it is sent are uniform shares of the same numbers, whatever else the updates are."""
    rows = 0.3 * updates()  # so short that none is clipped
    rows[:, 0] = 0.1 * np.arange(N) / N
    rows[:, 1] = rows[::-1, 0]
    other = rows.copy()
    other[:, [0, 1]] = rows[:, [1, 0]]  # another update of everybody; same products, and the same equally weighted sum
    anchor, sums, shares = np.ones(D), [], b""
    for world in (rows, other):
        seen: list[bytes] = []

        def wire(data: bytes, seen: list[bytes] = seen) -> bytes:
            seen.append(data)
            return data

        opened = played(name, world, wire=wire)
        gram = opened.gram({"public": anchor})
        opened._round.combine(np.full(N, LARGEST_WEIGHT))
        bodies: dict[Kind, list[np.ndarray]] = {}
        for data in seen:
            if data[37:48] == b"coordinator":
                message = unpack(data)
                bodies.setdefault(message.kind, []).append(np.frombuffer(message.body, dtype=np.int64))
                shares = shares if sums else shares + message.body
        sums.append({kind: sum(parts) for kind, parts in bodies.items()})
        assert gram.n == N
    assert set(sums[0]) == {Kind.PROJECTIONS, Kind.GRAM, Kind.ANCHOR, Kind.AGGREGATE}
    for kind in (Kind.GRAM, Kind.ANCHOR, Kind.AGGREGATE):
        assert np.array_equal(sums[0][kind], sums[1][kind])
    # Combinations that nobody else knows, of which only products tell something: those of both worlds are the same.
    lengths = [np.linalg.norm(each[Kind.PROJECTIONS].reshape(N, -1).astype(float), axis=1) for each in sums]
    assert np.allclose(lengths[0], lengths[1], rtol=0.3)
    assert chisquare(np.bincount(np.frombuffer(shares, dtype=np.uint8), minlength=256)).pvalue > 1e-3


def test_shares_that_do_not_belong_together_are_refused() -> None:
    parties = LocalParties("shares", RUN, D, np.random.default_rng(9).bytes)
    rows = updates()
    parties.receive(1, {client: parties.sent(encode(row, CLIP), 1, client) for client, row in enumerate(rows)})
    parties.ask("check_share")
    first, second = parties.gram()
    with pytest.raises(MessageError, match="expected sender"):
        joined([second, first], RUN, 1, Kind.GRAM, N * N)
    with pytest.raises(MessageError, match="bytes, expected"):
        joined([first, second], RUN, 1, Kind.GRAM, N)
    with pytest.raises(MessageError, match=r"round 1.* round 2"):
        joined([first, second], RUN, 2, Kind.GRAM, N * N)


def test_weights_as_whole_numbers() -> None:
    assert shortened(np.array([0.5, 0.25, 0.0]))[0].tolist() == [4095, 2048, 0]
    whole, factor = shortened(np.full(3, 1e-9))
    assert whole.tolist() == [4095] * 3 and factor * 4095 == pytest.approx(1e-9)
    whole, factor = shortened(np.array([1.0, 1e-5, 0.3]))
    assert whole.tolist() == [4095, 0, 1228] and factor * whole.sum() == pytest.approx(1.30001)  # the same sum
    assert shortened(np.zeros(3))[0].tolist() == [0, 0, 0]
    for bad in ([np.nan, 0.0], [0.5, -1e-9], [np.inf, 1.0]):
        with pytest.raises(OpeningError, match="finite"):
            shortened(np.array(bad))


@pytest.mark.parametrize("name", NAMES)
def test_large_weights_of_short_rows(name: str) -> None:
    rows = updates() * np.float32(1e-3)
    weights = np.full(N, 5_000.0)
    found = played(name, rows).combine(Combination(weights))
    expected = weights @ rows.astype(np.float64)
    assert np.linalg.norm(found - expected) <= 2e-3 * np.linalg.norm(expected)  # the noise is 2^-28 √d of the clip


@pytest.mark.parametrize("weight", [1.0, 1e-6, 1e-15])
def test_small_weights_are_as_exact_as_large_ones(weight: float) -> None:
    rows = updates()
    found = played("shares", rows).combine(Combination(np.full(N, weight)))
    expected = weight * clipped(rows).sum(axis=0)
    assert np.linalg.norm(found - expected) <= 2e-6 * np.linalg.norm(expected)


def test_the_mean_of_three_is_opened() -> None:
    for seed in range(5):
        rows = updates(3, 100, seed)
        found = played("shares", rows).combine(Combination(np.full(3, 1 / 3)))
        assert np.allclose(found, clipped(rows).mean(axis=0), rtol=1e-4, atol=2e-7)


def test_commitments_are_to_the_shares_of_every_server() -> None:
    found = []
    for seed in (0, 0, 1):
        parties = LocalParties("shares", RUN, D, np.random.default_rng(9).bytes)
        parties.play(updates(seed=seed), 1, CLIP)
        found.append(parties.commitments)
    assert found[0] == found[1] and set(found[0]) == set(range(N))
    assert all(found[0][client] != found[2][client] for client in range(N))
    assert all(len(digest) == 64 for digest in found[0].values())


def test_a_combination_of_anchors_alone_opens_nothing() -> None:
    opened, vector = played("shares", updates()), np.arange(D) / D
    opened.gram({"momentum": vector})
    found = opened.combine(Combination(np.zeros(N), {"momentum": 0.5}))
    assert np.allclose(found, 0.5 * vector) and opened._round.sum is None


def test_anchors_are_scaled_by_a_power_of_two() -> None:
    words, exponent = encode_anchor(np.array([3.0, 4.0]), 1.0)
    assert exponent == 3 and words.tolist() == [3 * 2**25, 4 * 2**25]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_entropy_gives_the_same_bits(name: str) -> None:
    found = [played(name, updates()).combine(Combination(np.full(N, 1 / N))).tobytes() for _ in range(2)]
    assert found[0] == found[1]
    other = LocalParties(name, RUN, D, os.urandom).play(updates(), 1, CLIP)  # type: ignore[arg-type]
    assert np.allclose(other.combine(Combination(np.full(N, 1 / N))), clipped(updates()).mean(axis=0), atol=2e-7)


def test_limits_by_hand() -> None:
    assert largest_square(10_000) == (2**28 + 101) ** 2
    assert opening.largest_history_square("sum", 3, 9) == (3 * 2**20 + 24) ** 2
    assert opening.largest_history_square("average", 3, 9) == (2**20 + 96) ** 2
