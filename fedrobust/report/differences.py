"""Differences between two candidates of one setting, paired by seed, and what they mean in one sentence. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedrobust.intervals import FEWEST, MOST, Estimate, further_seeds, mean_interval, paired_patches
from fedrobust.records import RecordedRun
from fedrobust.report.elements import plural
from fedrobust.report.run_figures import tested_patches

ACCURACY, ATTACK = "test/balanced_accuracy", "attack/success_rate"
DECIDING = {ACCURACY: "balanced accuracy", ATTACK: "attack success"}
"""The figures whose differences are computed, and their titles. Of the first, more is better; of the second, less."""


@dataclass(frozen=True)
class Difference:
    """A figure of one candidate minus that of another, in the seeds that both have."""

    figure: str
    """Its name in MLflow, a key of `DECIDING`."""
    ours: str
    """Label of the first candidate."""
    theirs: str
    """Label of the second one."""
    values: tuple[float, ...]
    """The difference in each seed."""
    estimate: Estimate
    """Their mean; all intervals of a setting hold at once."""
    further: int | None
    """How many more seeds would tell the two apart; None if that cannot be estimated, or if not even `MOST` would."""
    patches: Estimate | None = None
    """With too few seeds for an interval: the difference after the last round, with an interval over the test
    patches."""
    unpaired: str = ""
    """Why there is no such interval."""

    @property
    def apart(self) -> bool:
        """Whether the interval over the seeds excludes 0."""
        return self.estimate.low > 0 or self.estimate.high < 0

    @property
    def sentence(self) -> str:
        """Return what the difference means, for a reader without statistics."""
        title, seeds = DECIDING[self.figure], plural(len(self.values), "seed")
        if not self.values:
            return f"{self.ours} and {self.theirs} cannot be told apart in {title}: they have no seed in common"
        if not any(self.values):
            each = "in the one seed" if len(self.values) == 1 else f"in each of {seeds}"
            return f"{self.ours} and {self.theirs} have the same {title} {each}{self._on_patches()}"
        ours_ahead = (self.estimate.value > 0) == (self.figure == ACCURACY)
        ahead, behind = (self.ours, self.theirs) if ours_ahead else (self.theirs, self.ours)
        by = _by(self.estimate)
        if self.apart and self.figure == ACCURACY:
            return f"{ahead} is better than {behind} by {by} in {title}, in {seeds}"
        if self.apart:
            return f"{ahead} lets attacks succeed less often than {behind}, by {by}, in {seeds}"
        lead = "is ahead" if self.figure == ACCURACY else "lets attacks succeed less often"
        unclear = f"{ahead} and {behind} cannot be told apart in {title}: {ahead} {lead} by {by} in {seeds}"
        return f"{unclear}; {self._more()}{self._on_patches()}"

    def _more(self) -> str:
        if len(self.values) < 2:
            return f"how many more would do cannot be estimated from one; an interval needs {FEWEST}"
        if self.further is None:
            return f"not even {MOST:,} seeds would"
        rough = ", a rough figure from two" if len(self.values) == 2 else ""
        return f"about {self.further} more {'would' if self.further != 1 else 'seed would'}{rough}"

    def _on_patches(self) -> str:
        if len(self.values) >= FEWEST or self.figure != ACCURACY:
            return ""
        if self.patches is None:
            return f"; no interval over the test patches: {self.unpaired}"
        shown = f"{_signed(self.patches.value)} ({_signed(self.patches.low)} to {_signed(self.patches.high)})"
        return f"; on the test patches after the last round: {shown}, {self.ours} minus {self.theirs}"


def difference(
    figure: str,
    ours: tuple[str, Mapping[int, float]],
    theirs: tuple[str, Mapping[int, float]],
    runs: Sequence[tuple[RecordedRun, RecordedRun]],
    intervals: int,
) -> Difference:
    """Return the difference between two candidates.

    figure: name of the figure in MLflow.
    ours, theirs: label of the candidate, and seed → figure.
    runs: both candidates' runs of each seed that they have in common.
    intervals: number of intervals of the setting, which hold at once.
    """
    values = tuple(ours[1][seed] - theirs[1][seed] for seed in sorted(ours[1].keys() & theirs[1].keys()))
    further = further_seeds(values, intervals) if len(values) > 1 else None
    found = Difference(figure, ours[0], theirs[0], values, mean_interval(values, intervals), further)
    if figure != ACCURACY or len(values) >= FEWEST or not values:
        return found
    over = [on_patches(*pair, intervals) for pair in runs]
    reasons = [each for each in over if isinstance(each, str)]
    if reasons or not over:
        return replace(found, unpaired=reasons[0] if reasons else "the runs have no last evaluation")
    # The seeds may share test patches, so their intervals are averaged, as if they shared all of them.
    ends = np.mean([each for each in over if isinstance(each, Estimate)], axis=0)
    return replace(found, patches=Estimate(*map(float, ends)))


def on_patches(ours: RecordedRun, theirs: RecordedRun, intervals: int = 1) -> Estimate | str:
    """Return the difference of two runs of one seed after their last round, with an interval over the test patches, or
    why there is none.

    intervals: how many hold at once.
    """
    read = [_misread(run) for run in (ours, theirs)]
    first, second = read
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    patches = tested_patches(ours)
    if ours.start.digest != theirs.start.digest or (patches != tested_patches(theirs)).any():
        return "the two runs were not tested on the same patches"
    tested = np.flatnonzero(patches)
    better, worse = (
        np.array([sum(truth == label for index, truth in lost.items() if index not in kept) for label in tested])
        for lost, kept in ((second, first), (first, second))
    )
    return paired_patches(better, worse, patches[tested], intervals)


def signed(estimate: Estimate) -> str:
    """Return a difference for a table: `+0.120 (+0.050 to +0.190)`; only the value if it has no interval."""
    if not math.isfinite(estimate.value):
        return "–"
    interval = f" ({_signed(estimate.low)} to {_signed(estimate.high)})" if math.isfinite(estimate.low) else ""
    return f"{_signed(estimate.value)}{interval}"


def _misread(run: RecordedRun) -> dict[int, int] | str:
    """Return patch → true label of all test patches that the final model misreads, or why they are not known."""
    if run.end is None or not run.evaluations or not run.evaluations[-1].confusion:
        return "the record has no last evaluation"
    confusion, read = np.array(run.evaluations[-1].confusion), run.end.misread
    if run.evaluations[-1].round != run.end.round:
        return "the record has no evaluation of the final model"
    if confusion.sum() - np.trace(confusion) != len(read.indices):
        return f"the record names only {len(read.indices)} of the misread patches, those of which the model was surest"
    return dict(zip(read.indices, read.truth, strict=True))


def _by(estimate: Estimate) -> str:
    """Return the size of a difference, seen from the candidate that is ahead: `0.12 (0.05 to 0.19)`."""
    sign = -1 if estimate.value < 0 else 1
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    interval = f" ({_digits(low)} to {_digits(high)})" if math.isfinite(low) else ""
    return f"{_digits(abs(estimate.value))}{interval}"


def _digits(value: float) -> str:
    """Two digits, or three where two would hide that the value is not 0."""
    digits = 2 if abs(value) >= 0.05 or value == 0 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if f"{abs(value):.3f}" != "0.000" else "0.000"
