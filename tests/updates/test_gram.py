from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.aggregation import Anchor, Combination, Gram
from fedrobust.updates import ClearUpdates
from fedrobust.updates.interface import CHUNK_BYTES


def exact_distances(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return ((rows[:, None] - rows[None]) ** 2).sum(-1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 1e5])
def test_distances_keep_their_digits_beside_a_large_common_part(dtype, ratio):
    rng = np.random.default_rng(0)
    rows = (ratio * rng.standard_normal(5000) + rng.standard_normal((8, 5000))).astype(dtype)
    gram = ClearUpdates([rows]).gram()
    expected = exact_distances(rows)
    assert np.abs(gram.distances_squared() - expected).max() <= 1e-11 * expected.max()
    exact = rows.astype(np.float64) @ rows.astype(np.float64).T
    assert np.abs(gram.matrix - exact).max() <= 1e-13 * np.abs(exact).max()


@pytest.mark.parametrize("position", [0, 3, 7])
def test_huge_rows_cost_the_others_no_digits(position):
    rows = np.random.default_rng(1).standard_normal((8, 3000)).astype(np.float32)
    rows[[position, (position + 1) % 8]] *= 1e30
    rest = [i for i in range(8) if i not in (position, (position + 1) % 8)]
    found = ClearUpdates([rows]).gram().distances_squared()[np.ix_(rest, rest)]
    assert np.allclose(found, exact_distances(rows[rest]), rtol=1e-12, atol=0)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_same_bits_however_rows_are_split_into_blocks(data):
    n, d = data.draw(st.integers(1, 12)), data.draw(st.sampled_from([1, 130, 2000]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    rows = rng.standard_normal((n, d)).astype(np.float32)
    weights = rng.standard_normal(n)
    anchors = {"momentum": rng.standard_normal(d)}
    whole = ClearUpdates([rows])
    expected = whole.gram(anchors)
    order = np.array(data.draw(st.permutations(range(n))))  # row i is row order[i] of the blocks
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    stored = np.empty_like(rows)
    stored[order] = rows
    split = ClearUpdates([torch.from_numpy(b) if k % 2 else b for k, b in enumerate(np.split(stored, cuts))], order)
    found = split.gram(anchors)
    assert np.array_equal(found.matrix, expected.matrix)
    assert np.array_equal(found.distances_squared(), expected.distances_squared())
    assert np.array_equal(found.anchors["momentum"].products, expected.anchors["momentum"].products)
    combination = Combination(weights, {"momentum": 0.5})
    assert np.array_equal(split.combine(combination), whole.combine(combination))


def test_many_chunks_give_the_same_gram(monkeypatch):
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((6, 1999))
    expected = ClearUpdates([rows]).gram({"momentum": rows[0] + 1})
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    chunked = ClearUpdates([rows])
    found = chunked.gram({"momentum": rows[0] + 1})
    assert chunked.total(lambda chunk, columns: np.ones(1)) == 2
    assert np.allclose(found.matrix, expected.matrix, rtol=1e-13, atol=1e-10)
    assert np.allclose(found.distances_squared(), expected.distances_squared(), rtol=1e-13, atol=0)
    assert found.anchors["momentum"].squared_norm == pytest.approx(((rows[0] + 1) ** 2).sum(), rel=1e-13)


def mixed_cases():
    rng = np.random.default_rng(4)
    affine = rng.random((4, 7))
    yield "affine", affine / affine.sum(axis=1, keepdims=True)
    yield "clipped", np.diag(rng.random(7))
    yield "any", rng.standard_normal((5, 7))
    yield "one row", np.eye(7)[[2]]


@pytest.mark.parametrize("mixing", [m for _, m in mixed_cases()], ids=[name for name, _ in mixed_cases()])
@pytest.mark.parametrize("plain", [False, True])
def test_mixed_is_the_gram_of_the_mixed_rows(mixing, plain):
    rng = np.random.default_rng(5)
    rows, vector = 100 + rng.standard_normal((7, 90)), 100 + rng.standard_normal(90)
    gram = ClearUpdates([rows]).gram({"momentum": vector})
    if plain:  # as a protocol gives it that opens G alone
        gram = Gram(gram.matrix, gram.prior, gram.anchors)
    found, mixed = gram.mixed(mixing), mixing @ rows
    assert np.allclose(found.matrix, mixed @ mixed.T, rtol=1e-10)
    assert np.allclose(found.distances_squared(), exact_distances(mixed), rtol=1e-6, atol=1e-6)
    assert np.allclose(found.anchors["momentum"].products, mixed @ vector, rtol=1e-10)
    weights = rng.random(len(mixed))
    point = weights @ mixed + 0.3 * vector
    expected = ((mixed - point) ** 2).sum(axis=1)
    assert np.allclose(found.distances_squared_to(Combination(weights, {"momentum": 0.3})), expected, rtol=1e-9)
    assert found.prior.sum() == pytest.approx(1.0)


def test_mixing_carries_the_priors():
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    gram = Gram(np.eye(4), prior)
    buckets = np.array([[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]])
    assert np.allclose(gram.mixed(buckets).prior, [0.4, 0.6])
    assert np.array_equal(gram.mixed(np.full((4, 4), 0.25)).prior, prior)
    assert np.allclose(gram.mixed(np.eye(4)[[1, 3]]).prior, [1 / 3, 2 / 3])
    assert np.allclose(gram.weighted(np.array([1, 1, 1, 5.0])).prior, [0.125, 0.125, 0.125, 0.625])


def test_two_anchors_of_which_one_is_used():
    rows = np.random.default_rng(6).standard_normal((3, 10))
    vector = rows.sum(axis=0)
    gram = Gram(
        rows @ rows.T,
        np.full(3, 1 / 3),
        {"root": Anchor(np.zeros(3), 1.0), "momentum": Anchor(rows @ vector, float(vector @ vector))},
    )
    found = gram.distances_squared_to(Combination(np.zeros(3), {"momentum": 1.0}))
    assert np.allclose(found, ((rows - vector) ** 2).sum(axis=1))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_a_zero_row_has_no_length(size):
    rows = size * np.random.default_rng(8).standard_normal((9, 20_000)).astype(np.float32)
    rows[[0, 4]] = 0.0
    gram = ClearUpdates([rows]).gram({"root": np.zeros(20_000)})
    assert gram.norms()[[0, 4]].tolist() == [0.0, 0.0]
    assert not gram.matrix[[0, 4]].any()
    assert gram.anchors["root"].squared_norm == 0.0
    small = rows.copy()
    small[4] = 1e-6 * rows[1]
    assert ClearUpdates([small]).gram().norms()[4] == pytest.approx(
        1e-6 * np.linalg.norm(rows[1].astype(np.float64)), rel=1e-3
    )
