"""Skipped rounds: how many, why, and whether any round was made at all. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_DECIMAL = re.compile(r"\d+\.\d+")


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
        kinds = merged(self.reasons)
        shown = [f"in {n} round{'' if n == 1 else 's'}: {reason}" for reason, n in kinds[:most]]
        rest = len(kinds) - most
        return f"{self.count}: {'; '.join(shown)}" + (
            f"; {rest} more reason{'' if rest == 1 else 's'}" if rest > 0 else ""
        )

    def no_result(self, cautions: Sequence[str] = ()) -> str:
        """For a run that is `untrained`: what happened, and what to do.

        cautions: what the user was warned of before the run.
        """
        warned = [each for each in cautions if each.startswith("privacy:")]
        if "not finite" in self.summary(1):
            hint = "Lower learning.local.optimizer.lr"
        elif warned:
            hint = f"It was foreseen ({warned[0]}). Follow this advice"
        else:
            hint = "Mend what the reason names"
        return (
            f"no round changed the model; rounds skipped: {self.summary(1)}. {hint}, and start a new "
            "run: resuming this one changes nothing"
        )


def merged(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """Reasons that differ only in their decimal figures as one, with the range of each figure; the most frequent first.

    reasons: reason → number of rounds.
    """
    alike: dict[str, list[str]] = {}
    for reason in reasons:
        alike.setdefault(_DECIMAL.sub("#", reason), []).append(reason)
    found = [(_alike(same), sum(reasons[reason] for reason in same)) for same in alike.values()]
    return sorted(found, key=lambda kind: -kind[1])


def _alike(reasons: Sequence[str]) -> str:
    """One text for reasons that are alike except for their decimal figures."""
    figures = zip(*map(_DECIMAL.findall, reasons), strict=True)
    ends = [(min(each, key=float), max(each, key=float)) for each in figures]
    ranges = iter([low if low == high else f"{low} to {high}" for low, high in ends])
    return _DECIMAL.sub(lambda _: next(ranges), reasons[0])
