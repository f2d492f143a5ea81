"""When an attack is active."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field

from fedrobust.options import Options


class Schedule(Options):
    """In which rounds an attack is active; in the others its hospitals are honest. Rounds count from 1."""

    name: str

    @abstractmethod
    def active(self, round: int) -> bool:
        """Whether the attack is active in `round`."""


class Always(Schedule):
    """In every round."""

    name: Literal["always"] = "always"

    def active(self, round: int) -> bool:
        return True


class Sleeper(Schedule):
    """Honest for some rounds, to earn trust first; then active in every round."""

    name: Literal["sleeper"] = "sleeper"
    rounds: int = Field(default=10, ge=1)
    """Number of honest rounds."""

    def active(self, round: int) -> bool:
        return round > self.rounds


class OnOff(Schedule):
    """A cycle: `on` rounds of attack, then `off` honest rounds, repeated.

    With a later `start`, the hospitals earn trust first and then never lose all of it.
    """

    name: Literal["on_off"] = "on_off"
    on: int = Field(default=1, ge=1)
    """Rounds of attack in each cycle."""
    off: int = Field(default=1, ge=1)
    """Honest rounds after them."""
    start: int = Field(default=1, ge=1)
    """The first round of the first cycle; honest before it."""

    def active(self, round: int) -> bool:
        return round >= self.start and (round - self.start) % (self.on + self.off) < self.on


class SingleShot(Schedule):
    """In one round only."""

    name: Literal["single_shot"] = "single_shot"
    round: int = Field(ge=1)
    """The round of the attack."""

    def active(self, round: int) -> bool:
        return round == self.round
