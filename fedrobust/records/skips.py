"""Skipped rounds: how many, why, and whether any round was made at all. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Skips:
    """The skipped rounds of a run, as far as it got.

    A round is skipped if nothing was aggregated, and made otherwise, even if its aggregate was zero.
    """

    rounds: int
    reasons: Mapping[str, int]
    """Reason → number of rounds skipped for it, the most frequent one first."""

    @classmethod
    def of(cls, reasons: Iterable[str | None]) -> Skips:
        """Count the skipped rounds.

        reasons: for each round, why it was skipped; None if it was not.
        """
        found = list(reasons)
        return cls(len(found), dict(Counter(each for each in found if each is not None).most_common()))

    @property
    def skipped(self) -> int:
        """How many rounds were skipped."""
        return sum(self.reasons.values())

    @property
    def untrained(self) -> bool:
        """Whether there were rounds, but none was made: the model is the initial one."""
        return 0 < self.rounds == self.skipped

    @property
    def count(self) -> str:
        """`3 of 20`."""
        return f"{self.skipped} of {self.rounds}"

    def summary(self, most: int = 3) -> str:
        """`3 of 20: in 2 rounds: krum needs …; in 1 round: …`, the `most` frequent; empty if none was skipped."""
        if not self.reasons:
            return ""
        shown = [f"in {n} round{'' if n == 1 else 's'}: {reason}" for reason, n in list(self.reasons.items())[:most]]
        rest = len(self.reasons) - most
        return f"{self.count}: {'; '.join(shown)}" + (
            f"; {rest} more reason{'' if rest == 1 else 's'}" if rest > 0 else ""
        )

    def no_result(self) -> str:
        """For a run that is `untrained`: what happened, and what to do."""
        hint = "Lower learning.local.optimizer.lr" if "not finite" in self.summary(1) else "Mend what the reason names"
        return (
            f"no round changed the model; rounds skipped: {self.summary(1)}. {hint}, and start a new "
            "run: resuming this one changes nothing"
        )
