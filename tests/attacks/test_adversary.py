"""Who attacks, when, and what they are shown."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from refused import refused

from fedrobust.attacks import (
    Absent,
    Alie,
    Always,
    Attack,
    Attackers,
    CraftedAttack,
    Gaussian,
    Ipm,
    LabelFlip,
    NonFinite,
    OnOff,
    OptimalIpm,
    PatchBackdoor,
    Preview,
    Search,
    SignFlip,
    SingleShot,
    Sleeper,
    Sybil,
    View,
    craft,
    draw_attackers,
)
from fedrobust.experiment import Experiment
from fedrobust.options import OneOf

ANY = TypeAdapter(Annotated[Attack, OneOf(Attack)])
KINDS = (SignFlip, Gaussian, Alie, Ipm, NonFinite, LabelFlip, PatchBackdoor)


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [
        (Always(), [1, 2, 3, 4, 5, 6, 7, 8]),
        (Sleeper(rounds=3), [4, 5, 6, 7, 8]),
        (OnOff(), [1, 3, 5, 7]),
        (OnOff(on=2, off=3), [1, 2, 6, 7]),
        (OnOff(on=1, off=2, start=3), [3, 6]),
        (SingleShot(round=5), [5]),
    ],
)
def test_schedules(schedule: Any, rounds: list[int]) -> None:
    assert [round for round in range(1, 9) if schedule.active(round)] == rounds


def test_an_attack_is_read_from_a_file_and_back() -> None:
    text = {"name": "alie", "clients": [1, 4], "z": 1.5, "schedule": {"name": "on_off", "on": 2, "off": 1}}
    attack = ANY.validate_python(text)
    assert attack == Alie(clients=(1, 4), z=1.5, schedule=OnOff(on=2, off=1))
    assert ANY.validate_python(attack.model_dump(mode="json", serialize_as_any=True)) == attack
    assert ANY.validate_python({"name": "ipm", "count": 1, "schedule": "always"}).schedule == Always()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, {"path": "ipm", "found": "none"}),
        ({"count": 1, "fraction": 0.2}, {"path": "ipm", "found": "fraction and count"}),
        ({"clients": [1, 1]}, {"path": "ipm.clients", "found": "[1, 1]"}),
        ({"clients": []}, {"path": "ipm.clients", "found": "[]"}),
        ({"clients": [-1]}, {"path": "ipm.clients.0", "found": "-1"}),
        ({"fraction": 1.0}, {"path": "ipm.fraction", "found": "1.0"}),
        ({"count": 1, "knowledge": "everything"}, {"path": "ipm.knowledge", "found": "'everything'"}),
        ({"count": 1, "knowledge": "aware"}, {"path": "ipm.knowledge", "found": "'aware'"}),
        ({"count": 1, "identity": "two_each"}, {"path": "ipm.identity.name", "allowed": ("one_each", "whitewash", "sybil")}),  # noqa: E501
        ({"count": 1, "noise": -1.0}, {"path": "ipm.noise", "found": "-1.0"}),
        ({"count": 1, "schedule": "sometimes"}, {"path": "ipm.schedule.name", "allows": "sleeper"}),
    ],
)  # fmt: skip
def test_refused_options(options: dict[str, Any], problem: dict[str, Any]) -> None:
    with refused(ValidationError, **problem):
        ANY.validate_python({"name": "ipm", **options})


@pytest.mark.parametrize("kind", [Absent, Gaussian, NonFinite, LabelFlip, PatchBackdoor])
def test_attacks_that_need_to_see_nothing_refuse_the_knowledge_all(kind: type[Attack]) -> None:
    with refused(ValidationError, path="knowledge", found="'all'"):
        kind.model_validate({"name": kind.model_fields["name"].default, "count": 1, "knowledge": "all"})


@pytest.mark.parametrize(
    ("fraction", "clients", "expected"),
    [(0.2, 10, 2), (0.25, 10, 3), (0.24, 10, 2), (0.35, 10, 4), (0.29, 50, 15), (0.0, 10, 0), (0.4, 20, 8)],
)
def test_a_fraction_is_rounded_to_the_nearest_number_a_half_upwards(
    fraction: float, clients: int, expected: int
) -> None:
    assert len(draw_attackers([SignFlip(fraction=fraction)], clients, 0)) == expected


@given(
    sizes=st.lists(st.integers(0, 4), max_size=4),
    explicit=st.sets(st.integers(0, 19), min_size=1, max_size=3),
    seed=st.integers(0, 2**32),
)
def test_several_attacks_share_no_hospital(sizes: list[int], explicit: set[int], seed: int) -> None:
    attacks = [*(SignFlip(count=size) for size in sizes), Ipm(clients=tuple(sorted(explicit)))]
    drawn = draw_attackers(attacks, 20, seed)
    assert Counter(drawn.values()) == Counter({i: s for i, s in enumerate([*sizes, len(explicit)]) if s})
    assert {client for client, index in drawn.items() if index == len(sizes)} == explicit
    assert list(drawn) == sorted(drawn) and set(drawn) <= set(range(20))


def test_the_hospitals_are_the_same_whatever_the_attack_and_grow_with_the_fraction() -> None:
    drawn = {kind: draw_attackers([kind(fraction=0.2)], 20, 7) for kind in KINDS}
    assert all(one == drawn[SignFlip] for one in drawn.values())
    assert set(drawn[SignFlip]) == set(draw_attackers([Alie(count=4, knowledge="own")], 20, 7))
    assert set(drawn[SignFlip]) < set(draw_attackers([Gaussian(fraction=0.4)], 20, 7))


def test_the_largest_and_the_smallest_hospitals_are_drawn_by_id():
    pair = [SignFlip(count=2, chosen="largest"), Gaussian(fraction=0.3, chosen="smallest"), Alie(clients=[19])]
    drawn = draw_attackers(pair, 20, 7)
    assert drawn == {0: 0, 1: 0, 13: 1, 14: 1, 15: 1, 16: 1, 17: 1, 18: 1, 19: 2}
    with refused(says="1000000000"):
        SignFlip(count=1, claim=1e300)  # a count that is no integer of 64 bits
    with refused(says="sizes"):
        Experiment(attacks=[SignFlip(count=2, chosen="largest")])
    Experiment(data={"partition": {"name": "dirichlet", "ratio": 10}}, attacks=[SignFlip(count=2, chosen="largest")])


def test_every_hospital_is_drawn_equally_often() -> None:
    draws = Counter(client for seed in range(2000) for client in draw_attackers([SignFlip(count=3)], 10, seed))
    counts = np.array([draws[client] for client in range(10)])
    # 600 expected each; five standard deviations of a binomial(2000, 0.3) are 102.
    assert np.abs(counts - 600).max() < 102
    assert len({tuple(draw_attackers([SignFlip(count=3)], 10, seed)) for seed in range(50)}) > 30


@pytest.mark.parametrize(
    ("attacks", "problem"),
    [
        ([SignFlip(count=10)], {"path": "attacks", "says": "10 malicious"}),
        ([SignFlip(fraction=0.5), Ipm(count=5)], {"path": "attacks", "says": "10 malicious"}),
        ([SignFlip(clients=(3, 10))], {"path": "attacks.0.clients", "found": "10", "allowed": ("0 to 9",)}),
        ([SignFlip(clients=(3,)), Ipm(clients=(4, 3))], {"path": "attacks.1.clients", "found": "3"}),
        ([SignFlip(fraction=0.04)], {"path": "attacks.0.fraction", "found": "0.04", "says": "10"}),
        ([Alie(fraction=0.1, knowledge="own")], {"path": "attacks.0", "says": "alie"}),
    ],
)
def test_impossible_draws_are_refused(attacks: list[Attack], problem: dict[str, Any]) -> None:
    with refused(**problem):
        draw_attackers(attacks, 10, 0)


def test_no_attack_no_attackers() -> None:
    assert draw_attackers([], 1, 0) == {}
    assert draw_attackers([Alie(fraction=0.0, knowledge="own")], 5, 0) == {}


def test_only_participants_with_an_active_schedule_attack() -> None:
    attacks = [LabelFlip(clients=(1, 2)), SignFlip(clients=(4, 5), schedule=Sleeper(rounds=2))]
    attackers = Attackers.draw(attacks, 8, 0)
    assert attackers.active([5, 2, 0, 7], 1) == [2]
    assert attackers.active([5, 2, 0, 7], 3) == [2, 5]
    assert [attackers.crafting([5, 2, 0, 7], round) for round in (1, 3)] == [[], [5]]
    assert attackers.names == {1: "label_flip", 2: "label_flip", 4: "sign_flip", 5: "sign_flip"}
    assert attackers.attack(5) is attacks[1] and attackers.attack(0) is None
    assert attackers.accomplices(2) == [1, 2]


class Recorder(CraftedAttack):
    """An attack that keeps what it is shown."""

    name: Literal["recorder"] = "recorder"
    seen: ClassVar[dict[str, View]] = {}

    def craft(self, view: View) -> np.ndarray:
        self.seen[self.knowledge] = view
        return np.zeros((view.f, len(view.own[0])), dtype=np.float32)


class Defence:
    """A preview that says whom it was made for."""

    def __init__(self, group: list[int]) -> None:
        self.group = group

    def lines(self, extra: Any) -> Search:
        raise AssertionError("nobody is to ask it here")


def updates(clients: int, d: int = 5, seed: int = 0) -> dict[int, np.ndarray]:
    rows = np.random.default_rng(seed).normal(size=(clients, d)).astype(np.float32)
    rows.flags.writeable = False
    return dict(enumerate(rows))


def test_what_an_attack_is_shown() -> None:
    own, everything = Recorder(clients=(6, 2)), Recorder(clients=(1,), knowledge="all")
    attacks = [own, everything, LabelFlip(clients=(4,))]
    rows = updates(8)
    crafted = craft(Attackers.draw(attacks, 8, 0), [0, 1, 2, 4, 6, 7], rows, round=3, seed=0)
    assert list(crafted) == [1, 2, 6]  # the data attacker trained its lie and sends it as it is
    view = Recorder.seen["own"]
    assert view.others is None and view.n == 6 and view.f == 2 and view.round == 3
    np.testing.assert_array_equal(np.stack(view.own), [rows[2], rows[6]])
    np.testing.assert_array_equal(np.stack(view.reference), [rows[2], rows[6]])
    view = Recorder.seen["all"]
    assert view.others is not None
    # Every other participant as it was trained: attackers of other groups too, nobody who is absent.
    np.testing.assert_array_equal(np.stack(view.others), [rows[client] for client in (0, 2, 4, 6, 7)])
    with pytest.raises(ValueError, match="read-only"):
        view.others[0][0] = 0


def test_knowledge_is_enforced() -> None:
    attacks = [Recorder(clients=(1, 6)), Recorder(clients=(2,), knowledge="all")]
    attacks.append(Recorder(clients=(3, 5), knowledge="aware"))
    step = np.arange(5, dtype=np.float32)
    made: list[Defence] = []

    def preview(group: list[int]) -> Preview:
        made.append(Defence(group))
        return made[-1]

    rows = updates(8)
    craft(Attackers.draw(attacks, 8, 0), range(8), rows, 2, 0, step, preview)
    own, everything, aware = (Recorder.seen[knowledge] for knowledge in ("own", "all", "aware"))
    assert own.others is None and own.clients is None and own.preview is None
    assert everything.others is not None and everything.clients == [0, 1, 3, 4, 5, 6, 7] and everything.preview is None
    assert aware.others is not None and aware.clients == [0, 1, 2, 4, 6, 7] and aware.preview is made[0]
    np.testing.assert_array_equal(np.stack(aware.others), [rows[client] for client in aware.clients])
    assert [each.group for each in made] == [[3, 5]]
    for view in (own, everything, aware):
        assert view.step is not None
        np.testing.assert_array_equal(view.step, step)  # the model is public
        with pytest.raises(ValueError, match="read-only"):
            view.step[0] = 1


def test_the_defence_is_not_previewed_for_those_who_may_not_know_it() -> None:
    def refuse(group: list[int]) -> Preview:
        raise AssertionError

    attacks = [Recorder(clients=(1,)), Ipm(clients=(2,)), Recorder(clients=(3,), knowledge="aware", schedule=Sleeper())]
    assert list(craft(Attackers(attacks, 5, {1: 0, 2: 1, 3: 2}), range(5), updates(5), 1, 0, None, refuse)) == [1, 2]


def test_an_aware_attack_without_a_preview_is_an_error() -> None:
    with refused(path="attacks.0", says="optimal_ipm"):
        craft(Attackers([OptimalIpm(clients=(1,))], 4, {1: 0}), range(4), updates(4), 1, 0)


def test_absent_hospitals_send_nothing_while_they_are_active() -> None:
    attacks = [Absent(clients=(1, 4), schedule=OnOff()), SignFlip(clients=(2,)), Absent(clients=(5,))]
    attackers = Attackers.draw(attacks, 8, 0)
    assert [attackers.absent(round) for round in (1, 2)] == [{1, 4, 5}, {5}]
    assert [attack.crafts for attack in attacks] == [False, True, False]


def test_sybils_send_what_the_first_of_them_would_send() -> None:
    attacks = [LabelFlip(clients=(5, 2, 3), identity=Sybil()), SignFlip(clients=(1, 7), identity=Sybil())]
    attackers, rows = Attackers.draw(attacks, 8, 0), updates(8)
    assert all(attack.crafts for attack in attacks) and not LabelFlip(count=1).crafts
    sent = craft(attackers, [0, 1, 3, 4, 5, 7], rows, 1, 0)
    assert list(sent) == [1, 3, 5, 7]  # hospital 2 is not there
    for client, expected in {1: -rows[1], 7: -rows[1], 3: rows[3], 5: rows[3]}.items():
        np.testing.assert_array_equal(sent[client], expected)
    needed = {client: rows[client] for client in (1, 3, 5, 7)}
    assert list(craft(attackers, [0, 1, 3, 4, 5, 7], needed, 1, 0)) == [1, 3, 5, 7]


def test_sybils_may_add_noise_of_their_own() -> None:
    attacks, rows = [LabelFlip(clients=(1, 2, 4), identity=Sybil(noise=0.2))], updates(6, d=20_000)
    sent = craft(Attackers(attacks, 6, {1: 0, 2: 0, 4: 0}), range(6), rows, 1, 0)
    added = np.stack(list(sent.values())) - rows[1]
    np.testing.assert_allclose(np.linalg.norm(added, axis=1) / np.linalg.norm(rows[1]), 0.2, rtol=0.02)
    assert np.abs(np.corrcoef(added) - np.eye(3)).max() < 0.05
    again, other = (craft(Attackers(attacks, 6, {1: 0, 2: 0, 4: 0}), range(6), rows, round, 0) for round in (1, 2))
    np.testing.assert_array_equal(sent[4], again[4])
    assert not np.array_equal(sent[4], other[4])


def test_sybils_are_honest_and_apart_while_their_attack_is_off() -> None:
    attacks = [LabelFlip(clients=(1, 2), identity=Sybil(), schedule=SingleShot(round=2))]
    assert craft(Attackers(attacks, 4, {1: 0, 2: 0}), range(4), updates(4), 1, 0) == {}


def test_own_knowledge_needs_no_rows_of_others() -> None:
    attacks = [SignFlip(clients=(1,))]
    crafted = craft(Attackers(attacks, 4, {1: 0}), range(4), {1: np.ones(3, dtype=np.float32)}, round=1, seed=0)
    np.testing.assert_array_equal(crafted[1], [-1, -1, -1])


@pytest.mark.parametrize(
    "attack", [kind(clients=(1, 3), knowledge="own") for kind in (SignFlip, Gaussian, Alie, Ipm, NonFinite)]
)
def test_an_own_attack_does_not_depend_on_others_rows(attack: Attack) -> None:
    first, second = updates(6, seed=1), updates(6, seed=2)
    second.update({client: first[client] for client in (1, 3)})
    drawn = Attackers.draw([attack], 6, 0)
    results = [craft(drawn, range(6), rows, round=2, seed=5) for rows in (first, second)]
    for client in (1, 3):
        np.testing.assert_array_equal(results[0][client], results[1][client])


@pytest.mark.parametrize("kind", [SignFlip, Alie, Ipm])
def test_an_all_attack_depends_on_others_rows(kind: type[CraftedAttack]) -> None:
    attack = kind(clients=(1, 3), knowledge="all")
    rows = updates(6)
    shifted = {client: row + np.float32(client not in (1, 3)) for client, row in rows.items()}
    first, second = (
        craft(Attackers([attack], 6, {1: 0, 3: 0}), range(6), given, round=1, seed=0) for given in (rows, shifted)
    )
    assert not np.array_equal(first[1], second[1])


def test_hospitals_whose_schedule_is_off_are_honest() -> None:
    attacks = [SignFlip(clients=(0,), schedule=SingleShot(round=2))]
    assert [list(craft(Attackers(attacks, 3, {0: 0}), range(3), updates(3), round, seed=0)) for round in (1, 2, 3)] == [
        [],
        [0],
        [],
    ]


def test_crafting_is_deterministic_and_differs_between_rounds_seeds_and_attacks() -> None:
    attacks = [Gaussian(clients=(0, 1)), Gaussian(clients=(2,))]
    drawn = Attackers.draw(attacks, 5, 0)

    def rows(round: int, seed: int) -> np.ndarray:
        return np.stack(list(craft(drawn, range(5), updates(5, d=40), round, seed).values()))

    np.testing.assert_array_equal(rows(1, 0), rows(1, 0))
    every = np.concatenate([rows(1, 0), rows(2, 0), rows(1, 1)])
    assert len({row.tobytes() for row in every}) == len(every)


class Wrong(CraftedAttack):
    """A user's attack that returns a row instead of rows."""

    name: Literal["wrong"] = "wrong"

    def craft(self, view: View) -> np.ndarray:
        return np.asarray(view.own)[0]


def test_rows_of_a_wrong_shape_are_refused() -> None:
    with refused(path="attacks.0", found="float32 (5,)", says="(2, 5)"):
        craft(Attackers([Wrong(clients=(0, 1))], 3, {0: 0, 1: 0}), range(3), updates(3), round=1, seed=0)
