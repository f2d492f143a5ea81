"""The jury: hospitals vote, each on patches of its own, between hypotheses about who lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from fedrobust.data.majorities import VOTES
from fedrobust.options import Many, Options
from fedrobust.portions import portion
from fedrobust.trust.referee import DEFENCE, WORST, Hypothesis
from fedrobust.updates import Floats


@dataclass(frozen=True)
class Poll:
    """What the votes of a round gave."""

    chosen: str
    """The hypothesis whose aggregate is used."""
    gains: dict[str, float]
    """Hypothesis → the median of how much less the hospitals lose than with the defence, each label counting the same.
    Empty if a label had too few votes."""
    voters: tuple[int, ...]
    """For each label, how many hospitals voted."""


class Jury(Options):
    """Hospitals compare more than one aggregate on training patches of their own, and may overrule the defence.

    The hypotheses are the referee's. Each hospital sends a number for each hypothesis k and each label of which it has
    20 patches or more: its mean loss at these patches of the model after the defence's aggregate, minus that after the
    aggregate of k. The gain of k is the mean over the labels of the medians of these numbers; the hypothesis with the
    largest gain replaces the defence if that is above zero.

    Nobody can see whether a hospital has patches of a label, so malicious hospitals may vote about all of them. As long
    as the honest voters outnumber them, the median lies between numbers of honest hospitals, whatever the others send.
    Of v votes about a label, as many as `fraction` of all hospitals may be lies; if that is half of v or more for some
    label, the round has no jury, and the defence decides. So malicious hospitals that do not vote can end a jury,
    unless the honest ones alone are votes enough. With more malicious hospitals than `fraction` a jury does harm.

    Votes of clients on models: BaFFLe (Andreina et al., ICDCS 2021), FLShield (Kabir et al., S&P 2024); medians within
    labels, as a choice between hypotheses, are this project's.
    """

    hypotheses: Many[Hypothesis] = ("mean", "rest")
    """What is tried besides the defence."""
    patches: int = Field(default=100, ge=VOTES)
    """Patches of a label that a hospital looks at, at most."""
    fraction: float = Field(default=0.2, gt=0, le=0.3)
    """Share of all hospitals that may be malicious, rounded to the nearest number."""

    def needed(self, clients: int) -> int:
        """How many votes about each label a jury needs, so that most of them are honest.

        clients: how many hospitals there are; all malicious ones may be among those that vote.
        """
        return 2 * portion(self.fraction, clients) + 1

    def poll(self, names: Sequence[str], votes: Floats, clients: int) -> Poll:
        """Which hypothesis is used.

        names: K hypotheses besides the defence.
        votes: (hospitals, K, labels) how much less each hospital of the round loses than with the defence; not finite
            where it has no vote.
        clients: how many hospitals there are.
        """
        valid = np.asarray(np.isfinite(votes).all(axis=1))
        voters = valid.sum(axis=0)
        told = tuple(voters.tolist())
        if not names or (voters < self.needed(clients)).any():
            return Poll(DEFENCE, {}, told)
        bounded = np.where(valid[:, None], np.clip(votes, -WORST, WORST), np.nan)
        gains = dict(zip(names, np.nanmedian(bounded, axis=0).mean(axis=1).tolist(), strict=True))
        best = max(gains, key=lambda name: gains[name])
        return Poll(best if gains[best] > 0 else DEFENCE, gains, told)
