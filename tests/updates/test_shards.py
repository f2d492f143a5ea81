"""Column shards: the same bits as with everything in one place, and no part ever sees more than its columns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.aggregation import (
    NNM,
    CenteredClipping,
    Clip,
    Context,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Pipeline,
    TrimmedMean,
)
from fedrobust.updates import ClearUpdates, ShardedUpdates, shard_columns
from fedrobust.updates.interface import NARROWEST, SECTIONS, sections

N, D = 9, 5 * NARROWEST + 77
PIPELINES = [
    [Mean()],
    [Krum()],
    [Clip(), NNM(), GeometricMedian()],
    [CenteredClipping(iterations=2)],
    [Median()],
    [NNM(), TrimmedMean()],
]


def updates(seed=0):
    rng = np.random.default_rng(seed)
    return 10 * rng.standard_normal(D).astype(np.float32) + rng.standard_normal((N, D), dtype=np.float32)


def scattered(rows, shards):
    return ShardedUpdates.of([rows[:, part] for part in shard_columns(rows.shape[1], shards)])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**9))
def test_sections_cover_all_columns_once(d):
    cuts = sections(d)
    assert 1 <= len(cuts) <= SECTIONS
    assert [cuts[0].start, cuts[-1].stop] == [0, d]
    assert all(a.stop == b.start for a, b in itertools.pairwise(cuts))
    assert all((cut.stop - cut.start) % NARROWEST == 0 for cut in cuts[:-1])


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**8), st.integers(1, 40))
def test_shards_hold_whole_sections_and_even_shares(d, shards):
    parts = shard_columns(d, shards)
    assert len(parts) == min(shards, len(sections(d)))
    assert [parts[0].start, parts[-1].stop] == [0, d]
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    assert {part.start for part in parts} <= {cut.start for cut in sections(d)}
    if len(parts) > 1:
        width = sections(d)[0].stop
        counts = [-(-(part.stop - part.start) // width) for part in parts]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("shards", [1, 2, 3, 6, 50])
@pytest.mark.parametrize("parts", PIPELINES, ids=lambda parts: "+".join(part.name for part in parts))
def test_the_bits_are_those_of_one_place(parts, shards):
    rows, context = updates(), Context(f=2, previous=np.linspace(-1, 1, D))
    whole, found = (
        Pipeline(parts).run(ClearUpdates([rows]), context),
        Pipeline(parts).run(scattered(rows, shards), context),
    )
    assert np.array_equal(found.aggregate, whole.aggregate)
    assert np.array_equal(found.gram.matrix, whole.gram.matrix, equal_nan=True)  # the mean asks for none
    if whole.weights is not None:
        assert np.array_equal(found.weights, whole.weights)


def test_rows_that_are_not_finite_anywhere_are_found_and_left_out():
    rows = updates()
    rows[2, 3], rows[5, D - 1] = np.nan, np.inf
    protocol = scattered(rows, 4)
    finite = protocol.finite_rows()
    assert np.flatnonzero(~finite).tolist() == [2, 5]
    kept = protocol.subset(finite)
    expected = Pipeline([Krum()]).run(ClearUpdates([rows[finite]]), Context(f=1))
    assert np.array_equal(Pipeline([Krum()]).run(kept, Context(f=1)).aggregate, expected.aggregate)


def test_tensors_and_priors():
    rows = torch.from_numpy(updates())
    prior = np.arange(1.0, N + 1)
    protocol = ShardedUpdates.of([rows[:, part] for part in shard_columns(D, 3)], prior=prior)
    found = Pipeline([Mean()]).run(protocol, Context(f=0))
    assert np.allclose(found.aggregate, prior / prior.sum() @ rows.double().numpy(), atol=1e-5)


def test_histories_and_sums_over_chunks_are_those_of_one_place():
    rows, rng = updates(), np.random.default_rng(5)
    past = rng.standard_normal((12, D)).astype(np.float32)  # of more clients than are here
    clients = np.array([11, 0, 3, 4, 5, 6, 7, 8, 20])  # 20 is new
    whole = ClearUpdates([rows], histories={"last": past}, clients=clients)
    parts = ShardedUpdates(
        [
            ClearUpdates([rows[:, c]], histories={"last": past[:, c]}, clients=clients, columns=(c.start, D))
            for c in shard_columns(D, 3)
        ]
    )
    anchor = {"root": rng.standard_normal(D)}
    one, other = (protocol.gram(anchor, ["last"]) for protocol in (whole, parts))
    for field in ("matrix", "cross"):
        assert np.array_equal(getattr(one.histories["last"], field), getattr(other.histories["last"], field))
    old = np.concatenate([past[clients[:-1]], np.zeros((1, D))])
    assert np.allclose(one.histories["last"].cross, rows.astype(np.float64) @ old.T, rtol=0, atol=1e-6 * D)
    assert np.allclose(one.histories["last"].matrix, old @ old.T, rtol=0, atol=1e-6 * D)
    assert np.allclose(one.histories["last"].anchors["root"], old @ anchor["root"], rtol=0, atol=1e-6 * D)
    for name in ("last", "sum"):
        found = parts.remembered([name])[name]
        assert np.array_equal(found, whole.remembered([name])[name])
        assert np.array_equal(found[clients], rows)  # no "sum" was kept before
    assert np.array_equal(parts.remembered(["last"])["last"][1], past[1])
    rows[3] *= 7.3  # longer than the median
    assert np.array_equal(parts.remembered(["average"])["average"], whole.remembered(["average"])["average"])
    positive = [protocol.total(count_positive) for protocol in (whole, parts)]
    assert np.array_equal(positive[0], positive[1])
    assert np.array_equal(positive[0], (rows > 0).sum(axis=1))


def count_positive(chunk, columns):
    assert columns.stop - columns.start == chunk.shape[1]
    return (chunk > 0).sum(axis=1)


def test_columns_that_are_no_whole_sections_are_refused():
    with pytest.raises(ValueError, match="no whole sections"):
        ShardedUpdates.of([np.zeros((2, 100)), np.zeros((2, D - 100))])
    with pytest.raises(ValueError, match="'momentum'"):
        scattered(updates(), 2).gram({"momentum": np.zeros(3)})
