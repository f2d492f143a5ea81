"""The coordinator's side: it agrees with the clear, and sees the Gram matrix and one sum and nothing else."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from fedrobust.aggregation import NNM, Clear, Clip, Combination, Context, GeometricMedian, Mean, Pipeline, Rule
from fedrobust.aggregation.base import Stage
from fedrobust.options import members
from fedrobust.secure import opening, server
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import HEADER, OVERHEAD, Kind, MessageError, run_id, unpack
from fedrobust.secure.opened import Opened
from fedrobust.secure.opening import dithered, encode_anchor, fits, fixed_point, joined, largest_square
from fedrobust.secure.ring import encode, quadratic_form, square_sum
from fedrobust.secure.server import OpeningError, support

RUN = run_id("opening")
N, D, CLIP = 12, 3_000, 2.0
RULES = {name: rule for name, rule in members(Rule).items() if rule().needs <= {"gram", "sum"}}
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


def played(name: str, rows: np.ndarray, round: int = 1, **options: Any) -> Opened:
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
        clear = Clear([clipped(now)], histories=remembered)
        opened = parties.play(now, round, CLIP)
        if round < 2:
            remembered = clear.remembered(pipeline.histories)
            opened.remembered(pipeline.histories)
    theirs = pipeline.decide(clear, context, pipeline.gram(clear, context))
    ours = pipeline.decide(opened, context, pipeline.gram(opened, context))
    assert isinstance(theirs.decided, Combination) and isinstance(ours.decided, Combination)
    selected, expected = ours.decided.weights != 0, theirs.decided.weights != 0
    assert np.array_equal(selected, expected)
    if 0 < support(np.rint(theirs.decided.weights * 2**30).astype(np.int64)) < 3:
        with pytest.raises(OpeningError, match="min_support"):
            opened.combine(ours.decided)
        return
    exact = clear.combine(theirs.decided)
    # The histories keep 20 bits, and their coefficients 12.
    tolerance = 2e-3 if pipeline.histories else 1e-5
    assert np.linalg.norm(opened.combine(ours.decided) - exact) <= tolerance * np.linalg.norm(exact)
    assert opened.notes == () and opened.culprits == ()


def support_of(rule: str, rows: np.ndarray) -> float:
    """On how many rows the rule's weights lie in the clear."""
    try:
        gram = Clear([clipped(rows)]).gram()
        combination = RULES[rule]().combine(gram, Context(f=2, round=3))
    except Exception:  # it wants anchors or histories
        return 3.0
    return support(np.rint(combination.weights * 2**30).astype(np.int64))


@pytest.mark.parametrize("name", NAMES)
def test_the_gram_has_the_digits_of_small_differences(name: str) -> None:
    rows = updates()
    rows = (rows[3] + 1e-5 * rows).astype(np.float32)
    exact = clipped(rows).astype(np.float64)
    ours = played(name, rows).gram().distances_squared()
    theirs = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)
    assert np.allclose(ours, theirs, rtol=3e-3, atol=0)  # 1e-5 beside 2^-31 √d


@pytest.mark.parametrize("name", NAMES)
def test_anchors_of_any_length_agree_with_the_clear(name: str) -> None:
    rows, draw = updates(), np.random.default_rng(1)
    anchors = {"short": draw.normal(size=D) * 1e-5, "long": draw.normal(size=D) * 1e5, "zero": np.zeros(D)}
    ours, theirs = played(name, rows).gram(anchors), Clear([clipped(rows)]).gram(anchors)
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
        assert opened.functionals == max(1, count)  # four times as long, it is known already


@pytest.mark.parametrize("name", NAMES)
def test_histories_agree_with_the_clear(name: str) -> None:
    names = ("last", "sum", "average")
    parties = LocalParties(name, RUN, D, np.random.default_rng(9).bytes, histories=names)  # type: ignore[arg-type]
    remembered: dict[str, np.ndarray] = {}
    for round in range(4):
        rows = updates(seed=round)
        anchors = {"root": rows[5].astype(np.float64)}
        clear, opened = Clear([clipped(rows)], histories=remembered), parties.play(rows, round, CLIP)
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
        opened = Opened(parties, D, CLIP, entropy=np.random.default_rng(1).bytes)
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
    part, clear = opened.subset(keep), Clear([clipped(rows)]).subset(keep)
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
    theirs = pipeline.run(Clear([clipped(rows)]), context)
    for name in NAMES:
        ours = pipeline.run(played(name, rows), context)
        assert np.linalg.norm(ours.aggregate - theirs.aggregate) <= 1e-5 * np.linalg.norm(theirs.aggregate)
        assert ours.weights is not None and theirs.weights is not None
        assert np.allclose(ours.weights, theirs.weights, atol=1e-5)


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
    assert kinds == {(Kind.GRAM, 8 * N * N): count, (Kind.ANCHOR, 8 * N): count, (Kind.AGGREGATE, 8 * D): count}
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
        weights = np.full(N, 2**26)
        opened._round.combine(weights)
        bodies: dict[Kind, list[np.ndarray]] = {}
        for data in seen:
            if data[37:48] == b"coordinator":
                message = unpack(data)
                bodies.setdefault(message.kind, []).append(np.frombuffer(message.body, dtype=np.int64))
                shares = shares if sums else shares + message.body
        sums.append({kind: sum(parts) for kind, parts in bodies.items()})
        assert gram.n == N
    assert set(sums[0]) == {Kind.GRAM, Kind.ANCHOR, Kind.AGGREGATE}
    for kind in sums[0]:
        assert np.array_equal(sums[0][kind], sums[1][kind])
    assert chisquare(np.bincount(np.frombuffer(shares, dtype=np.uint8), minlength=256)).pvalue > 1e-3


def test_shares_that_do_not_belong_together_are_refused() -> None:
    parties = LocalParties("shares", RUN, D, np.random.default_rng(9).bytes)
    rows = updates()
    parties.receive(1, {client: parties.sent(encode(row, CLIP), 1, client) for client, row in enumerate(rows)})
    first, second = parties.gram()
    with pytest.raises(MessageError, match="expected sender"):
        joined([second, first], RUN, 1, Kind.GRAM, N * N)
    with pytest.raises(MessageError, match="bytes, expected"):
        joined([first, second], RUN, 1, Kind.GRAM, N)
    with pytest.raises(MessageError, match="round 1, this is round 2"):
        joined([first, second], RUN, 2, Kind.GRAM, N * N)


def test_fixed_point_weights_keep_the_sum_in_range() -> None:
    gram = np.diag([2**60, 2**60, 4]).astype(object)
    weights, bits = fixed_point(np.array([0.25, -0.5, 0.0]), gram)
    assert (weights.tolist(), bits) == ([2**30, -(2**31), 0], 32)
    weights, bits = fixed_point(np.array([8.0, 8.0, 0.0]), gram)
    assert bits == 28 and weights.tolist() == [2**31, 2**31, 0]
    weights, bits = fixed_point(np.array([0.0, 0.0, 2.0**20]), gram)  # a short row takes a large weight
    assert bits == 41 and weights[2] == 2**61
    weights, bits = fixed_point(np.full(3, 2.0**-10), gram)  # small weights take more bits
    assert bits == 40 and weights.tolist() == [2**30] * 3
    assert fixed_point(np.zeros(3), gram)[0].tolist() == [0, 0, 0]
    with pytest.raises(OpeningError, match="not finite"):
        fixed_point(np.array([np.nan, 0, 0]), gram)


@pytest.mark.parametrize("name", NAMES)
def test_large_weights_of_short_rows(name: str) -> None:
    rows = updates() * np.float32(1e-4)
    weights = np.full(N, 5_000.0)
    found = played(name, rows).combine(Combination(weights))
    expected = weights @ rows.astype(np.float64)
    assert np.linalg.norm(found - expected) <= 1e-3 * np.linalg.norm(expected)  # 2^-31 √d beside 1e-4


@pytest.mark.parametrize("weight", [1.0, 1e-6, 1e-15])
def test_small_weights_are_as_exact_as_large_ones(weight: float) -> None:
    rows = updates()
    found = played("shares", rows).combine(Combination(np.full(N, weight)))
    expected = weight * clipped(rows).sum(axis=0)
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_the_mean_of_three_is_opened() -> None:
    for seed in range(5):
        rows = updates(3, 100, seed)
        assert np.allclose(played("shares", rows).combine(Combination(np.full(3, 1 / 3))), clipped(rows).mean(axis=0))


def test_commitments_are_to_the_shares_of_every_server() -> None:
    found = []
    for seed in (0, 0, 1):
        parties = LocalParties("shares", RUN, D, np.random.default_rng(9).bytes)
        parties.play(updates(seed=seed), 1, CLIP)
        found.append(parties.commitments)
    assert found[0] == found[1] and set(found[0]) == set(range(N))
    assert all(found[0][client] != found[2][client] for client in range(N))
    assert all(len(digest) == 64 for digest in found[0].values())


def test_the_check_is_one_of_integers() -> None:
    rows = np.array([[2**30, 5], [3, -(2**30)]])
    gram, weights = rows.astype(object) @ rows.T.astype(object), np.array([2**28, 2**29])
    total = weights @ rows
    assert fits(total, weights, gram)
    assert not fits(total + np.array([1, 0]), weights, gram)
    assert not fits(total, weights, gram + np.array([[2**63, 0], [0, 0]], dtype=object))


def test_the_last_bits_of_weights_are_drawn() -> None:
    weights = np.array([0, 2**28, 1, -(2**20), 0] * 200)
    one, other = (dithered(weights, np.random.default_rng(seed).bytes) for seed in (0, 1))
    assert (one[weights == 0] == 0).all() and (one != other).sum() > 500
    changes = (one - weights)[weights != 0]
    assert changes.min() == -32 and changes.max() == 31 and len(set(changes.tolist())) == 64


def test_a_sum_longer_than_its_terms_does_not_fit() -> None:
    """Products that no vectors have could make room for it: ⟨u_0, u_1⟩ = 2^62 beside squares of 2^60."""
    gram = np.array([[2**60, 2**62], [2**62, 2**60]], dtype=object)
    weights = np.array([1, 1])
    total = np.array([2**31, 2**31, 2**30, 2**30])  # ‖a‖² = 10 · 2^60 = wᵀGw, although ‖a‖ is at most 2 · 2^30
    assert square_sum(total) == quadratic_form(weights, gram)
    assert not fits(total, weights, gram)


def test_a_combination_of_anchors_alone_opens_nothing() -> None:
    opened, vector = played("shares", updates()), np.arange(D) / D
    opened.gram({"momentum": vector})
    found = opened.combine(Combination(np.zeros(N), {"momentum": 0.5}))
    assert np.allclose(found, 0.5 * vector) and opened.verdict is None


def test_anchors_are_scaled_by_a_power_of_two() -> None:
    words, exponent = encode_anchor(np.array([3.0, 4.0]), 1.0)
    assert exponent == 3 and words.tolist() == [3 * 2**27, 4 * 2**27]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_entropy_gives_the_same_bits(name: str) -> None:
    found = [played(name, updates()).combine(Combination(np.full(N, 1 / N))).tobytes() for _ in range(2)]
    assert found[0] == found[1]
    other = LocalParties(name, RUN, D, os.urandom).play(updates(), 1, CLIP)  # type: ignore[arg-type]
    assert np.allclose(other.combine(Combination(np.full(N, 1 / N))), clipped(updates()).mean(axis=0), atol=1e-7)


def test_limits_by_hand() -> None:
    assert largest_square(10_000) == (2**30 + 101) ** 2
    assert opening.largest_history_square("sum", 3, 9) == (3 * 2**20 + 24) ** 2
    assert opening.largest_history_square("average", 3, 9) == (2**20 + 96) ** 2


def test_the_rules_that_are_named_exist() -> None:
    assert set(server.SPREADING) <= set(members(Rule))
    assert Path(server.__file__).exists()
