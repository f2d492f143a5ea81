"""What a curious coordinator may ask for, with the servers' refusal, and with it switched off."""

from __future__ import annotations

import numpy as np
import pytest
from wrapped import EQUAL, NAMES, UNEQUAL, D, N, at, honest, parties, play

from fedrobust.aggregation import Combination
from fedrobust.secure.messages import unpack
from fedrobust.secure.ring import FRACTION
from fedrobust.secure.server import OpeningError, Server


@pytest.mark.parametrize("name", NAMES)
def test_weights_on_one_update_are_not_opened(name: str) -> None:
    rows, alone = honest(), np.eye(N)[3]
    for weights in (alone, 0.98 * alone + 0.02 * EQUAL):
        with pytest.raises(OpeningError, match=r"min_support is 3.*multi_krum"):
            play(parties(name), rows).combine(Combination(weights))
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="min_support"):  # the servers look for themselves
        played.ask("combine_share", np.rint(alone * 2**30).astype(np.int64))
    # Switched off, it is the update.
    found = play(parties(name, min_support=1.0), rows).combine(Combination(alone))
    assert np.abs(found - rows[3] * 2.0**-FRACTION).max() < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_second_sum_would_be_the_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, first = honest(), np.full(N, 2**20)
    second = first.copy()
    second[5] += 1
    played = parties(name)
    play(played, rows)
    played.ask("combine_share", first)
    with pytest.raises(OpeningError, match="aggregate is done"):
        played.ask("combine_share", second)
    # Switched off, the two differ by a single update.
    monkeypatch.setattr(Server, "_once", lambda self, step: self._done.add(step))
    monkeypatch.setattr(Server, "_before", lambda self, step: None)
    played = parties(name)
    play(played, rows)
    sums = []
    for weights in (first, second):
        bodies = [unpack(data).body for data in played.ask("combine_share", weights)]
        sums.append(sum(np.frombuffer(body, dtype=np.int64) for body in bodies))
    assert np.array_equal(sums[1] - sums[0], rows[5])


def test_the_coordinator_object_opens_one_sum_too() -> None:
    opened = play(parties("shares"), honest())
    opened.combine(Combination(EQUAL))
    with pytest.raises(OpeningError, match="second"):
        opened.combine(Combination(UNEQUAL))


def test_single_terms_cannot_be_opened_until_one_is_left() -> None:
    played = parties("shares")
    play(played, honest(5))
    played.ask("combine_share", np.full(5, 2**27))
    with pytest.raises(OpeningError, match="projection must come first"):
        played.ask("term_share", 0)
    played.ask("projection_share", bytes(32))
    with pytest.raises(OpeningError, match="projection is done"):
        played.ask("projection_share", bytes(32))
    for row in (0, 1):
        played.ask("term_share", row)
    with pytest.raises(OpeningError, match=r"2\.00 updates"):
        played.ask("term_share", 2)


@pytest.mark.parametrize("name", NAMES)
def test_functionals_are_counted_and_limited(name: str) -> None:
    played, vector = parties(name, max_functionals=2 * 3 + 3, colluders=2), np.ones(D)
    for round in range(3):
        opened = play(played, honest(), round)
        opened.gram({"momentum": vector})
        opened.gram({"momentum": vector})  # the same one again is not opened again
        assert opened.functionals == 1
        assert {each.functionals for each in played.servers} == {3 * (round + 1)}
    with pytest.raises(OpeningError, match="9 linear functionals of the updates were opened, 2 more"):
        play(played, honest(), 3)
    endless = parties(name)
    for round in range(4):
        play(endless, honest(), round).gram({"momentum": vector})
    assert endless.servers[0].functionals == 4


def test_projections_count_as_functionals() -> None:
    rows = honest()
    at(slice(0, 1), 2**32)(rows[2])
    with pytest.raises(OpeningError, match="32 more would pass max_functionals = 31"):
        play(parties("shares", max_functionals=31), rows).combine(Combination(EQUAL))
    played = parties("shares", max_functionals=32)
    play(played, rows).combine(Combination(EQUAL))
    assert played.servers[0].functionals == 32
