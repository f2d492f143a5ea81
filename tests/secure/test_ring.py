"""Arithmetic mod 2^64, against Python's own integers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedrobust.secure import ring
from fedrobust.secure.messages import MessageError

SEED = bytes(range(32))
WORD = st.integers(-(2**63), 2**63 - 1)


def wrapped(value: int) -> int:
    """A Python integer mod 2^64 in two's complement."""
    return (value + 2**63) % 2**64 - 2**63


def test_encoding_by_hand() -> None:
    assert ring.encode(np.array([0.25, -0.5]), 1.0).tolist() == [2**26, -(2**27)]
    assert ring.encode(np.array([3.0, 4.0], dtype=np.float32), 1.0).tolist() == [161_061_274, 214_748_365]
    assert ring.encode(np.array([3.0, 4.0]), 10.0).tolist() == [80_530_637, 107_374_182]


@settings(max_examples=50)
@given(arrays(np.float64, 40, elements=st.floats(-1e6, 1e6)), st.floats(1e-3, 1e6))
def test_encoding_clips_and_loses_half_a_unit(update: np.ndarray, clip: float) -> None:
    words = ring.encode(update, clip)
    norm = np.linalg.norm(update)
    clipped = update * min(1.0, clip / norm) if norm else update
    assert np.abs(ring.decode(words, clip) - clipped).max() <= clip * 2.0**-29 * (1 + 1e-6)
    assert ring.square_sum(words) <= (2**28 + np.sqrt(40)) ** 2


def test_long_updates_are_encoded_like_short_ones() -> None:
    update = np.random.default_rng(0).normal(size=300_000)
    norm = np.sqrt(update @ update)
    assert np.array_equal(ring.encode(update, 1.0), np.rint(update * (2.0**28 / norm)).astype(np.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_encoded(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ring.encode(np.array([1.0, bad]), 1.0)
    with pytest.raises(ValueError, match="clip"):
        ring.encode(np.ones(2), bad)


def test_expansion_is_the_key_stream_of_aes() -> None:
    stream = Cipher(algorithms.AES256(SEED), modes.CTR(bytes(16))).encryptor().update(bytes(80_000 * 8))
    assert ring.expand(SEED, 80_000).tobytes() == stream


@given(st.integers(0, 200), st.integers(1, 100))
def test_any_columns_can_be_expanded_alone(offset: int, count: int) -> None:
    whole, out = ring.expand(SEED, 400), np.zeros(count, dtype=np.int64)
    assert np.array_equal(ring.expand(SEED, count, offset), whole[offset : offset + count])
    assert np.array_equal(ring.expand(SEED, count, offset, out), out)
    assert np.array_equal(out, whole[offset : offset + count])


def test_derived_seeds_differ() -> None:
    assert len({ring.expand(ring.derived(SEED, f"use {k}"), 4).tobytes() for k in range(50)} | {SEED}) == 51
    with pytest.raises(ValueError, match="32 bytes"):
        ring.expand(b"short", 4)


@settings(max_examples=25, deadline=None)
@given(arrays(np.int64, (3, 7), elements=WORD), arrays(np.int64, (2, 7), elements=WORD))
def test_products_are_exact_mod_2_to_64(left: np.ndarray, right: np.ndarray) -> None:
    exact = [[wrapped(sum(int(a) * int(b) for a, b in zip(u, v, strict=True))) for v in right] for u in left]
    assert ring.products(left, right).tolist() == exact


def test_products_of_many_columns_are_exact() -> None:
    left = ring.expand(SEED, 3 * 5001).reshape(3, 5001)
    exact = left.astype(object) @ left.astype(object).T
    assert ring.products(left, left).tolist() == [[wrapped(value) for value in row] for row in exact]


@given(arrays(np.int64, 4, elements=WORD), arrays(np.int64, (4, 5), elements=WORD))
def test_weighted_sums_are_exact_mod_2_to_64(weights: np.ndarray, rows: np.ndarray) -> None:
    exact = weights.astype(object) @ rows.astype(object)
    assert ring.weighted(weights, rows, 5).tolist() == [wrapped(value) for value in exact]


@given(arrays(np.int64, st.integers(0, 40), elements=WORD))
def test_sums_of_squares_are_exact(words: np.ndarray) -> None:
    assert ring.square_sum(words) == sum(int(word) ** 2 for word in words)


def test_sums_of_very_many_large_squares_are_exact() -> None:
    for value in (-(2**63), 2**63 - 1, 2**22 - 1, -1):
        assert ring.square_sum(np.full(600_001, value)) == 600_001 * value**2


def test_quadratic_forms_are_exact() -> None:
    matrix = np.array([[2**62, -1], [-1, 2**62]], dtype=object)
    assert ring.quadratic_form(np.array([2**40, 3]), matrix) == 2**142 - 6 * 2**40 + 9 * 2**62


def test_doubled_numbers_are_halved() -> None:
    assert ring.halved(np.array([2, -6, -(2**63), 2**63 - 2])).tolist() == [1, -3, -(2**62), 2**62 - 1]
    with pytest.raises(MessageError, match="odd"):
        ring.halved(np.array([2, 3]))


def test_truncation_of_shares_is_off_by_one_at_most() -> None:
    secret = np.random.default_rng(1).integers(-(2**40), 2**40, size=100_000)
    first = ring.expand(SEED, len(secret))
    halves = ring.truncated(first, 12, second=False) + ring.truncated(secret - first, 12, second=True)
    assert np.abs(halves - secret / 2**12).max() <= 1.0


@given(st.integers(1, 300), st.integers(1, 3_000_000))
def test_chunks_cover_all_columns_and_fit_a_buffer(rows: int, columns: int) -> None:
    chunks = ring.column_chunks(rows, columns)
    assert chunks[0].start == 0 and chunks[-1].stop == columns
    assert all(a.stop == b.start for a, b in pairwise(chunks))
    assert all(8 * rows * (cut.stop - cut.start) <= max(ring.CHUNK_BYTES, 8 * rows * ring.ALIGNED) for cut in chunks)
