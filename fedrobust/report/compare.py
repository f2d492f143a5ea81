"""Comparison of runs: grouped by everything but the seed, and labelled by the options that differ. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from fedrobust.errors import ExperimentError, Problem
from fedrobust.experiment import Experiment
from fedrobust.records import RecordedRun
from fedrobust.report.titles import titles

APART = ("name", "seed", "tracking", "workers")
"""Options that do not separate groups: labels, the seed, and options that cannot change a result."""


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


class Curve(NamedTuple):
    """A figure by round over seeds, for rounds in which all runs that have it were evaluated; with one seed, sd is
    0."""

    rounds: list[int]
    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed."""

    label: str
    """What distinguishes it from other groups, in a few words."""
    options: Mapping[str, str]
    """Dotted path → value, as `short_options` returns it."""
    runs: tuple[RecordedRun, ...]
    """The runs, by seed."""
    figures: Mapping[str, Spread]
    """The figures that tables show and that at least one group has, after the last round; see `final_figures`."""

    def curve(self, metric: str) -> Curve:
        """Return a metric by round; `metric` is its name in MLflow."""
        runs = [_by_round(run, metric) for run in self.runs]
        runs = [values for values in runs if values]
        rounds = sorted(set.intersection(*map(set, runs))) if runs else []
        table = np.array([[values[round] for round in rounds] for values in runs]).reshape(len(runs), len(rounds))
        spread = table.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(rounds))
        return Curve(rounds, table.mean(axis=0) if runs else np.zeros(0), spread)

    def trust(self) -> np.ndarray:
        """Return the mean reputation of the attackers and of the others by round, over hospitals and seeds: (2,
        rounds)."""
        rounds = min(len(run.rounds) for run in self.runs)  # all have the same number, unless a journal was cut
        lines = np.vstack([run.by_client("reputation")[:, :rounds] for run in self.runs])
        attacks = np.array([client in run.attackers for run in self.runs for client in range(run.start.clients)])
        return np.array([_mean(lines[attacks]), _mean(lines[~attacks])])


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, the best by balanced accuracy first."""

    columns: tuple[str, ...]
    """Dotted paths of the options that separate the groups."""
    differing: tuple[str, ...]
    """These, and the options that only one of several alternatives has."""
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """What a reader must be aware of: runs that were left out, groups with different seeds."""

    @property
    def figures(self) -> dict[str, str]:
        """Return name → title of the available figures."""
        return titles(self.groups[0].figures)

    @property
    def shared(self) -> dict[str, str]:
        """Return the options in which all runs agree."""
        return {path: value for path, value in self.groups[0].options.items() if path not in self.differing}


def compare(runs: Sequence[RecordedRun]) -> Comparison:
    """Group runs by everything but the seed; of several runs with the same options and seed, the last one counts.

    Runs that have not ended, or without any round, are left out, and a note says so. Raises `ExperimentError` if fewer
    than two are left.
    """
    ended = [run for run in runs if run.end is not None and not run.skips.untrained]
    notes = [_left_out(run) for run in runs if run.end is None or run.skips.untrained]
    options = [short_options(run.start.experiment) for run in ended]
    latest = {
        (tuple(sorted(own.items())), run.start.options.seed): (own, run)
        for own, run in zip(options, ended, strict=True)
    }
    if len(latest) < len(ended):
        again = len(ended) - len(latest)
        notes.append(f"{again} {'runs repeat' if again > 1 else 'run repeats'} another's seed: the last one counts")
    if len(latest) < 2:
        left = "only one run" if latest else "no run with a result" if runs else "no runs"
        raise ExperimentError(Problem("nothing to compare", found=left, hint="; ".join(notes)))
    grouped: dict[tuple[tuple[str, str], ...], list[tuple[dict[str, str], RecordedRun]]] = {}
    for (key, _), member in sorted(latest.items(), key=lambda item: item[0][1]):
        grouped.setdefault(key, []).append(member)
    all_options = [members[0][0] for members in grouped.values()]
    columns, differing = telling(all_options)
    labels = _labels(all_options, columns, [members[0][1] for members in grouped.values()])
    values = {id(run): final_figures(run) for _, run in latest.values()}
    there = list(titles({name for own in values.values() for name in own}))
    if not any(own["rounds_skipped"] for own in values.values()):
        there.remove("rounds_skipped")
    groups = []
    for own, members, label in zip(all_options, grouped.values(), labels, strict=True):
        group = tuple(run for _, run in members)
        spreads = {name: Spread.of(values[id(run)].get(name) for run in group) for name in there}
        groups.append(Group(label, own, group, spreads))
    seeds = {tuple(run.start.options.seed for run in group.runs) for group in groups}
    if len(seeds) > 1:
        notes.append("the groups do not have the same seeds, so part of a difference may be the seeds'")
    return Comparison(columns, differing, tuple(sorted(groups, key=_accuracy, reverse=True)), tuple(notes))


def short_options(experiment: Mapping[str, Any]) -> dict[str, str]:
    """Return the options by dotted path, without those of `APART`; an object with a name is listed at its own path by
    that name.

    experiment: all options, nested as in an experiment file.

    So they look like overrides: `aggregation.rule: krum`, `aggregation.stages: [clip, nnm]`, `attacks.0.scale: 4.0`.
    Options newer than the run have their defaults.
    """
    try:
        experiment = Experiment.model_validate(experiment).resolved()
    except ValidationError:  # from another version, or with classes that are not available
        experiment = dict(experiment)
    return _short({key: value for key, value in experiment.items() if key not in APART}, "")


def telling(groups: Sequence[Mapping[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the paths of the options that separate the groups, and the paths of all options that differ.

    groups: the options of each group, as `short_options` returns them.

    If some groups lack an option, the name of the object that has it is enough, unless groups with the same name differ
    in the option.
    """
    paths = dict.fromkeys(path for group in groups for path in group)
    differing = tuple(path for path in paths if len({group.get(path) for group in groups}) > 1)
    return tuple(path for path in differing if not _told(path, groups, differing)), differing


def _told(path: str, groups: Sequence[Mapping[str, str]], differing: Sequence[str]) -> bool:
    if all(path in group for group in groups):
        return False
    parts = path.split(".")
    for above in (".".join(parts[:count]) for count in range(1, len(parts))):
        if above in differing:
            values: dict[str | None, set[str | None]] = {}
            for group in groups:
                values.setdefault(group.get(above), set()).add(group.get(path))
            if all(len(found) == 1 for found in values.values()):
                return True
    return False


def final_figures(run: RecordedRun) -> dict[str, float]:
    """Return the figures of a run that tables show: those after the last round, the number of skipped rounds, and the
    bytes of all updates together."""
    uploaded = [record.upload_bytes for record in run.rounds if record.upload_bytes is not None]
    found = run.final | {"rounds_skipped": float(run.skips.skipped)}
    if uploaded:
        found["upload_bytes"] = float(sum(uploaded))
    return {name: value for name in titles(found) if (value := found[name]) is not None}


def shown(figure: str, spread: Spread, runs: int) -> str:
    """Return `0.912 ± 0.004` as tables show it, with the number of seeds if it differs from the group's.

    figure: its name.
    spread: its values over the seeds.
    runs: number of runs of the group.
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


def _short(options: Mapping[str, Any], prefix: str) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in options.items():
        path = f"{prefix}{key}"
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Mapping) for item in value):
            flat[path] = f"[{', '.join(str(item.get('name', '…')) for item in value)}]"
            for index, item in enumerate(value):
                flat |= _short({key: option for key, option in item.items() if key != "name"}, f"{path}.{index}.")
        elif isinstance(value, Mapping) and value:
            if "name" in value:
                flat[path] = str(value["name"])
            flat |= _short({key: option for key, option in value.items() if key != "name"}, f"{path}.")
        else:
            flat[path] = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return flat


def _labels(groups: Sequence[Mapping[str, str]], columns: Sequence[str], runs: Sequence[RecordedRun]) -> list[str]:
    """Return what distinguishes each group; numbers are added if the columns alone do not make the labels distinct."""
    labels = []
    for group, run in zip(groups, runs, strict=True):
        words = [_word(path, group[path]) for path in columns if path in group]
        options = run.start.options
        labels.append(" · ".join(words) or f"{options.attack} against {options.defence}")
    return [f"{label} ({labels[: place + 1].count(label)})" if labels.count(label) > 1 else label
            for place, label in enumerate(labels)]  # fmt: skip


def _word(path: str, value: str) -> str:
    last = path.split(".")[-1]
    if value == "[]":
        return f"no {last}"
    if value.startswith("[") and value[1:2].isalpha():
        return value[1:-1]
    return value if value[:1].isalpha() and value not in ("true", "false", "null") else f"{last} {value}"


def _by_round(run: RecordedRun, metric: str) -> dict[int, float]:
    found = {record.round: record.metrics.get(metric) for record in run.evaluations}
    return {round: float(value) for round, value in found.items() if value is not None}


def _mean(lines: np.ndarray) -> np.ndarray:
    """Return the mean of each column over the rows that have a figure; NaN if none has."""
    known = np.isfinite(lines)
    count, mean = known.sum(axis=0), np.full(lines.shape[1], np.nan)
    np.divide(np.where(known, lines, 0.0).sum(axis=0), count, out=mean, where=count > 0)
    return mean


def _accuracy(group: Group) -> float:
    spread = group.figures.get("test/balanced_accuracy")
    return spread.mean if spread is not None and spread.n else -math.inf


def _left_out(run: RecordedRun) -> str:
    name = f"run {run.start.run[:8]}"
    if run.end is not None:
        return f"{name} never changed its model and is left out; rounds skipped: {run.skips.summary(1)}"
    rounds = run.start.options.federation.rounds or "?"
    return f"{name} has not ended (round {len(run.rounds)} of {rounds}) and is left out"
