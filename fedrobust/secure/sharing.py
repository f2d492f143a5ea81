"""The protocols with secret shares, as options: servers, sketch, and the limits on what may be opened."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from fedrobust.errors import Problem
from fedrobust.secure.disclosure import Disclosure, ProtocolSetting, of_shares
from fedrobust.secure.privacy import Privacy
from fedrobust.secure.randomness import Randomness
from fedrobust.updates.demand import Demand

if TYPE_CHECKING:
    from fedrobust.aggregation import Aggregation
    from fedrobust.secure.supports import Prospect

SKETCH = 512
"""Columns of a sketch by default."""

SPARE = 10
"""So many rounds more than the experiment has may open functionals."""

OFTEN = 0.25
"""If the servers would refuse this share of trial rounds, the user is warned before the run."""


class SecretSharing(Privacy):
    """What the protocols with secret shares have in common: servers open the Gram matrix, if the defence needs it, or
    only its diagonal, and one weighted sum."""

    reveals: ClassVar[frozenset[str]] = frozenset({"sum", "gram"})
    servers: ClassVar[int]
    dealer: ClassVar[bool] = False
    clip: float = Field(default=10.0, gt=0)
    """C: a hospital clips its update to this norm. An update is rounded to multiples of 2^−28 C."""
    sketch: int | None = Field(default=SKETCH, ge=128)
    """k: the servers open the Gram matrix of random sketches of the updates, with k columns, which nobody else knows.
    This is faster, and blurs what colluders read from it. null: the exact Gram matrix of the updates."""
    min_support: float = Field(default=3.0, ge=1)
    """Least Σw²/max w² of a sum after the `colluders` are taken out: a sum of fewer updates would show single ones."""
    max_functionals: Annotated[int, Field(ge=0)] | Literal["auto"] | None = "auto"
    """Linear functionals of every update that may be opened in the whole run: products of the update, and of each
    history, with public vectors and with what `colluders` send. `auto`: what the defence needs, and ten rounds more, as
    rounds may be repeated; null: any number. In each round, servers multiply by as many public vectors as the defence
    needs, whatever the limit is."""
    colluders: int = Field(default=0, ge=0)
    """Hospitals that are expected to show the coordinator their own update: no sum may rest on few updates besides
    theirs, and each counts as a functional in each round, with h histories as (1 + h)²."""
    randomness: Randomness = "system"
    """Source of secrets: the `system`, or the experiment's `seed`. With `seed` a run can be repeated bit for bit, but
    everybody who has the file can compute every secret."""

    @property
    def parties(self) -> int:
        return self.servers + self.dealer

    @property
    def support(self) -> float:
        """Least Σw²/max w² of a sum that the servers open. Without any c colluders, Σ w² of the rest is at least
        (min_support + c) max w² − c max w², so the rest has `min_support`."""
        return self.min_support + self.colluders

    def fits(self, aggregation: Aggregation) -> str | None:
        if reason := super().fits(aggregation):
            return reason
        from fedrobust.aggregation.stages import Bucketing

        if not aggregation.rule.selects_one:
            return None
        means = [stage for stage in aggregation.stages if stage.spreads]
        if not means:
            return f"{aggregation.rule.name} puts all weight on one update, which {self.name} would open"
        if all(isinstance(stage, Bucketing) and stage.s < self.support for stage in means):
            return f"{aggregation.rule.name} puts all weight on a bucket of fewer updates than min_support"
        return None

    def refusal(
        self,
        aggregation: Aggregation,
        participants: int,
        rounds: int,
        demand: Demand | None = None,
        asked: int | None = None,
    ) -> Problem | None:
        from fedrobust.secure.supports import always_below

        if problem := super().refusal(aggregation, participants, rounds, demand, asked):
            return problem
        if participants < self.support:
            reason = f"with the colluders it must be at most the {participants} updates of a round"
            return Problem(reason, "privacy.min_support")
        if (lies := always_below(aggregation, participants, self.support, asked)) is not None:
            name, found = aggregation.rule.name, self._prospect(aggregation, participants, asked)
            weights = f"lie on {lies:.3g} updates" if lies else "are negative or not finite"
            reason = f"with {participants} updates the weights of {name} always {weights}, {self._needed()}"
            return Problem(reason, "aggregation", hint=self._remedies(aggregation, participants, asked, found))
        return self.exceeded(demand or aggregation.demand, rounds)

    def exceeded(self, demand: Demand, rounds: int) -> Problem | None:
        """Why so many rounds of a defence open more functionals than are allowed; None if they do not.

        demand: of the defence.
        rounds: of the experiment.
        """
        opened, limit = rounds * self.opened(demand), self.limit(demand, rounds)
        if limit is not None and opened > limit:
            return Problem(f"{rounds} rounds open {opened} functionals of every update", "privacy.max_functionals")
        return None

    def doubt(self, aggregation: Aggregation, participants: int, asked: int | None = None) -> Problem | None:
        try:
            hash((self, aggregation))
        except TypeError:  # options of the user's own
            return self._doubt(aggregation, participants, asked)
        return _remembered_doubt(self, aggregation, participants, asked)

    def _doubt(self, aggregation: Aggregation, participants: int, asked: int | None) -> Problem | None:
        found = self._prospect(aggregation, participants, asked)
        if found.refused < OFTEN:
            return None
        parts = " → ".join(part.name for part in (*aggregation.stages, aggregation.rule))
        reason = (
            f"with {participants} updates the weights of {parts} lie on about {found.middle:.3g} updates (Σw²/max w²), "
            f"{self._needed()}: the servers refused {found.refused:.0%} of {len(found.supports)} trial rounds; "
            "a round that they refuse is skipped"
        )
        return Problem(reason, "privacy", hint=self._remedies(aggregation, participants, asked, found))

    def _prospect(self, aggregation: Aggregation, participants: int, asked: int | None) -> Prospect:
        from fedrobust.secure.supports import prospect

        return prospect(aggregation, participants, self.support, asked)

    def _needed(self) -> str:
        return f"and min_support{' + colluders' if self.colluders else ''} is {self.support:g}"

    def _remedies(self, aggregation: Aggregation, participants: int, asked: int | None, found: Prospect) -> str:
        from fedrobust.secure.remedies import remedies

        asked = participants if asked is None else asked
        ways = remedies(aggregation, participants, asked, found, self.fits, self.colluders)
        return f"use {', or '.join(ways)}" if ways else "use another defence, more hospitals or another protocol"

    def disclosure(self, setting: ProtocolSetting) -> Disclosure:
        return of_shares(setting, self.servers, self.dealer, self.sketch, self.support, self.colluders, self.clip)

    def opened(self, demand: Demand) -> int:
        """Linear functionals of every update that a round opens: with h histories, 1 + h for each public vector, and (1
        + h)² for each colluder, if all products of updates are opened.

        demand: of the defence.
        """
        known = 1 + len(demand.histories)
        return demand.vectors * known + (self.colluders * known**2 if demand.opens == "gram" else 0)

    def limit(self, demand: Demand, rounds: int) -> int | None:
        """How many of them each server opens at most in the run; None: any number.

        demand: of the defence.
        rounds: of the experiment.
        """
        if self.max_functionals == "auto":
            return (rounds + SPARE) * self.opened(demand)
        return self.max_functionals


@lru_cache(maxsize=256)
def _remembered_doubt(
    privacy: SecretSharing, aggregation: Aggregation, participants: int, asked: int | None
) -> Problem | None:
    """The trial rounds are made once for all runs of a study with the same defence."""
    return privacy._doubt(aggregation, participants, asked)


class SharesPrivacy(SecretSharing):
    """Two servers and a dealer: no one of them sees an update, the coordinator sees the Gram matrix and one sum."""

    name: Literal["shares"] = "shares"
    servers: ClassVar[int] = 2
    dealer: ClassVar[bool] = True


class ReplicatedPrivacy(SecretSharing):
    """Three servers without a dealer: no one of them sees an update, the coordinator the Gram matrix and one sum."""

    name: Literal["replicated"] = "replicated"
    servers: ClassVar[int] = 3
