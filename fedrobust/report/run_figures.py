"""The figures of a run that comparisons show, and how they are written. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedrobust.records import EvaluationRecord, RecordedRun, averages
from fedrobust.report.titles import titles

LAST = 5
"""Figures are means over so many of the last evaluations, as far as these are in the second half of the run."""


class Spread(NamedTuple):
    """A figure over seeds: mean, sample standard deviation (NaN with fewer than two seeds), and number of seeds that
    have it."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread:
        """Compute it from the values that are present and finite."""
        known = np.array([value for value in values if value is not None and math.isfinite(value)])
        mean = float(known.mean()) if len(known) else math.nan
        return cls(mean, float(known.std(ddof=1)) if len(known) > 1 else math.nan, len(known))


def figures_of(run: RecordedRun) -> dict[str, float]:
    """Return the figures of a run that tables show: means over its last evaluations and their rounds (`averaged`), the
    number of skipped rounds, and the bytes of all updates together."""
    last = averaged(run.evaluations)
    rounds = [record for record in run.rounds if last and record.round >= last[0].round]
    detected: dict[str, list[float]] = defaultdict(list)
    for record in rounds:
        for name, value in record.detection.items():
            if value is not None:
                detected[name].append(value)
    found = averages(last) | {name: float(np.mean(values)) for name, values in detected.items()}
    found["rounds_skipped"] = float(run.skips.skipped)
    uploaded = [record.upload_bytes for record in run.rounds if record.upload_bytes is not None]
    if uploaded:
        found["upload_bytes"] = float(sum(uploaded))
    return {name: found[name] for name in titles(found)}


def averaged(evaluations: Sequence[EvaluationRecord]) -> Sequence[EvaluationRecord]:
    """Return the evaluations whose mean is a run's figure: the last five, of these only those after the run's middle.

    A single evaluation has the noise of its round; an early one is not the model that the run ends with.
    """
    return [each for each in evaluations if 2 * each.round > evaluations[-1].round][-LAST:]


def tested_patches(run: RecordedRun) -> np.ndarray:
    """Return the number of test patches of each label, (labels,) int; all 0 if the record does not say."""
    confusion = run.evaluations[-1].confusion if run.evaluations else ()
    counts: np.ndarray = np.array(confusion or ((0,),)).sum(axis=1)
    return counts


def shown(figure: str, spread: Spread, runs: int) -> str:
    """Return `0.912 ± 0.004` as tables show it, with the number of seeds if it differs from the candidate's.

    figure: its name.
    spread: its values over the seeds.
    runs: number of runs of the candidate.
    """
    if not spread.n:
        return "–"
    unit, scale, digits = ("", 1.0, 3)
    if figure == "upload_bytes":
        power = min(4, max(0, int(math.log10(max(1.0, spread.mean)) // 3)))
        unit, scale, digits = (" " + ("B", "kB", "MB", "GB", "TB")[power], 1000.0**power, 1 if power else 0)
    if figure == "rounds_skipped":
        digits = 0 if runs == 1 else 1
    around = f" ± {spread.sd / scale:.{digits}f}" if math.isfinite(spread.sd) else ""
    if unit and not float(around[3:] or 0):  # the same model always has the same size
        around = ""
    return f"{spread.mean / scale:.{digits}f}{around}{unit}" + (f" (n = {spread.n})" if spread.n < runs else "")


def rounds_in_words(rounds: Sequence[int]) -> str:
    """Return `16 to 20`, or `10, 15, 20` if there are gaps."""
    if len(rounds) > 2 and len({*np.diff(rounds).tolist()}) == 1 and rounds[1] - rounds[0] == 1:
        return f"{rounds[0]} to {rounds[-1]}"
    return ", ".join(map(str, rounds)) or "–"
