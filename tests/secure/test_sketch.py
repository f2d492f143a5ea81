"""Sketches of updates: what they keep of products, that servers make the same ones, and that rules decide on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wrapped import CLIP, NAMES, D, N, honest, named, parties, play

from fedrobust.aggregation import NNM, Combination, Context, GeometricMedian, MultiKrum, Pipeline
from fedrobust.secure import sketch as sketches
from fedrobust.secure.ring import FRACTION, derived, products
from fedrobust.secure.sketch import PROJECTIONS, projected, sketched, stretch
from fedrobust.updates import ClearUpdates

SEED = bytes(range(32))
UNIT = 2.0**-FRACTION


def of(rows: np.ndarray, k: int, seed: bytes = SEED) -> np.ndarray:
    """The sketch of rows (n, d)."""
    return sketched(lambda part: rows[:, part].copy(), len(rows), rows.shape[1], k, seed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 2**32))
def test_it_is_a_matrix_with_one_sign_in_each_row(d: int, k: int, number: int) -> None:
    matrix = of(np.eye(d, dtype=np.int64), k, derived(SEED, str(number)))
    assert (np.abs(matrix).sum(axis=1) == 1).all()
    places = np.abs(matrix).argmax(axis=1)
    for block in range(0, d, k):  # within a block no two come together
        assert len(set(places[block : block + k])) == len(places[block : block + k])
    rows = np.random.default_rng(number).integers(-(2**63), 2**63 - 1, (3, d))
    assert np.array_equal(of(rows, k, derived(SEED, str(number))), rows @ matrix)  # mod 2^64


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 60), st.integers(0, 2**32))
def test_the_one_beside_it_is_such_a_matrix_too(d: int, k: int, number: int) -> None:
    seed, eye = derived(SEED, str(number)), np.eye(d, dtype=np.int64)
    both = sketched(lambda part: eye[:, part].copy(), d, d, k, seed, twice=True)
    assert np.array_equal(both[:, :k], of(eye, k, seed))
    assert (np.abs(both[:, k:]).sum(axis=1) == 1).all()


def test_what_comes_together_in_one_does_not_in_the_other() -> None:
    d, k, eye = 3_000, 100, np.eye(3_000, dtype=np.int64)
    both = np.abs(sketched(lambda part: eye[:, part].copy(), d, d, k, SEED, twice=True))
    first, second = both[:, :k].argmax(axis=1), both[:, k:].argmax(axis=1)
    together = (first[:, None] == first[None]) & ~np.eye(d, dtype=bool)
    again = together & (second[:, None] == second[None])
    assert together.mean() == pytest.approx(1 / k, rel=0.1) and again.mean() < 4 / k**2


def test_it_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest()
    expected = of(rows, 300)
    for size in (1, 8 * N * 700, 1 << 30):
        monkeypatch.setattr(sketches, "CHUNK_BYTES", size)
        assert np.array_equal(of(rows, 300), expected)


def test_products_are_kept_in_the_mean_and_with_the_stated_variance() -> None:
    draw, d, k = np.random.default_rng(1), 1_000, 128
    one, other = draw.normal(size=(2, d))
    rows = np.rint(np.stack([one / np.linalg.norm(one), (one + other) / np.linalg.norm(one + other)]) * 2.0**FRACTION)
    words = rows.astype(np.int64)
    found = []
    for number in range(2_000):
        short = of(words, k, derived(SEED, str(number))) * UNIT
        found.append([short[0] @ short[1], short[0] @ short[0]])
    exact = rows[0] @ rows[1] * UNIT**2
    mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
    assert np.abs(mean - [exact, 1.0]).max() < 5 * np.sqrt(2 / k / 2_000)
    assert spread[0] <= 1.05 * np.sqrt((1 + exact**2) / k) and spread[1] <= 1.05 * np.sqrt(2 / k)
    assert np.max(found) < stretch(k)


def test_where_there_are_as_many_columns_as_coordinates_products_are_exact() -> None:
    rows = honest()
    for k in (D, D + 7):
        assert np.array_equal(products(of(rows, k), of(rows, k)), products(rows, rows))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sketch", [130, 300, 2_000, 5_000])
def test_servers_open_the_gram_matrix_of_the_sketches(name: str, sketch: int) -> None:
    """Of updates, histories and public vectors, all of one sketch, and of another one in each round."""
    rows, names = honest(), ("last",)
    played = parties(name, sketch=sketch, histories=names)
    vectors = {"root": np.ones(D), "momentum": np.arange(D) / D}
    grams = []
    for round in range(3):
        opened = play(played, rows, round)
        gram = opened.gram(vectors, names)
        seed = derived(played.servers[0].links.sketch, f"{round}/sketch")
        short = of(rows, sketch, seed) * UNIT
        assert np.allclose(gram.matrix, short @ short.T, rtol=1e-12)
        if round:
            assert np.allclose(gram.histories["last"].cross, short @ short.T, rtol=1e-12)
        for each, vector in vectors.items():
            public = sketched(lambda part, vector=vector: np.rint(vector[None, part] * 2.0**20).astype(np.int64), 1, D, sketch, seed)[0]  # fmt: skip  # noqa: E501
            assert np.allclose(gram.anchors[each].products, short @ public * 2.0**-20, rtol=1e-4, atol=1e-6)
            assert gram.anchors[each].squared_norm == pytest.approx(public @ public * 4.0**-20, rel=1e-4)
        lines = np.vstack([short, [sketched(lambda part, v=v: np.rint(v[None, part] * 2.0**20).astype(np.int64), 1, D, sketch, seed)[0] * 2.0**-20 for v in vectors.values()]])  # fmt: skip  # noqa: E501
        point = Combination(np.full(N, 0.1), {"root": 0.01, "momentum": -0.02})
        target = np.array([*np.full(N, 0.1), 0.01, -0.02]) @ lines
        assert np.allclose(gram.distances_squared_to(point), ((short - target) ** 2).sum(axis=1), rtol=1e-4)
        opened.remembered(names)
        grams.append(gram.matrix)
    same = np.allclose(grams[0], grams[1], rtol=1e-9)
    assert same == (sketch >= D)


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_decides_what_it_would_on_the_sketches_in_the_clear(name: str) -> None:
    rows = honest()
    rows[1] *= -1
    played = parties(name, sketch=128)
    opened = play(played, rows)
    short = of(rows, 128, derived(played.servers[0].links.sketch, "1/sketch")) * UNIT
    for parts in ([MultiKrum()], [NNM(), GeometricMedian()]):
        pipeline, context = Pipeline(parts), Context(f=2)
        clear = ClearUpdates([short.astype(np.float64)])
        theirs = pipeline.decide(clear, context, pipeline.gram(clear, context))
        ours = pipeline.decide(opened, context, pipeline.gram(opened, context))
        assert isinstance(theirs.decided, Combination) and isinstance(ours.decided, Combination)
        assert np.allclose(ours.decided.weights, theirs.decided.weights, atol=1e-9)


def test_the_gram_of_sketches_is_that_of_vectors() -> None:
    """However few columns: distances are never negative, as they would be with noise on products."""
    for sketch in (128, 256):
        gram = play(parties("shares", sketch=sketch), honest()).gram()
        assert np.linalg.eigvalsh(gram.matrix).min() > -1e-12
        assert gram.distances_squared().min() >= 0


def test_nobody_beside_the_servers_learns_the_sketch() -> None:
    """The dealer, the coordinator and the clients get no message in which its seed, or what it comes from, could be."""
    seen: list[bytes] = []

    def wire(data: bytes) -> bytes:
        seen.append(bytes(data))
        return data

    played = parties("replicated", wire=wire, sketch=64)
    play(played, honest()).combine(Combination(np.full(N, 1 / N)))
    secret, seed = played.servers[0].links.sketch, derived(played.servers[0].links.sketch, "1/sketch")
    assert {server.links.sketch for server in played.servers} == {secret}
    for hidden in (secret, seed, *(server.links.own for server in played.servers)):
        assert not any(hidden in data for data in seen)


def test_projections_have_the_stated_distribution() -> None:
    matrix = projected(np.eye(2_000, dtype=np.int64), SEED)
    assert matrix.shape == (2_000, PROJECTIONS)
    assert np.allclose([(matrix == value).mean() for value in (-1, 0, 1)], [0.25, 0.5, 0.25], atol=0.01)
    assert np.abs(np.corrcoef(matrix.T) - np.eye(PROJECTIONS)).max() < 0.12


def test_an_update_may_be_a_little_longer_in_a_sketch_and_not_twice() -> None:
    long = honest()
    long[2] = long[2] * 2
    for sketch in (None, 512):
        opened = play(parties("shares", sketch=sketch), long)
        assert named(opened) == {2} and not opened.dropped
        assert not named(play(parties("shares", sketch=sketch), honest()))
    assert CLIP == 1.0
