"""Under which identities malicious hospitals appear: behaviours against reputation, which wrap any attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fedrobust.options import Options

if TYPE_CHECKING:
    from fedrobust.attacks.adversary import Attack


class Identity(Options):
    """How the hospitals of an attack appear to the coordinator."""

    name: str


class OneEach(Identity):
    """Each hospital is itself, and keeps its id."""

    name: Literal["one_each"] = "one_each"


class Whitewash(Identity):
    """Whitewashing: the hospitals leave and come back under new ids, with the reputation of a newcomer.

    As in Friedman and Resnick, The social cost of cheap pseudonyms, 2001. They do so whether their attack is active or
    not; their data and what they remember of their training stay theirs.
    """

    name: Literal["whitewash"] = "whitewash"
    every: int = Field(default=5, ge=1)
    """Rounds under each id; the first is the hospital's own."""


class Sybil(Identity):
    """Sybils: one attacker behind all of the attack's hospitals (Douceur, IPTPS 2002).

    All send what the one of lowest id in the round would send, each with Gaussian noise of its own. With poisoned data,
    too: it is then one poisoned update, many times, as in Fung et al., RAID 2020.
    """

    name: Literal["sybil"] = "sybil"
    noise: float = Field(default=0.0, ge=0)
    """The norm of the noise, as a part of the update's norm; 0: exact copies."""


def identities(attacks: Sequence[Attack], clients: int, rounds: int) -> int:
    """How many ids appear in a federation of so many hospitals and rounds: the `clients` own ones, then new ones."""
    washers = [(attack.identity, attack.attackers(clients)) for attack in attacks]
    found = [(rounds - 1) // identity.every for identity, count in washers if isinstance(identity, Whitewash) and count]
    hospitals = sum(count for identity, count in washers if isinstance(identity, Whitewash))
    return clients + max(found, default=0) * hospitals


def identity_of(attacks: Sequence[Attack], attackers: Mapping[int, int], clients: int, round: int) -> dict[int, int]:
    """The hospitals that do not use their own id in `round`, and the id that each of them uses, by ascending hospital.

    A hospital's e-th new id is clients + (e − 1) · W + r, where W is the number of all whitewashing hospitals and r its
    rank among them: no two share an id, whatever the attacks' intervals.
    """
    washers = [client for client in sorted(attackers) if isinstance(attacks[attackers[client]].identity, Whitewash)]
    found = {}
    for rank, client in enumerate(washers):
        identity = attacks[attackers[client]].identity
        epoch = (round - 1) // identity.every if isinstance(identity, Whitewash) else 0
        if epoch:
            found[client] = clients + (epoch - 1) * len(washers) + rank
    return found
