"""What clients may try with words that wrap around, with the check on, and with it switched off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wrapped import CLIP, EQUAL, NAMES, ODD, UNEQUAL, WRAPS, D, N, at, defended, honest, mean, parties, play

from fedrobust.aggregation import Combination
from fedrobust.secure import opened as coordinator
from fedrobust.secure import opening, shares
from fedrobust.secure.opening import THRESHOLD, culprits
from fedrobust.secure.ring import FRACTION, encode, halved, signs, square_sum
from fedrobust.secure.server import PROJECTIONS, OpeningError


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", WRAPS)
@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_a_wrapped_update_is_found_and_taken_out(name: str, attack: str, weights: np.ndarray) -> None:
    rows = honest()
    WRAPS[attack](rows[2])
    others = np.arange(N) != 2
    opened = play(parties(name), rows)
    refused = not opened.finite_rows()[2]
    found = defended(opened, weights)
    if attack.endswith("2^63") and opened.culprits == ():
        others[2] = True  # times an even weight it is nothing, and what is left of it is an honest row
        rows = honest()
    else:
        assert refused or opened.culprits == (2,)
    assert np.abs(found - mean(rows[others], weights[others])).max() < 1e-7
    if opened.culprits:
        assert opened.notes == ("client 2 sent an update that wraps around",)
        assert opened.functionals == PROJECTIONS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", [name for name in WRAPS if "live" in name])
def test_half_the_ring_is_found_where_its_weight_is_odd(
    name: str, attack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "dithered", lambda weights, entropy: weights)
    rows = honest()
    WRAPS[attack](rows[2])
    opened = play(parties(name), rows)
    assert opened.finite_rows()[2]
    opened.combine(Combination(ODD))
    assert opened.culprits == (2,)


@pytest.mark.parametrize("attack", WRAPS)
def test_without_the_check_it_does_more_than_any_honest_row(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "fits", lambda *_: True)
    monkeypatch.setattr(coordinator, "largest_square", lambda d: 2**62)
    monkeypatch.setattr(coordinator, "dithered", lambda weights, entropy: weights)
    rows = honest()
    WRAPS[attack](rows[2])
    others = np.arange(N) != 2
    opened = play(parties("shares"), rows)
    found = opened.combine(Combination(ODD))
    moved = np.linalg.norm(found - ODD[others] @ rows[others] * 2.0**-FRACTION)
    assert moved > 3 * ODD[2] * CLIP


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", [EQUAL, UNEQUAL], ids=["equal", "unequal"])
def test_a_pair_that_cancels_is_found_where_it_does_not(name: str, weights: np.ndarray) -> None:
    rows = honest()
    clean = mean(rows, weights)
    at(slice(0, 5), 2**40)(rows[1])
    at(slice(0, 5), 2**64 - 2**40)(rows[4])
    others = ~np.isin(np.arange(N), [1, 4])
    opened = play(parties(name), rows)
    assert opened.finite_rows().all()  # squares and products say nothing
    found = opened.combine(Combination(weights))
    assert opened.culprits == (1, 4)  # equal weights, too: their last bits are drawn afterwards
    assert np.abs(found - mean(rows[others], weights[others])).max() < 1e-7
    assert np.linalg.norm(clean) <= CLIP


def test_a_pair_that_cancels_exactly_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "dithered", lambda weights, entropy: weights)
    rows = honest()
    clean = mean(rows, EQUAL)
    at(slice(0, 5), 2**40)(rows[1])
    at(slice(0, 5), 2**64 - 2**40)(rows[4])
    opened = play(parties("shares"), rows)
    assert np.abs(opened.combine(Combination(EQUAL)) - clean).max() < 1e-7 and opened.culprits == ()


def test_an_unequal_pair_harms_without_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "fits", lambda *_: True)
    rows = honest()
    clean = mean(rows, UNEQUAL)
    at(slice(0, 5), 2**40)(rows[1])
    at(slice(0, 5), 2**64 - 2**40)(rows[4])
    found = play(parties("shares"), rows).combine(Combination(UNEQUAL))
    assert np.linalg.norm(found - clean) > 3 * (UNEQUAL[1] + UNEQUAL[4]) * CLIP


def test_a_word_that_a_known_weight_makes_small_is_found_all_the_same() -> None:
    """2^50 times the inverse of the weight mod 2^64, among those whose square looks like nothing."""
    weight, found = 2**27 + 1, 0
    for target in range(2**50, 2**50 + 20_000):
        word = target * pow(weight, -1, 2**64) % 2**64
        if 0 <= word**2 % 2**63 <= 2**57:
            found = word
            break
    rows = honest()
    at(slice(0, 1), found)(rows[2])
    assert 2**50 <= weight * found % 2**64 < 2**51
    opened = play(parties("shares"), rows)
    assert opened.finite_rows()[2]
    weights = np.full(N, 2.0**-3)
    weights[2] = weight / 2**32
    opened.combine(Combination(weights))
    assert opened.culprits == (2,)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, D - 1), st.integers(1, 400), st.integers(20, 63), st.booleans()), max_size=4),
    st.sampled_from(["equal", "unequal"]),
)
def test_what_passes_moves_the_sum_no_more_than_a_clipped_row(
    changes: list[tuple[int, int, int, bool]], weighting: str
) -> None:
    weights = EQUAL if weighting == "equal" else UNEQUAL
    rows = honest()
    for start, width, bits, negative in changes:
        at(slice(start, start + width), (2**64 - 2**bits) % 2**64 if negative else 2**bits)(rows[2])
    others = np.arange(N) != 2
    opened = play(parties("shares"), rows)
    if not opened.finite_rows()[2]:
        return
    try:
        found = opened.combine(Combination(weights))
    except OpeningError:
        return  # the round is skipped
    kept = found - weights[others] @ rows[others] * 2.0**-FRACTION
    if opened.culprits:
        assert opened.culprits == (2,)
        assert np.abs(found - mean(rows[others], weights[others])).max() < 1e-7
    else:
        assert np.linalg.norm(kept) <= weights[2] * CLIP * (1 + 1e-5)


def test_honest_rows_are_never_blamed() -> None:
    """The length of 32 projections beside the threshold, over many rows of very different shapes."""
    draw = np.random.default_rng(3)
    shapes = [draw.normal(size=400), np.eye(1, 400)[0], draw.normal(size=400) ** 3, np.ones(400), np.zeros(400)]
    rows = np.stack([encode(shape, 1e-3) for shape in shapes])
    gram = np.array(
        [[sum(int(a) * int(b) for a, b in zip(u, v, strict=True)) for v in rows] for u in rows], dtype=object
    )
    worst = 0.0
    for trial in range(300):
        projections = rows @ signs(draw.bytes(32), slice(0, 400), PROJECTIONS).T
        assert culprits(projections, range(5), gram) == [], trial
        worst = max(worst, *(square_sum(p) / gram[k, k] for k, p in enumerate(projections[:4])))
    assert PROJECTIONS / 2 < worst < 0.8 * THRESHOLD**2


def test_a_round_is_skipped_where_too_few_would_be_left() -> None:
    rows = honest(4)
    for row in rows[:2]:
        at(slice(0, 1), 2**32)(row)
    opened = play(parties("shares"), rows)
    with pytest.raises(OpeningError, match=r"without rows 0, 1 the weights lie on 2.00 updates"):
        opened.combine(Combination(np.full(4, 0.25)))
    assert opened.culprits == (0, 1)  # and no term was opened
    assert opened.verdict is not None and opened.verdict.aggregate is None


def test_a_sum_that_nobody_explains_skips_the_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "culprits", lambda *_: [])
    rows = honest()
    at(slice(0, 1), 2**32)(rows[2])
    with pytest.raises(OpeningError, match="no row explains it"):
        play(parties("shares"), rows).combine(Combination(EQUAL))


@pytest.mark.parametrize("name", NAMES)
def test_a_history_that_cannot_be_starts_again(name: str) -> None:
    names = ("sum",)
    rows, played = honest(), parties(name, histories=names)
    at(slice(0, 1), 2**36)(rows[2])  # its square is 2^72; that of its history is 2^52
    opened = play(played, rows, 0)
    assert opened.finite_rows()[2]
    opened.remembered(names)
    opened = play(played, honest(), 1)
    assert opened.notes == ("history sum of client 2 was not possible and starts again",)
    gram = opened.gram({}, names).histories["sum"]
    assert (gram.matrix[2] == 0).all() and (gram.cross[:, 2] == 0).all() and (gram.matrix.diagonal() > 0).sum() == 7
    assert all(2 not in lines for each in played.servers for lines in each.memory()["sum"].values())


@pytest.mark.parametrize("late", [False, True])
def test_a_culprit_loses_its_history(late: bool) -> None:
    names = ("last",)
    rows, played = honest(), parties("shares", histories=names)
    at(slice(0, 1), 2**32)(rows[2])
    opened = play(played, rows, 0)
    if not late:
        opened.remembered(names)
    opened.combine(Combination(EQUAL))
    if late:
        opened.remembered(names)
    assert opened.culprits == (2,)
    for each in played.servers:
        assert [sorted(lines) for lines in each.memory()["last"].values()] == [[0, 1, 3, 4, 5, 6, 7]]


def test_a_product_hides_in_the_ring_and_not_in_the_sum() -> None:
    """Why the check is over integers: modulo 2^64 the squares of a wrapped update always add up."""
    rows = honest()
    at(slice(0, 1), 2**32)(rows[2])
    weights = np.full(N, 2**27 + 1)
    total = (weights[:, None] * rows).sum(axis=0)
    doubled = 2 * (rows.astype(object) @ rows.T.astype(object))
    gram = halved(np.array([[(int(g) + 2**63) % 2**64 - 2**63 for g in line] for line in doubled]))
    form = int(weights.astype(object) @ gram @ weights.astype(object))
    assert (square_sum(total) - form) % 2**63 == 0
    assert square_sum(total) != form
    assert shares.SHAPE.size == 16
