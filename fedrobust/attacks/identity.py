"""The ids under which malicious hospitals appear: behaviour against reputation, which can be added to any attack."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedrobust.options import Options


class Identity(Options):
    """How the hospitals of an attack appear to the coordinator."""

    name: str


class OneEach(Identity):
    """Each hospital keeps its own id."""

    name: Literal["one_each"] = "one_each"


class Whitewash(Identity):
    """Whitewashing: the hospitals leave and come back under new ids, with the reputation of a new client.

    As in Friedman and Resnick, The social cost of cheap pseudonyms, 2001. They do so whether their attack is active or
    not. They keep their data and the state of their training.
    """

    name: Literal["whitewash"] = "whitewash"
    every: int = Field(default=5, ge=1)
    """Rounds under each id; the first is the hospital's own."""


class Sybil(Identity):
    """Sybils: one attacker behind all of the attack's hospitals (Douceur, IPTPS 2002).

    All send the update of the hospital with the lowest id in the round, each with its own Gaussian noise. This holds
    for attacks on data too: one poisoned update is then sent many times, as in Fung et al., RAID 2020.
    """

    name: Literal["sybil"] = "sybil"
    noise: float = Field(default=0.0, ge=0)
    """The norm of the noise, as a fraction of the update's norm; 0: exact copies."""
