"""Protocols between hospitals and coordinator, as options: what each reveals of an update, and which defences it
excludes."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from fedrobust.arrays import Vector
from fedrobust.errors import Problem
from fedrobust.options import Options, members
from fedrobust.portions import portion
from fedrobust.secure.disclosure import (
    Disclosure,
    ProtocolSetting,
    of_clear,
    of_masks,
    of_one_message,
    of_unknown,
)
from fedrobust.updates.demand import Demand
from fedrobust.updates.interface import not_revealed

if TYPE_CHECKING:
    from fedrobust.aggregation import Aggregation


class Privacy(Options):
    """Base of the protocols. `reveals` lists which of "sum", "gram" and "rows" a rule may ask for."""

    name: str
    reveals: ClassVar[frozenset[str]] = frozenset()
    single: ClassVar[bool] = True
    """Whether the coordinator sees rows of single clients, which it can judge, weigh and remember."""
    sharded: ClassVar[bool] = False
    """Whether the coordinator's rows may lie in columns on the actors of `workers.shards`."""

    @property
    def parties(self) -> int:
        """How many servers and dealers there are, besides hospitals and coordinator."""
        return 0

    @property
    def support(self) -> float:
        """Least Σw²/max w² of a sum that is opened: 1 where any sum is."""
        return 1.0

    def rows(self, updates: int) -> int:
        """How many rows the coordinator sees of so many updates."""
        return updates

    def fits(self, aggregation: Aggregation) -> str | None:
        """Why the stages and the rule of a defence do not work with the protocol; None if they do."""
        for part in (*aggregation.stages, aggregation.rule):
            if hidden := not_revealed(part.asks(), self.reveals):
                return f"{part.name} needs {', '.join(sorted(hidden))}, which {self.name} does not reveal"
        return None

    def refusal(
        self,
        aggregation: Aggregation,
        participants: int,
        rounds: int,
        demand: Demand | None = None,
        asked: int | None = None,
    ) -> Problem | None:
        """What in an experiment does not work with this protocol; None if all does.

        aggregation: stages and rule.
        participants: hospitals that send an update in a round, at most.
        rounds: of the experiment.
        demand: of the whole defence; by default, that of stages and rule.
        asked: hospitals that are drawn for a round, by default as many.
        """
        if reason := self.fits(aggregation):
            return Problem(reason, "aggregation", hint=f"rules that go with it: {', '.join(self._rules())}")
        return None

    def doubt(self, aggregation: Aggregation, participants: int, asked: int | None = None) -> Problem | None:
        """What may keep many rounds from being made, although it is not certain, and what to change; None if nothing is
        foreseen. Arguments as for `refusal`.
        """
        return None

    def disclosure(self, setting: ProtocolSetting) -> Disclosure:
        """What each party sees, and which collusion breaks the protocol, for the page of a security officer.

        Every protocol must say it. Until its author does, the page tells the officer to expect the worst.

        setting: what it depends on besides the protocol's options.
        """
        return of_unknown(self.name)

    def _rules(self) -> list[str]:
        """The names of the rules that, alone, work with the protocol."""
        from fedrobust.aggregation import Aggregation, RowRule, Rule

        rules = (rule() for rule in members(Rule, RowRule).values())
        return [
            rule.name for rule in rules if isinstance(rule, Rule | RowRule) and not self.fits(Aggregation(rule=rule))
        ]


class ClearPrivacy(Privacy):
    """No protection: the coordinator may see every update."""

    name: Literal["clear"] = "clear"
    reveals: ClassVar[frozenset[str]] = frozenset({"sum", "gram", "rows"})
    sharded: ClassVar[bool] = True

    def disclosure(self, setting: ProtocolSetting) -> Disclosure:
        return of_clear(setting)


class OneMessage(Privacy):
    """Base of protocols in which each hospital sends the coordinator one message in a round, and gets no answer.

    A subclass with `write` and `read`, in one file, is a whole protocol: compression, noise, clipping. The coordinator
    sees of an update what `read` returns for its message.
    """

    reveals: ClassVar[frozenset[str]] = frozenset({"sum", "gram", "rows"})
    sees: ClassVar[str] = ""
    """What the coordinator sees of an update, as a sentence for a security officer; its author must say it."""

    def disclosure(self, setting: ProtocolSetting) -> Disclosure:
        return of_one_message(self.name, self.sees, setting)

    @abstractmethod
    def write(self, update: Vector, generator: np.random.Generator) -> bytes:
        """The message of one hospital.

        update: (d,) float32, finite.
        generator: the hospital's own, for this round.
        """

    @abstractmethod
    def read(self, message: bytes, d: int) -> Vector:
        """The row (d,) float32 that the coordinator gets from a message.

        message: as `write` returned it, or anything else that a malicious hospital sends.
        d: coordinates of an update.

        Raises `MessageError` where the message is invalid.
        """


class PairwiseMasking(Privacy):
    """What the protocols with pairwise masks have in common (Bonawitz et al., 2017; Bell et al., 2020)."""

    single: ClassVar[bool] = False
    clip: float = Field(default=10.0, gt=0)
    """C: an honest hospital clips its update to this norm; nobody can check it."""
    neighbours: int | None = Field(default=None, ge=2)
    """k: with how many others a hospital shares masks; null: with all."""
    threshold: float = Field(default=2 / 3, ge=0.5, lt=1)
    """If more than this share of its k neighbours answer, a hospital's secrets can be recovered when it drops out."""
    bits: Literal[32, 64] = 32
    """Bits of a masked coordinate: 64 sends twice as much, and rounds 2^15 times as finely."""
    largest_count: float | None = Field(default=None, gt=0)
    """With `weighting: samples`, the hidden sample counts are weights, each capped at this."""

    def disclosure(self, setting: ProtocolSetting) -> Disclosure:
        return of_masks(setting, self.neighbours, self.threshold, None)

    def refusal(
        self,
        aggregation: Aggregation,
        participants: int,
        rounds: int,
        demand: Demand | None = None,
        asked: int | None = None,
    ) -> Problem | None:
        if problem := super().refusal(aggregation, participants, rounds, demand, asked):
            return problem
        if participants < 3:
            reason = f"{self.name} needs 3 hospitals in a round at least, there are {participants}"
            return Problem(reason, "federation.clients")
        if (aggregation.weighting == "samples") != (self.largest_count is not None):
            return Problem("must be given with aggregation.weighting samples, and only then", "privacy.largest_count")
        if aggregation.cap != 2.0:
            return Problem("the counts are hidden here, and capped at privacy.largest_count", "aggregation.cap")
        return None


class MaskedPrivacy(PairwiseMasking):
    """One server and pairwise masks: the coordinator sees the sum of the updates, so the only defence is a clip."""

    name: Literal["masked"] = "masked"
    reveals: ClassVar[frozenset[str]] = frozenset({"sum"})


class GroupedPrivacy(PairwiseMasking):
    """Pairwise masks in small random groups: the coordinator sees each group's mean, and defends against bad groups."""

    name: Literal["grouped"] = "grouped"
    reveals: ClassVar[frozenset[str]] = frozenset({"sum", "gram", "rows"})
    size: int = Field(default=4, ge=3)
    """Hospitals in a group, drawn anew in each round."""

    def disclosure(self, setting: ProtocolSetting) -> Disclosure:
        return of_masks(setting, self.neighbours, self.threshold, self.size)

    def rows(self, updates: int) -> int:
        return updates // self.size

    def fits(self, aggregation: Aggregation) -> str | None:
        from fedrobust.secure.masked_updates import remembers

        return super().fits(aggregation) or remembers(aggregation.rule)

    def refusal(
        self,
        aggregation: Aggregation,
        participants: int,
        rounds: int,
        demand: Demand | None = None,
        asked: int | None = None,
    ) -> Problem | None:
        from fedrobust.secure.masked_updates import groups_refusal

        if problem := super().refusal(aggregation, participants, rounds, demand, asked):
            return problem
        if participants < self.size:
            return Problem(f"must be at most the {participants} hospitals of a round", "privacy.size")
        f = aggregation.f
        drawn = participants if asked is None else asked
        count = f if isinstance(f, int) else portion(f, drawn) if isinstance(f, float) else 0
        if too_many := groups_refusal(aggregation.rule, aggregation.stages, participants, self.size, count):
            return Problem(too_many, "aggregation.f")
        return None
