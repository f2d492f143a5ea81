from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.aggregation import NNM, Median, Pipeline, TrimmedMean
from fedrobust.aggregation.coordinatewise import select, selection_network
from fedrobust.aggregation.protocol import CHUNK_BYTES


@pytest.mark.parametrize("n", range(1, 11))
def test_the_network_sorts_every_sequence_of_zeros_and_ones(n):
    """By the zero-one principle it then sorts everything."""
    columns = torch.tensor([[(k >> i) & 1 for k in range(2**n)] for i in range(n)], dtype=torch.float32)
    assert torch.equal(select(columns.clone(), range(n)), columns.sort(dim=0).values)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 70), seed=st.integers(0, 2**16), data=st.data())
def test_any_ranks(n, seed, data):
    ranks = sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1)))
    rows = torch.from_numpy(np.random.default_rng(seed).integers(-4, 5, (n, 33)).astype(np.float64))
    assert torch.equal(select(rows.clone(), ranks), rows.sort(dim=0).values[ranks])


def test_a_median_takes_fewer_comparators_than_a_sort():
    assert len(selection_network(50, frozenset({24, 25}))) < len(selection_network(50, frozenset(range(50))))


@pytest.mark.parametrize("n", [1, 2, 5, 8, 31])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_median_and_trimmed_mean(n, dtype):
    rows = np.random.default_rng(n).standard_normal((n, 1000)).astype(dtype)
    assert np.array_equal(
        Pipeline([Median()]).aggregate(rows), np.median(rows.astype(np.float64), axis=0).astype(dtype)
    )
    for f in range((n + 1) // 2):
        expected = np.sort(rows.astype(np.float64), axis=0)[f : n - f].mean(axis=0)
        assert np.allclose(
            Pipeline([TrimmedMean()]).aggregate(rows, f=f), expected, rtol=0, atol=np.finfo(dtype).eps * 4
        )


def test_rows_of_the_largest_size_do_not_wash_out_the_middle():
    rows = np.random.default_rng(0).standard_normal((9, 100)).astype(np.float32)
    rows[:2], rows[7:] = np.float32(3e38), np.float32(-3e38)
    assert np.allclose(
        Pipeline([TrimmedMean()]).aggregate(rows, f=2), rows[2:7].mean(axis=0, dtype=np.float64), rtol=1e-6
    )


@pytest.mark.parametrize(
    "parts", [[Median()], [TrimmedMean()], [NNM(), TrimmedMean()]], ids=["median", "trimmed", "nnm"]
)
def test_chunks_do_not_change_a_bit(parts, monkeypatch):
    rows = np.random.default_rng(1).standard_normal((8, 1111)).astype(np.float32)
    expected = Pipeline(parts).aggregate(rows, f=2)
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 1)
    found = Pipeline(parts).aggregate(rows, f=2)
    assert len(parts) > 1 or np.array_equal(found, expected)
    assert np.allclose(found, expected, rtol=1e-6)
