"""What a coordinator asks for that wants to read single updates: refused, and what it would get if it were not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from wrapped import CLIP, EQUAL, NAMES, UNEQUAL, VICTIM, D, N, honest, mean, opened_sum, parties, play

from fedrobust.aggregation import Combination
from fedrobust.secure import server as servers
from fedrobust.secure import weights
from fedrobust.secure.local import LocalParties
from fedrobust.secure.messages import run_id
from fedrobust.secure.ring import FRACTION, encode
from fedrobust.secure.server import NOISE_BITS, Server
from fedrobust.secure.weights import LARGEST_WEIGHT, OpeningError

UNIT = 2.0**-FRACTION


def unguarded(patch: pytest.MonkeyPatch) -> None:
    """Servers that take any weights, and add no noise."""
    patch.setattr(servers, "require_short", lambda chosen, n: chosen)
    patch.setattr(Server, "_noise", lambda self, count, label, bits: np.zeros(count, dtype=np.int64))


# Weights


@pytest.mark.parametrize("name", NAMES)
def test_long_weights_would_read_one_update_and_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest()
    chosen = np.full(N, -(2**63))
    chosen[VICTIM] = 1
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="from 0 to 4095"):
        opened_sum(played, chosen)
    unguarded(monkeypatch)
    played = parties(name)
    play(played, rows)
    found = opened_sum(played, chosen)
    assert np.array_equal(found * 2, rows[VICTIM] * 2)  # but for the sign, of every coordinate
    assert weights.support(chosen) >= N - 1  # which the support does not see


@pytest.mark.parametrize("name", NAMES)
def test_weights_one_above_the_other_would_read_two_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest()
    chosen = np.full(N, 2**62)
    chosen[VICTIM], chosen[6] = 1, 2**31
    played = parties(name, max_functionals=0)
    play(played, rows)
    with pytest.raises(OpeningError, match="longer"):
        opened_sum(played, chosen)
    unguarded(monkeypatch)
    played = parties(name, max_functionals=0)
    play(played, rows)
    found = opened_sum(played, chosen) & (2**62 - 1)
    low = (found + 2**30) % 2**31 - 2**30
    high = ((found - low) >> 31) % 2**31
    assert np.array_equal(low, rows[VICTIM])
    assert np.array_equal((high + 2**30) % 2**31 - 2**30, rows[6])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", ["negative", "floats", "too many", "a list", "4096", "nobody", "huge"])
def test_weights_that_are_none_are_refused_and_leave_the_round_as_it_was(name: str, bad: str) -> None:
    forms: dict[str, Any] = {
        "negative": np.array([-1, *[5] * (N - 1)]),
        "floats": np.full(N, 1.0),
        "too many": np.full(N + 1, 7),
        "a list": [7] * N,
        "4096": np.full(N, LARGEST_WEIGHT + 1),
        "nobody": np.zeros(N, dtype=np.int64),
        "huge": np.full(N, 2**63, dtype=np.uint64),
    }
    played = parties(name)
    play(played, honest())
    with pytest.raises(OpeningError):
        played.ask("combine_share", forms[bad])
    found = opened_sum(played, np.full(N, 100)) * (UNIT / (100 * N))
    assert np.abs(found - mean(honest(), EQUAL)).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_weights_on_one_update_are_not_opened(name: str) -> None:
    rows, alone = honest(), np.eye(N)[VICTIM]
    for chosen in (alone, 0.98 * alone + 0.02 * EQUAL):
        with pytest.raises(OpeningError, match="at least 3 are needed"):
            play(parties(name), rows).combine(Combination(chosen))
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="min_support"):  # the servers look for themselves
        played.ask("combine_share", np.rint(alone * 100).astype(np.int64))
    # Switched off, it is the update.
    found = play(parties(name, min_support=1.0), rows).combine(Combination(alone))
    assert np.abs(found - rows[VICTIM] * UNIT).max() < 1e-6


def test_what_is_left_without_the_colluders_has_the_support() -> None:
    """Σ w² ≥ (s + c) max w² leaves s max w² at least: whoever the c colluders are."""
    draw = np.random.default_rng(0)
    for _ in range(2_000):
        n, c, s = int(draw.integers(4, 12)), int(draw.integers(0, 4)), float(draw.uniform(1, 4))
        chosen = draw.integers(0, LARGEST_WEIGHT + 1, n)
        if weights.support(chosen) < s + c:
            continue
        rest = np.delete(chosen, np.argsort(chosen)[::-1][:c])
        assert weights.support(rest) >= s - 1e-9
        rest = np.delete(chosen, draw.choice(n, min(c, n - 1), replace=False))
        assert weights.support(rest) >= s - 1e-9


# The low bits of a sum


def singles(sums: np.ndarray, rows: np.ndarray, weight: int) -> int:
    """How many updates come out where two combinations are read from one word: Σ u_i and Σ δ_i u_i."""
    low = (sums + weight // 2) % weight - weight // 2
    return sum(bool(np.mean(np.abs(low - row) <= 1) > 0.9) for row in [*rows, *(2 * rows), *(-rows)])


@pytest.mark.parametrize("name", NAMES)
def test_the_low_bits_of_a_sum_show_no_second_combination(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three equal weights, of which a coordinator makes one a little larger: W Σu + u_3."""
    rows = honest(3) >> 16  # so short that one could be seen in the low bits
    for round, bump in enumerate((1, 2)):
        chosen = np.full(3, LARGEST_WEIGHT - bump)
        chosen[0] += bump
        played = parties(name)
        play(played, rows, round)
        assert singles(opened_sum(played, chosen), rows, LARGEST_WEIGHT - bump) == 0
    unguarded(monkeypatch)
    played = parties(name)
    play(played, rows)
    assert singles(opened_sum(played, chosen), rows, LARGEST_WEIGHT - 2) > 0


def test_an_update_is_hidden_among_all_that_give_the_same_sum() -> None:
    """u_0 + w_1 z and u_1 − w_0 z for any z: the sum is the same to its last bit, and z is a small change."""
    rows = honest()
    chosen, _ = weights.shortened(UNEQUAL)
    z = np.random.default_rng(2).integers(-50, 51, D)
    other = rows.copy()
    other[0] += chosen[1] * z
    other[1] -= chosen[0] * z
    sums = []
    for each in (rows, other):
        played = parties("shares")
        play(played, each)
        sums.append(opened_sum(played, chosen))
    assert np.array_equal(*sums)
    assert (rows[0] != other[0]).mean() > 0.9
    assert LARGEST_WEIGHT * UNIT < 2e-5  # one step of z, of the clip


@pytest.mark.parametrize("name", NAMES)
def test_every_server_has_its_own_noise_in_a_sum(name: str) -> None:
    rows, chosen = honest(), np.full(N, 4000)
    played = LocalParties(name, run_id("noise"), D)  # type: ignore[arg-type]
    found = []
    for round in range(3):
        play(played, rows, round)
        noise = opened_sum(played, chosen) - chosen @ rows
        assert np.abs(noise).max() <= played.count << NOISE_BITS
        expected = np.sqrt(played.count / 3) * 2**NOISE_BITS
        assert noise.std() == pytest.approx(expected, rel=0.1)
        found.append(noise)
        parts = [server._noise(D, "aggregate", NOISE_BITS) for server in played.servers]
        assert np.array_equal(sum(parts), noise)
        assert all(not np.array_equal(one, other) for i, one in enumerate(parts) for other in parts[:i])
    assert abs(np.corrcoef(found)[np.triu_indices(3, 1)]).max() < 0.1


def test_encoded_updates_are_within_what_a_server_takes() -> None:
    assert int(np.abs(encode(np.full(D, 1e9), CLIP)).max()) <= 2**FRACTION
