"""Products with known vectors, which a coordinator may ask for: they are counted, limited, and read one number each."""

from __future__ import annotations

import numpy as np
import pytest
from wrapped import CLIP, NAMES, D, N, honest, parties, play

from fedrobust.secure import server as servers
from fedrobust.secure.messages import Kind
from fedrobust.secure.opening import encode_anchor, joined
from fedrobust.secure.weights import OpeningError


@pytest.mark.parametrize("name", NAMES)
def test_functionals_are_counted_and_limited(name: str) -> None:
    played, vector = parties(name, max_functionals=2 * 3 + 3, colluders=2), np.ones(D)
    for round in range(3):
        opened = play(played, honest(), round)
        opened.gram({"momentum": vector})
        opened.gram({"momentum": vector})  # the same one again is not opened again
        assert {each.functionals for each in played.servers} == {3 * (round + 1)}
    with pytest.raises(OpeningError, match=r"9 linear functionals .* 2 more"):
        play(played, honest(), 3)
    endless = parties(name)
    for round in range(4):
        play(endless, honest(), round).gram({"momentum": vector})
    assert endless.servers[0].functionals == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_known_vector_reads_every_history_too(name: str) -> None:
    """One public vector: its product with this round's update, and with both histories of each client."""
    names = ("last", "sum")
    played = parties(name, histories=names, colluders=1)
    play(played, honest(), 0)
    assert {each.functionals for each in played.servers} == {
        9
    }  # a colluder knows three rows, each opens three products
    play(played, honest(), 1).gram({"root": np.ones(D)}, names)
    assert {each.functionals for each in played.servers} == {9 + 9 + 3}


@pytest.mark.parametrize("name", NAMES)
def test_a_count_does_not_go_back(name: str) -> None:
    played = parties(name, max_functionals=4)
    for round in range(3):
        play(played, honest(), round).gram({"momentum": np.ones(D)})
    for server in played.servers:
        server.restore(server.memory(), 0, 0)
        assert server.functionals == 3
        server.restore(server.memory(), 0, 7)
        assert server.functionals == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_public_vector_longer_than_one_would_read_several_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = honest()
    long = np.zeros(D, dtype=np.int64)
    long[[700, 701, 702]] = 1, 2**29, 2**58
    played = parties(name)
    play(played, rows)
    with pytest.raises(OpeningError, match="norm of 1"):
        played.ask("anchor_share", long)
    assert played.servers[0].functionals == 0
    for bad in (np.ones(D), np.ones(D - 1, dtype=np.int64), "words", encode_anchor(np.ones(D), CLIP)[0][None]):
        with pytest.raises(OpeningError, match="coordinates, as words"):
            played.ask("anchor_share", bad)
    monkeypatch.setattr(servers, "largest_square", lambda d: 2**200)
    found = joined(played.ask("anchor_share", long), played.run, played.round, Kind.ANCHOR, N + 1)[:N]
    for place in (700, 701):
        digit = (found + 2**28) % 2**29 - 2**28
        assert np.array_equal(digit, rows[:, place])
        found = (found - digit) >> 29
