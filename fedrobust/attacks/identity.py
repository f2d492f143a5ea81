"""Under which identities malicious hospitals appear: behaviours against reputation, which wrap any attack."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedrobust.options import Options


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
