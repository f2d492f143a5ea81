"""A share of so many hospitals is the same number, whatever it is a share for."""

from __future__ import annotations

import numpy as np
import pytest

from fedrobust.aggregation import Aggregation, Median
from fedrobust.attacks import SignFlip
from fedrobust.experiment import Federation
from fedrobust.portions import portion


@pytest.mark.parametrize(
    ("share", "n", "nearest", "least"),
    [
        (0.5, 5, 3, 3),  # Python's own rounding has 2
        (0.5, 7, 4, 4),
        (0.29, 50, 15, 15),  # 14.5, which binary floats put below it
        (0.14, 50, 7, 7),  # which binary floats put above it
        (0.24, 10, 2, 3),
        (0.25, 10, 3, 3),
        (0.3, 11, 3, 4),
        (1.0, 9, 9, 9),
        (0.01, 10, 0, 1),
    ],
)
def test_a_portion(share: float, n: int, nearest: int, least: int) -> None:
    assert portion(share, n) == nearest
    assert portion(share, n, least=True) == least
    assert portion(np.float64(share), n) == nearest


@pytest.mark.parametrize("clients", range(3, 40))
@pytest.mark.parametrize("share", [0.05, 0.25, 0.29, 0.3, 0.45])
def test_the_same_share_is_the_same_number_of_hospitals(share: float, clients: int) -> None:
    attackers = SignFlip(fraction=share).attackers(clients)
    assert Federation(clients=clients, participation=share).participants() == max(1, attackers)
    if 2 * attackers < clients:
        assert Aggregation(rule=Median(), f=share).byzantine_f(clients) == attackers


@pytest.mark.parametrize("clients", [1, 2, 9, 50])
@pytest.mark.parametrize("quorum", [0.01, 0.14, 0.5, 1.0])
def test_a_quorum_is_never_less_than_its_share(quorum: float, clients: int) -> None:
    needed = Federation(clients=clients, quorum=quorum).needed()
    assert 1 <= needed <= clients
    assert (needed - 1) / clients < quorum <= needed / clients + 1e-12
