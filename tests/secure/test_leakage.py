"""What the opened Gram matrix tells of an update, and what it does not: the facts of docs/secrecy.md."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wrapped import CLIP, EQUAL, NAMES, D, N, honest, named, parties, play

from fedrobust.aggregation import Combination
from fedrobust.secure import shared_updates as coordinator
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import run_id
from fedrobust.secure.ring import FRACTION, encode
from fedrobust.secure.weights import OpeningError

UNIT = 2.0**-FRACTION
COLLUDER = N - 1


def with_colluder(vector: np.ndarray) -> np.ndarray:
    """Honest words (N, D), the last row of which a colluder has chosen; norms ≤ 1."""
    rows = np.roll(honest(), 3, axis=1)
    rows[COLLUDER] = encode(vector, CLIP)
    return rows


# What colluders read


@pytest.mark.parametrize("name", NAMES)
def test_a_coordinate_that_a_colluder_chooses_is_read(name: str) -> None:
    rows = with_colluder(CLIP * np.eye(D)[700])
    read = play(parties(name), rows).gram().matrix[:COLLUDER, COLLUDER] / CLIP
    assert np.abs(rows[:COLLUDER, 700] * UNIT * CLIP).min() > 1e-4
    assert np.abs(read - rows[:COLLUDER, 700] * UNIT * CLIP).max() < 1e-12


def test_a_direction_that_a_colluder_chooses_is_read() -> None:
    direction = np.random.default_rng(1).standard_normal(D)
    direction *= CLIP / np.linalg.norm(direction)
    updates = np.random.default_rng(2).standard_normal((N, D)) * 0.9 / np.sqrt(D)
    updates[COLLUDER] = direction
    opened = parties("shares").play(updates, 1, CLIP)
    read, truth = opened.gram().matrix[:COLLUDER, COLLUDER] / CLIP, updates[:COLLUDER] @ direction / CLIP
    assert np.abs(read - truth).max() < 4e-8 and np.abs(truth).max() > 1e-3


@pytest.mark.parametrize("sketch", [128, 512])
def test_in_a_sketch_a_coordinate_is_read_with_an_error(sketch: int) -> None:
    """Of the size ‖u‖ / √k: the other coordinates that come together with it; the more columns, the smaller."""
    read, truth = [], []
    for round in range(40):
        rows = with_colluder(CLIP * np.eye(D)[700 + round])
        gram = play(LocalParties("shares", run_id("blurred"), D, sketch=sketch), rows).gram().matrix
        read.append(gram[:COLLUDER, COLLUDER] / CLIP)
        truth.append(rows[:COLLUDER, 700 + round] * UNIT * CLIP)
    error = np.array(read) - np.array(truth)
    assert error.std() == pytest.approx(0.9 / np.sqrt(sketch), rel=0.35)  # each update has the norm 0.9
    assert np.abs(truth).mean() < 2 * error.std()


def test_a_word_that_wraps_around_would_read_two_coordinates_and_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a word 2^32 the square is 0 in the ring, so the norm shows nothing; the products come one above the other."""
    rows = with_colluder(np.zeros(D))
    rows[COLLUDER, [700, 701]] = 1, 2**32
    opened = play(parties("shares"), rows)
    assert opened.dropped == (COLLUDER,) and opened.gram().n == COLLUDER  # no product with it is opened
    # Switched off: a coordinator that does not have it left out.
    monkeypatch.setattr(coordinator, "too_long", lambda *_: False)
    opened = play(parties("shares"), rows)
    for row, product in enumerate(opened._round.stack[:COLLUDER, COLLUDER]):
        low = (product + 2**31) % 2**32 - 2**31
        assert (low, (product - low) >> 32) == (rows[row, 700], rows[row, 701])


def test_an_inconspicuous_colluder_reads_two_small_coordinates_from_one_product() -> None:
    """Words 1 and 2^24, within the norm: what is smaller than 2^23 units comes one above the other."""
    rows = with_colluder(np.zeros(D))
    rows[:COLLUDER] //= 64  # updates of the norm C / 64
    rows[COLLUDER, [700, 701]] = 1, 2**24
    opened = play(parties("shares"), rows)
    assert not named(opened)
    for row, product in enumerate(opened._round.stack[:COLLUDER, COLLUDER]):
        low = (product + 2**23) % 2**24 - 2**23
        assert (low, (product - low) >> 24) == (rows[row, 700], rows[row, 701])


def test_a_colluders_history_reads_on_where_its_update_reads_something_else() -> None:
    played = parties("shares", histories=("last",))
    play(played, with_colluder(CLIP * np.eye(D)[700]), 0).remembered(("last",))
    rows = with_colluder(CLIP * np.eye(D)[701])
    gram = play(played, rows, 1).gram({}, ("last",))
    for products, place in ((gram.histories["last"].cross[:, COLLUDER], 700), (gram.matrix[:, COLLUDER], 701)):
        assert np.abs(products[:COLLUDER] / CLIP - rows[:COLLUDER, place] * UNIT * CLIP).max() < 1e-12


# What a coordinator reads who does not follow the protocol


@pytest.mark.parametrize("name", NAMES)
def test_two_colluders_and_weights_of_the_coordinators_choice_give_an_update(name: str) -> None:
    rows, weights = honest(), np.zeros(N)
    weights[[2, 5, 6]] = 1 / 3
    found = 3 * play(parties(name), rows).combine(Combination(weights)) - rows[[5, 6]].sum(axis=0) * UNIT
    assert np.abs(found - rows[2] * UNIT).max() < 1e-6
    with pytest.raises(OpeningError, match="at least 5 are needed"):
        play(parties(name, min_support=5.0), rows).combine(Combination(weights))


# What nobody reads


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(NAMES))
def test_without_a_known_update_the_gram_matrix_determines_no_coordinate(seed: int, name: str) -> None:
    """G(UQ) = G(U), to the last bit for the rotations that fixed point allows: any coordinate may stand anywhere."""
    draw = np.random.default_rng(seed)
    order, sign = draw.permutation(D), draw.choice([-1, 1], D)
    rows = honest()
    first, second = play(parties(name), rows), play(parties(name), rows[:, order] * sign)
    assert np.array_equal(first.gram().matrix, second.gram().matrix)
    opened = first.combine(Combination(EQUAL))
    assert np.allclose(opened[order] * sign, second.combine(Combination(EQUAL)), rtol=0, atol=1e-7)  # but for noise


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 4))
def test_what_lies_beside_all_that_is_known_is_not_determined(seed: int, colluders: int) -> None:
    """Two sets of updates with the same colluders' updates, Gram matrix and aggregate, and quite different others."""
    draw = np.random.default_rng(seed)
    updates = draw.standard_normal((N, D)) * 0.5 / np.sqrt(D)
    known = np.vstack([updates[:colluders], EQUAL @ updates])
    normal = updates[N - 1] - np.linalg.pinv(known) @ (known @ updates[N - 1])
    normal /= np.linalg.norm(normal)
    mirrored = updates - 2 * np.outer(updates @ normal, normal)
    assert np.abs(mirrored[:colluders] - updates[:colluders]).max(initial=0.0) < 1e-12
    assert np.linalg.norm(mirrored[N - 1] - updates[N - 1]) > np.linalg.norm(updates[N - 1])
    played = [parties("shares").play(rows, 1, CLIP) for rows in (updates, mirrored)]
    grams, sums = ([each.gram().matrix for each in played], [each.combine(Combination(EQUAL)) for each in played])
    assert np.abs(grams[0] - grams[1]).max() < 4e-8
    assert np.abs(sums[0] - sums[1]).max() < 2e-7 < np.abs(sums[0]).max()
