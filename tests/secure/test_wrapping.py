"""What clients may try with words that wrap around, with the checks on, and with them switched off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wrapped import CLIP, EQUAL, NAMES, ODD, UNEQUAL, WRAPS, D, N, at, defended, honest, mean, named, parties, play

from fedrobust.aggregation import Combination
from fedrobust.secure import shared_updates as coordinator
from fedrobust.secure.opening import DEVIATIONS, misfit
from fedrobust.secure.ring import FRACTION, derived, encode, halved, largest_square, square_sum
from fedrobust.secure.server import NOISE_BITS
from fedrobust.secure.sketch import projected, sketched, too_long
from fedrobust.secure.weights import LARGEST_WEIGHT, OpeningError, shortened

SKETCHES = [None, 128, 512]
UNIT = 2.0**-FRACTION


def switched_off(patch: pytest.MonkeyPatch, *checks: str) -> None:
    """Play without the check of lengths ("rows"), or that of the sum ("sum")."""
    if "rows" in checks:
        patch.setattr(coordinator, "too_long", lambda *_: False)
        patch.setattr(coordinator, "largest_square", lambda d: 2**62)
    if "sum" in checks:
        patch.setattr(coordinator, "misfit", lambda *_: None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("attack", WRAPS)
def test_a_wrapped_update_is_named_before_anything_is_judged(name: str, sketch: int | None, attack: str) -> None:
    rows = honest()
    WRAPS[attack](rows[2])
    opened = play(parties(name, sketch=sketch), rows)
    assert named(opened) == {2}
    for weights in (EQUAL, UNEQUAL):
        opened = play(parties(name, sketch=sketch), rows)
        others = np.arange(N) != 2
        assert np.abs(defended(opened, weights) - mean(rows[others], weights[others])).max() < 1e-7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", WRAPS)
@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL, ODD], ids=["equal", "unequal", "odd"])
def test_the_sum_alone_shows_it_too(
    name: str, attack: str, weights: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched_off(monkeypatch, "rows")
    rows = honest()
    WRAPS[attack](rows[2])
    opened = play(parties(name), rows)
    whole, _ = shortened(weights)
    if attack.endswith("2^63") and whole[2] % 2 == 0:  # times an even weight it is nothing: an honest row is left
        assert np.abs(opened.combine(Combination(weights)) - mean(honest(), weights) * weights.sum()).max() < 1e-7
        return
    with pytest.raises(OpeningError, match="wraps around"):
        opened.combine(Combination(weights))
    if opened._round.sum is not None:
        assert np.abs(opened._round.sum).max() > 0  # it was opened, and is of no use


@pytest.mark.parametrize("attack", WRAPS)
def test_without_the_checks_it_does_more_than_any_honest_row(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    switched_off(monkeypatch, "rows", "sum")
    rows = honest()
    WRAPS[attack](rows[2])
    others = np.arange(N) != 2
    found = play(parties("shares"), rows).combine(Combination(ODD))
    whole, factor = shortened(ODD)
    moved = np.linalg.norm(found - whole[others] @ rows[others] * (factor * UNIT))
    assert moved > 3 * ODD[2] * CLIP


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sketch", SKETCHES)
def test_a_pair_that_cancels_is_named(name: str, sketch: int | None) -> None:
    rows = honest()
    at(slice(0, 5), 2**40)(rows[1])
    at(slice(0, 5), 2**64 - 2**40)(rows[4])
    opened = play(parties(name, sketch=sketch), rows)
    assert named(opened) == {1, 4}


def test_a_pair_that_cancels_exactly_does_no_harm_to_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    switched_off(monkeypatch, "rows")
    for weights in (EQUAL, UNEQUAL):
        rows = honest()
        clean = mean(rows, weights)
        at(slice(0, 5), 2**40)(rows[1])
        at(slice(0, 5), 2**64 - 2**40)(rows[4])
        opened = play(parties("shares"), rows)
        assert opened.finite_rows().all()  # squares and products say nothing
        if weights is EQUAL:
            assert np.abs(opened.combine(Combination(weights)) - clean).max() < 1e-7
            continue
        with pytest.raises(OpeningError, match="wraps around"):
            opened.combine(Combination(weights))


def test_a_word_that_a_known_weight_makes_small_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^50 times the inverse of the weight mod 2^64, among those whose square looks like nothing."""
    weight, found = LARGEST_WEIGHT, 0
    for target in range(2**50, 2**50 + 200_000):
        word = target * pow(weight, -1, 2**64) % 2**64
        if 0 <= word**2 % 2**63 <= 2**52:
            found = word
            break
    assert found and 2**50 <= weight * found % 2**64 < 2**51
    rows = honest()
    at(slice(0, 1), found)(rows[2])
    assert named(play(parties("shares"), rows)) == {2}
    switched_off(monkeypatch, "rows")
    with pytest.raises(OpeningError, match="wraps around"):
        play(parties("shares"), rows).combine(Combination(EQUAL))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, D - 1), st.integers(1, 400), st.integers(20, 63), st.booleans()), max_size=4),
    st.sampled_from(["equal", "unequal"]),
    st.sampled_from(SKETCHES),
)
def test_what_passes_moves_the_sum_no_more_than_a_clipped_row(
    changes: list[tuple[int, int, int, bool]], weighting: str, sketch: int | None
) -> None:
    weights = EQUAL if weighting == "equal" else UNEQUAL
    rows = honest()
    for start, width, bits, negative in changes:
        at(slice(start, start + width), (2**64 - 2**bits) % 2**64 if negative else 2**bits)(rows[2])
    others = np.arange(N) != 2
    opened = play(parties("shares", sketch=sketch), rows)
    assert named(opened) <= {2}
    if named(opened):
        return
    try:
        found = opened.combine(Combination(weights))
    except OpeningError:
        return  # the round is skipped
    whole, factor = shortened(weights)
    kept = found - whole[others] @ rows[others] * (factor * UNIT)
    # A sketch shows lengths within some per cent; a few coordinates may also cancel in it.
    allowed = 1 + 1e-5 if sketch is None else 2.5
    assert np.linalg.norm(kept) <= weights[2] * CLIP * allowed + 1e-5


@pytest.mark.parametrize("sketch", [256, 512])
def test_what_cancels_in_the_sketch_does_not_in_the_one_beside_it(sketch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two coordinates that come together in it: a client would have to guess them, here the servers' secret tells."""
    played = parties("shares", sketch=sketch)
    seed = derived(played.servers[0].links.sketch, "1/sketch")
    matrix = sketched(lambda part: np.eye(D, dtype=np.int64)[:, part], D, D, sketch, seed, twice=True)
    first, second = matrix[:, :sketch], matrix[:, sketch:]
    together = np.flatnonzero(np.abs(first[1:]) @ np.abs(first[0])) + 1
    other = int(together[0])

    def pair(length: int) -> np.ndarray:
        rows = honest()
        for place in (0, other):
            word = length * int(first[place].sum()) * (1 if place == 0 else -1)
            at(slice(place, place + 1), word % 2**64)(rows[2])
        return rows

    # The second sketch tells them apart: without it, the sum alone would say something.
    assert np.abs(second[[0, other]]).sum(axis=0).max() == 1
    assert named(play(parties("shares", sketch=sketch), pair(2**50))) == {2}
    monkeypatch.setattr(coordinator, "too_long", lambda *_: False)
    opened = play(played, pair(2**50))
    assert opened.finite_rows().all()
    with pytest.raises(OpeningError, match="longer"):
        opened.combine(Combination(EQUAL))


def test_a_row_of_which_the_sketch_shows_nothing_is_caught_by_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    for sketch in (None, 256, 512):
        with monkeypatch.context() as patch:
            switched_off(patch, "rows")
            rows = honest()
            at(slice(0, 1), 2**50)(rows[2])
            with pytest.raises(OpeningError, match="wraps around"):
                play(parties("shares", sketch=sketch), rows).combine(Combination(EQUAL))


def test_honest_rows_are_never_blamed() -> None:
    """The length of their projections beside the bound, over many rows of very different shapes at the full norm."""
    draw = np.random.default_rng(3)
    d, servers = 4_000, 3
    shapes = [draw.normal(size=d), np.eye(1, d)[0], draw.normal(size=d) ** 3, np.ones(d), np.zeros(d)]
    rows, limit = np.stack([encode(shape, 1e-3) for shape in shapes]), largest_square(d)
    for k in (128, 512):
        worst = 0.0
        for _ in range(100):
            short = sketched(lambda part: rows[:, part].copy(), len(rows), d, k, draw.bytes(32), twice=True)
            found = projected(short, draw.bytes(32))
            noise = draw.integers(-(2**27), 2**27, size=(servers, *found.shape)).sum(axis=0)
            assert not any(too_long(row, limit, servers, k) for row in found + noise)
            worst = max(worst, float(np.linalg.norm(found.astype(float), axis=1).max()))
        assert 7 * 2**28 < worst < np.sqrt(192) * 2**28 * 1.3


def test_the_noise_never_makes_an_honest_sum_a_fault() -> None:
    """And by how much: of the standard deviations that are allowed, an honest round uses a few."""
    draw = np.random.default_rng(5)
    for norm in (0.9, 1e-2, 1e-4):
        rows = np.stack([encode(norm * row / np.linalg.norm(row), CLIP) for row in draw.normal(size=(12, D)) + 0.2])
        exact = rows.astype(object) @ rows.astype(object).T
        weights = shortened(draw.uniform(0.1, 1, size=12))[0]
        aggregate = weights @ rows
        for _ in range(50):
            noise = draw.integers(-(2**NOISE_BITS), 2**NOISE_BITS, size=(2, D)).sum(axis=0)
            assert misfit(aggregate + noise, weights, exact, 2, None) is None
        size = float(np.sqrt(float(weights.astype(object) @ exact @ weights.astype(object))))
        worst = 2 * DEVIATIONS * np.sqrt(2) * 2**NOISE_BITS * size
        turned = aggregate + np.rint(aggregate * (1.5 * worst / size**2)).astype(np.int64)
        if norm > 1e-3:
            assert misfit(turned, weights, exact, 2, None) is not None


def test_the_check_is_one_of_integers() -> None:
    rows = np.array([[2**28, 5], [3, -(2**28)]])
    gram, weights = rows.astype(object) @ rows.T.astype(object), np.array([4095, 2000])
    total = weights @ rows
    assert misfit(total, weights, gram, 2, None) is None
    assert misfit(total, weights, gram + np.array([[2**63, 0], [0, 0]], dtype=object), 2, None) is not None
    assert misfit(total, np.array([1, 1]), gram, 2, None) is not None


def test_a_sum_longer_than_its_terms_does_not_fit() -> None:
    """Products that no vectors have could make room for it: ⟨u_0, u_1⟩ = 2^58 beside squares of 2^56."""
    gram = np.array([[2**56, 2**58], [2**58, 2**56]], dtype=object)
    weights = np.array([4000, 4000])
    total = 4000 * np.array([2**29, 2**29, 2**28, 2**28])  # ‖a‖² = 4000² 10 · 2^56 = wᵀGw, ‖a‖ at most 4000 · 2^29
    assert "longer" in str(misfit(total, weights, gram, 2, None))
    negative = np.array([[2**56, -(2**58)], [-(2**58), 2**56]], dtype=object)
    assert "no vectors" in str(misfit(total, weights, negative, 2, None))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sketch", [None, 256])
def test_a_history_that_cannot_be_starts_again(name: str, sketch: int | None) -> None:
    """As after a truncation that failed: nobody is blamed for it."""
    names, played = ("sum",), parties(name, histories=("sum",), sketch=sketch)
    play(played, honest(), 0).remembered(names)
    for server in played.servers:
        line = server.stack.past["sum"].get(1, {}).get(4)
        if line is not None:
            server.stack.past["sum"][1][4] = line + np.eye(1, D, 3, dtype=np.int64)[0] * 2**52
    opened = play(played, honest(), 1)
    assert opened.notes == ("history sum of client 4 was not possible and starts again",) and not named(opened)
    gram = opened.gram({}, names).histories["sum"]
    assert (gram.matrix[4] == 0).all() and (gram.cross[:, 4] == 0).all() and (gram.matrix.diagonal() > 0).sum() == 7
    assert all(4 not in lines for each in played.servers for lines in each.memory()["sum"].values())


def test_who_wraps_around_has_no_history() -> None:
    rows, played = honest(), parties("shares", histories=("last",))
    at(slice(0, 1), 2**32)(rows[2])
    opened = play(played, rows, 0)
    opened.remembered(("last",))
    for each in played.servers:
        assert [sorted(lines) for lines in each.memory()["last"].values()] == [[0, 1, 3, 4, 5, 6, 7]]


def test_a_product_hides_in_the_ring_and_not_in_the_sum() -> None:
    """Why the check is over integers: modulo 2^64 the squares of a wrapped update always add up."""
    rows = honest()
    at(slice(0, 1), 2**32)(rows[2])
    weights = np.full(N, LARGEST_WEIGHT)
    total = (weights[:, None] * rows).sum(axis=0)
    doubled = 2 * (rows.astype(object) @ rows.T.astype(object))
    gram = halved(np.array([[(int(g) + 2**63) % 2**64 - 2**63 for g in line] for line in doubled]))
    form = int(weights.astype(object) @ gram @ weights.astype(object))
    assert (square_sum(total) - form) % 2**63 == 0
    assert square_sum(total) != form
    assert misfit(total, weights, gram, 2, None) is not None
