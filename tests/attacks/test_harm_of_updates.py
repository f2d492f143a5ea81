"""Every crafted attack does harm to a federation that averages whatever is sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fedrobust.aggregation import Mean
from fedrobust.attacks import (
    Alie,
    Attack,
    CraftedAttack,
    FangKrum,
    FangTrim,
    FreeRider,
    Gaussian,
    Ipm,
    LabelFlip,
    Mimic,
    MinMax,
    MinSum,
    NonFinite,
    OptimalAlie,
    OptimalIpm,
    Rop,
    SignFlip,
    Sleeper,
    Sybil,
    View,
)
from fedrobust.options import members

Losses = Callable[[Attack | None], float]
EVERY: list[tuple[CraftedAttack, float]] = [
    (SignFlip(count=3), 1.5),
    (SignFlip(count=3, knowledge="all", noise=0.5), 1.13),
    (Gaussian(count=3, sigma=0.5), 1.1),
    (Alie(count=3, z=1.5), 1.05),
    (Ipm(count=3), 1.1),
    (Ipm(count=3, noise=0.3), 1.1),
    (FangKrum(count=3), 1.15),
    (FangTrim(count=3), 1.08),
    *((kind(count=3, direction="unit"), 1.15) for kind in (MinMax, MinSum)),
    *((kind(count=3, direction="sign"), 1.05) for kind in (MinMax, MinSum)),
    (MinMax(count=3), 1.03),
    (MinSum(count=3), 1.03),
    (Mimic(count=3), 1.02),
    (Rop(count=3), 1.08),
    (FreeRider(count=3, update="zero"), 1.08),
    (FreeRider(count=3), 1.01),
    (OptimalIpm(count=3), 10.0),
    (OptimalAlie(count=3), 10.0),
    (SignFlip(count=3, identity=Sybil()), 1.5),
    (SignFlip(count=3, schedule=Sleeper(rounds=10)), 1.06),
]
"""With how many times the honest loss at least, of about twice the margin that is seen."""


@pytest.fixture(scope="module")
def honest(final_loss: Losses) -> float:
    return final_loss(None)


@pytest.mark.parametrize(("attack", "factor"), EVERY, ids=str)
def test_the_loss_rises(attack: CraftedAttack, factor: float, honest: float, final_loss: Losses) -> None:
    assert final_loss(attack) > factor * honest


def test_one_number_that_is_not_finite_ruins_it(final_loss: Losses) -> None:
    assert np.isnan(final_loss(NonFinite(count=1)))


def test_honest_hospitals_alone_do_none(honest: float, final_loss: Losses) -> None:
    assert honest < 0.32
    assert final_loss(SignFlip(count=3, schedule=Sleeper(rounds=100))) == honest
    assert final_loss(LabelFlip(count=3)) == honest  # it would poison their data, of which there are none here


def test_every_crafted_attack_is_here() -> None:
    crafted = {kind for kind in members(Attack).values() if issubclass(kind, CraftedAttack)}
    assert {type(attack) for attack, _ in EVERY} | {NonFinite} == crafted


@pytest.mark.parametrize("attack", [attack for attack, _ in EVERY], ids=str)
def test_float32_rows_without_nan_whatever_the_round(attack: CraftedAttack, aware: Callable[..., View]) -> None:
    kinds = [np.random.default_rng(0).normal(size=(8, 7)), np.zeros((8, 7)), np.ones((8, 7))]
    for updates, (f, m) in product(map(np.float32, kinds), [(3, 5), (1, 5), (3, 1), (1, 1), (3, 0)]):
        updates.flags.writeable = False
        seen = aware(updates[:f], updates[3 : 3 + m], [Mean()], step=updates[7])
        if attack.knowledge != "aware":
            seen = replace(seen, preview=None)
        if attack.knowledge == "own":
            seen = replace(seen, others=None, clients=None)
        crafted = attack.craft(seen)
        assert crafted.shape == (f, 7) and crafted.dtype == np.float32
        assert np.isfinite(crafted).all()
