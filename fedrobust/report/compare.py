"""Comparison of runs: settings that stand apart, and in each the candidates, which are ranked. Pure.

`distinctions` says which options belong to the setting and which to the candidate.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import NamedTuple

import numpy as np

from fedrobust.errors import ExperimentError, Problem
from fedrobust.intervals import Estimate, share_uncertainty
from fedrobust.metrics.chance import MORE, against, at_chance
from fedrobust.records import RecordedRun
from fedrobust.report.differences import ACCURACY, DECIDING, Difference, difference
from fedrobust.report.distinctions import AVERAGED, DATA, defence, labels, plain_mean, short_options, sides, telling
from fedrobust.report.elements import plural
from fedrobust.report.run_figures import Spread, averaged, figures_of, rounds_in_words, tested_patches
from fedrobust.report.titles import titles


class Curve(NamedTuple):
    """A figure by round, for the rounds in which all runs that have it were evaluated."""

    rounds: list[int]
    values: np.ndarray
    """(seeds, rounds)"""


@dataclass(frozen=True)
class Candidate:
    """Runs of one setting that differ only in the seed."""

    label: str
    """What distinguishes it from other candidates, in a few words."""
    options: Mapping[str, str]
    """The candidate's options: dotted path → value, as `short_options` returns it."""
    runs: tuple[RecordedRun, ...]
    """The runs, by seed."""
    figures: Mapping[str, Spread]
    """The figures that tables show and that at least one candidate has; see `figures_of`."""

    @cached_property
    def measured(self) -> list[dict[str, float]]:
        """Return the figures of each run."""
        return [figures_of(run) for run in self.runs]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Return the seeds of the runs."""
        return tuple(run.start.options.seed for run in self.runs)

    def by_seed(self, figure: str) -> dict[int, float]:
        """Return seed → figure, for the runs that have it; `figure` is its name in MLflow."""
        return {seed: own[figure] for seed, own in zip(self.seeds, self.measured, strict=True) if figure in own}

    @property
    def tested(self) -> str:
        """Return the number of test patches and of their patients, e.g. `20 of 4 patients`, with both ends if the seeds
        differ."""
        patches = _between([int(sizes.sum()) for run in self.runs if (sizes := tested_patches(run)).sum()])
        patients = [run.start.test_patients for run in self.runs]
        known = [each for each in patients if each is not None]
        return f"{patches} of {_between(known)} patients" if known and len(known) == len(patients) else patches

    def curve(self, metric: str) -> Curve:
        """Return a metric by round; `metric` is its name in MLflow."""
        runs = [values for run in self.runs if (values := _by_round(run, metric))]
        rounds = sorted(set.intersection(*map(set, runs))) if runs else []
        table = np.array([[values[round] for round in rounds] for values in runs])
        return Curve(rounds, table.reshape(len(runs), len(rounds)))

    def trust(self) -> np.ndarray:
        """Return the mean reputation of the attackers and of the others by round, over hospitals and seeds: (2,
        rounds)."""
        rounds = min(len(run.rounds) for run in self.runs)  # all have the same number, unless a journal was cut
        lines = np.vstack([run.by_client("reputation")[:, :rounds] for run in self.runs])
        attacks = np.array([client in run.attackers for run in self.runs for client in range(run.start.clients)])
        return np.array([_mean(lines[attacks]), _mean(lines[~attacks])])


@dataclass(frozen=True)
class Setting:
    """Runs with the same task: only these are ranked."""

    title: str
    """What distinguishes it from other settings, in a few words; empty if there is only one."""
    facts: str
    """What the task is, in words."""
    options: Mapping[str, str]
    """The setting's options."""
    candidates: tuple[Candidate, ...]
    """The best by balanced accuracy first."""
    columns: tuple[str, ...]
    """Dotted paths of the options that separate the candidates."""
    differing: tuple[str, ...]
    """These, and the options that only one of several alternatives has."""
    averaged: tuple[int, ...]
    """The rounds whose evaluations are averaged."""
    differences: tuple[Difference, ...]
    """Of every two candidates, for each figure of `DECIDING` that they have: the better ranked one comes first."""
    notes: tuple[str, ...]
    """What a reader must be aware of."""

    @property
    def baseline(self) -> Candidate | None:
        """Return the plain mean, if exactly one candidate is that."""
        found = [candidate for candidate in self.candidates if plain_mean(candidate.options)]
        return found[0] if len(found) == 1 else None

    def references(self) -> dict[str, Candidate]:
        """Return the candidates that others are compared with: the plain mean, if there is one, and the best."""
        if len(self.candidates) < 2:
            return {}
        best, baseline = self.candidates[0], self.baseline
        if baseline is None:
            return {"minus the best": best}
        further = baseline is not best and len(self.candidates) > 2
        return {"minus mean": baseline} | ({"minus the best": best} if further else {})

    def of(self, figure: str, ours: Candidate, theirs: Candidate) -> Estimate:
        """Return a figure of one candidate minus that of another; NaN if there is none.

        figure: its name in MLflow.
        """
        for each in self.differences:
            if each.figure == figure and {each.ours, each.theirs} == {ours.label, theirs.label}:
                value, low, high = each.estimate
                return each.estimate if each.ours == ours.label else Estimate(-value, -high, -low)
        return Estimate(math.nan)

    def sentences(self) -> list[str]:
        """Return what the differences to the references mean, one sentence for each pair and figure: first whether the
        best candidate is better than the baseline."""
        found: dict[str, None] = {}
        for figure in DECIDING:
            for reference in self.references().values():
                for candidate in self.candidates:
                    pair = {candidate.label, reference.label}
                    for each in self.differences:
                        if each.figure == figure and {each.ours, each.theirs} == pair:
                            found[each.sentence] = None
        return list(found)


@dataclass(frozen=True)
class Comparison:
    """The settings of the compared runs, those with most candidates first."""

    settings: tuple[Setting, ...]
    columns: tuple[str, ...]
    """Dotted paths of the options that separate the settings."""
    figures: Mapping[str, str]
    """Name → title of the available figures."""
    notes: tuple[str, ...]
    """Which runs were left out."""

    @property
    def candidates(self) -> list[tuple[Setting, Candidate]]:
        """Return every candidate with its setting."""
        return [(setting, candidate) for setting in self.settings for candidate in setting.candidates]

    @property
    def shared(self) -> dict[str, str]:
        """Return the options in which all runs agree."""
        every = [{**setting.options, **candidate.options} for setting, candidate in self.candidates]
        return {path: value for path, value in every[0].items() if all(own.get(path) == value for own in every)}


def compare(runs: Sequence[RecordedRun]) -> Comparison:
    """Group runs by setting and candidate; of several runs with the same options and seed, the last one counts.

    Runs that have not ended, or without any round, are left out, and a note says so. Raises `ExperimentError` if fewer
    than two are left.
    """
    ended = [run for run in runs if run.end is not None and not run.skips.untrained]
    notes = [_left_out(run) for run in runs if run.end is None or run.skips.untrained]
    options = [short_options(run.start.experiment) for run in ended]
    latest = {
        (*_frozen(own), run.start.options.seed, run.start.digest): (own, run)
        for own, run in zip(options, ended, strict=True)
    }
    if len(latest) < len(ended):
        again = len(ended) - len(latest)
        notes.append(f"{again} {'runs repeat' if again > 1 else 'run repeats'} another's seed: the last one counts")
    if len(latest) < 2:
        left = "only one run" if latest else "no run with a result" if runs else "no runs"
        raise ExperimentError(Problem("nothing to compare", found=left, hint="; ".join(notes)))
    grouped = _grouped(list(latest.values()))
    settings = [dict(key) for key in grouped]
    unlike = [dict(key) for key in dict.fromkeys(key for own in grouped.values() for key in own)]
    words = labels(unlike, [defence(own) for own in unlike])
    label_of = {_frozen(own): label for own, label in zip(unlike, words, strict=True)}
    headings = _titles(settings) if len(settings) > 1 else [""]
    every = {id(run): figures_of(run) for own in grouped.values() for members in own.values() for run in members}
    there = list(titles({name for own in every.values() for name in own}))
    if not any(own["rounds_skipped"] for own in every.values()):
        there.remove("rounds_skipped")
    made = []
    for own, heading, members in zip(settings, headings, grouped.values(), strict=True):
        candidates = [
            Candidate(
                label_of[key],
                dict(key),
                tuple(group),
                {name: Spread.of(every[id(run)].get(name) for run in group) for name in there},
            )
            for key, group in members.items()
        ]
        made.append(_setting(heading, own, candidates))
    made.sort(key=lambda setting: (-len(setting.candidates), -sum(len(each.runs) for each in setting.candidates)))
    columns, _ = telling(settings)
    return Comparison(tuple(made), columns, titles(there), tuple(notes))


_Key = tuple[tuple[str, str], ...]


def _grouped(members: Sequence[tuple[dict[str, str], RecordedRun]]) -> dict[_Key, dict[_Key, list[RecordedRun]]]:
    """Return setting → candidate → runs by seed.

    Source and split may draw their patches by the seed, so different seeds may have different data. But if two runs
    of one seed have different data, the data themselves changed, and each digest is a setting of its own.
    """
    found: dict[_Key, dict[_Key, list[RecordedRun]]] = {}
    split = [(*sides(own), run) for own, run in members]
    for setting, _, run in split:
        setting[AVERAGED] = rounds_in_words([each.round for each in averaged(run.evaluations)])
    digests: dict[tuple[_Key, int], set[str]] = defaultdict(set)
    for setting, _, run in split:
        digests[_frozen(setting), run.start.options.seed].add(run.start.digest)
    changed = {key for (key, _), own in digests.items() if len(own) > 1}
    for setting, candidate, run in sorted(split, key=lambda each: each[2].start.options.seed):
        data = {DATA: run.start.digest[:12]} if _frozen(setting) in changed else {}
        own = found.setdefault(_frozen(setting | data), {})
        own.setdefault(_frozen(candidate), []).append(run)
    return found


def _titles(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Return what distinguishes each setting; the averaged rounds only where nothing else does."""
    without = [{path: value for path, value in own.items() if path != AVERAGED} for own in settings]
    alike = len({_frozen(own) for own in without}) < len(settings)
    return labels(settings if alike else without, [""] * len(settings))


def _setting(title: str, options: Mapping[str, str], candidates: Sequence[Candidate]) -> Setting:
    """Return a setting with its ranking, differences and notes."""
    order = sorted(candidates, key=_accuracy, reverse=True)
    columns, differing = telling([each.options for each in order])
    figures = [figure for figure in DECIDING if any(each.by_seed(figure) for each in order)]
    pairs = list(combinations(order, 2))
    differences = [
        difference(
            figure,
            (ours.label, ours.by_seed(figure)),
            (theirs.label, theirs.by_seed(figure)),
            [(a, b) for a in ours.runs for b in theirs.runs if a.start.options.seed == b.start.options.seed],
            len(pairs) * len(figures),
        )
        for figure in figures
        for ours, theirs in pairs
    ]
    run = order[0].runs[0]
    rounds = tuple(each.round for each in averaged(run.evaluations))
    notes = _notes(order)
    return Setting(
        title, _facts(run), options, tuple(order), columns, differing, rounds, tuple(differences), tuple(notes)
    )


def _facts(run: RecordedRun) -> str:
    options, attackers = run.start.options, len(run.attackers)
    partition = options.data.partition
    attack = f"{options.attack}, {attackers} of {run.start.clients} hospitals" if attackers else "no attack"
    parts = [
        attack if attackers else f"{attack}, {plural(run.start.clients, 'hospital')}",
        partition.name if partition.alpha is None else f"{partition.name} {partition.alpha:g}",
        plural(len(run.rounds), "round"),
        options.protocol,
    ]
    return " · ".join(parts)


def _notes(candidates: Sequence[Candidate]) -> list[str]:
    notes = []
    if len(candidates) == 1:
        notes.append("One candidate only: nothing in this setting to compare it with")
    if len({each.seeds for each in candidates}) > 1:
        notes.append(
            "The candidates do not have the same seeds: their order may be the seeds'; differences are computed in the "
            "seeds that both have"
        )
    sizes = [found for each in candidates for run in each.runs if (found := tested_patches(run)).sum()]
    if sizes:
        fewest = min(sizes, key=lambda size: int(size.sum()))
        known = share_uncertainty(fewest[fewest > 0])
        notes.append(
            f"{plural(int(fewest.sum()), 'test patch', 'test patches')}: a figure of one run is known to ± {known:.1g} "
            "at best (95 %); patches of one patient are alike, so with few patients it is known less well"
        )
        best = candidates[0].figures.get(ACCURACY)
        chance = 1 / np.count_nonzero(fewest)
        if best is not None and best.n and at_chance(best.mean, chance):
            figures = against(best.mean, chance)
            notes.append(f"No candidate is better than chance, {figures}: nothing was learnt; {MORE} are needed")
    return notes


def _frozen(options: Mapping[str, str]) -> _Key:
    return tuple(sorted(options.items()))


def _between(numbers: Sequence[int]) -> str:
    """Return one number, or both ends."""
    ends = sorted({min(numbers), max(numbers)}) if numbers else []
    return "–".join(f"{each:,}" for each in ends) or "unknown"


def _by_round(run: RecordedRun, metric: str) -> dict[int, float]:
    found = {record.round: record.metrics.get(metric) for record in run.evaluations}
    return {round: float(value) for round, value in found.items() if value is not None}


def _mean(lines: np.ndarray) -> np.ndarray:
    """Return the mean of each column over the rows that have a figure; NaN if none has."""
    known = np.isfinite(lines)
    count, mean = known.sum(axis=0), np.full(lines.shape[1], np.nan)
    np.divide(np.where(known, lines, 0.0).sum(axis=0), count, out=mean, where=count > 0)
    return mean


def _accuracy(candidate: Candidate) -> float:
    spread = candidate.figures.get(ACCURACY)
    return spread.mean if spread is not None and spread.n else -math.inf


def _left_out(run: RecordedRun) -> str:
    name = f"run {run.start.run[:8]}"
    if run.end is not None:
        return f"{name} never changed its model and is left out; rounds skipped: {run.skips.summary(1)}"
    rounds = run.start.options.federation.rounds or "?"
    return f"{name} has not ended (round {len(run.rounds)} of {rounds}) and is left out"
