"""Under which ids malicious hospitals appear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrobust.attacks import (
    Attack,
    Attackers,
    LabelFlip,
    OneEach,
    SignFlip,
    Sybil,
    Whitewash,
)


def test_everybody_is_itself_by_default() -> None:
    attacks = [SignFlip(clients=(1, 2)), LabelFlip(clients=(3,), identity=Sybil())]
    assert SignFlip(count=1).identity == OneEach()
    attackers = Attackers.draw(attacks, 8, 0)
    assert attackers.ids(100) == 8
    assert attackers.new_ids(50) == {}


def test_whitewashers_come_back_under_new_ids() -> None:
    attacks = [SignFlip(clients=(6, 2)), LabelFlip(clients=(7, 3), identity=Whitewash(every=2))]
    attackers = Attackers.draw(attacks, 10, 0)
    found = [attackers.new_ids(round) for round in range(1, 7)]
    assert found == [{}, {}, {3: 10, 7: 11}, {3: 10, 7: 11}, {3: 12, 7: 13}, {3: 12, 7: 13}]
    assert [attackers.ids(rounds) for rounds in (1, 2, 3, 4, 5, 6)] == [10, 10, 12, 12, 14, 14]


def test_attacks_of_different_intervals_share_no_id() -> None:
    attacks = [
        SignFlip(clients=(4,), identity=Whitewash(every=3)),
        SignFlip(clients=(0, 9), identity=Whitewash(every=2)),
    ]
    attackers = Attackers.draw(attacks, 10, 0)
    # Ranks: 0, 4, 9. At round 5 hospital 4 is in its second epoch, the others are in their third.
    assert attackers.new_ids(5) == {0: 13, 4: 11, 9: 15}
    assert attackers.ids(5) == 16


@pytest.mark.parametrize("rounds", [1, 7, 20])
@given(
    groups=st.lists(st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(1, 6))), max_size=4),
    seed=st.integers(0, 99),
)
def test_no_two_hospitals_ever_share_an_id(rounds: int, groups: list[tuple[int, int | None]], seed: int) -> None:
    attacks: list[Attack] = [
        SignFlip(count=count, identity=OneEach() if every is None else Whitewash(every=every))
        for count, every in groups
    ]
    clients = 14
    attackers = Attackers.draw(attacks, clients, seed)
    total = attackers.ids(rounds)
    owners: dict[int, int] = {client: client for client in range(clients)}
    for round in range(1, rounds + 1):
        for hospital, new in attackers.new_ids(round).items():
            identity = attacks[attackers.drawn[hospital]].identity
            assert isinstance(identity, Whitewash) and round > identity.every
            assert clients <= new < total
            assert owners.setdefault(new, hospital) == hospital
    assert len(set(owners)) <= total


def test_a_hospital_keeps_each_id_for_the_same_number_of_rounds() -> None:
    attacks = [SignFlip(clients=(1,), identity=Whitewash(every=4))]
    ids = [Attackers(attacks, 5, {1: 0}).new_ids(round).get(1, 1) for round in range(1, 13)]
    assert ids == [1] * 4 + [5] * 4 + [6] * 4
