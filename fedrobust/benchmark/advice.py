"""Which lines of a benchmark's table answer for an experiment: those whose defence could run in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedrobust.aggregation import Aggregation
from fedrobust.benchmark.ranking import Ranked
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment

ASIDE = 0.05
"""The share of the training patches with which is tried whether a defence could run, where none are set aside."""


@dataclass(frozen=True)
class Advice:
    """The lines that answer, each list from the most to the least robust."""

    own: Ranked | None
    """Of the experiment's own defence, if that has been measured."""
    possible: list[Ranked]
    """Of the defences that could run in the experiment as it is."""
    with_patches: list[Ranked]
    """Of those that could if patches were set aside for the coordinator."""


def advised(experiment: Experiment, lines: Iterable[Ranked]) -> Advice:
    """Return the lines that answer for an experiment.

    lines: as `ranked` returns them; those without a rank answer nothing.
    """
    known = [line for line in lines if line.rank is not None]
    defence = _decisive(experiment.resolved())
    own = next((line for line in known if _decisive(line.row.entry.options) == defence), None)
    aside = experiment.data.root.set_aside > 0
    possible = [line for line in known if _runs(experiment, line, {})]
    if aside:
        return Advice(own, possible, [])
    root = {"data.root": {**experiment.data.root.model_dump(), "set_aside": ASIDE}}
    # What a rule is worth whose server trains on patches of the hospitals was not measured: in all rows they are set
    # aside.
    possible = [line for line in possible if not _trains_own(line)]
    rest = [line for line in known if line not in possible]
    own = None if own is not None and _trains_own(own) else own
    return Advice(own, possible, [line for line in rest if _runs(experiment, line, root)])


def _decisive(options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the options that decide which model comes out; scores that are only recorded do not."""
    trust = options["trust"]
    decides = trust["acts"] or any(trust[name] is not None for name in ("referee", "jury", "repair"))
    return options["aggregation"], trust if decides else None


def _runs(experiment: Experiment, line: Ranked, changes: Mapping[str, Any]) -> bool:
    try:
        experiment.changed({**changes, **line.row.entry.options})
    except ExperimentError:
        return False
    return True


def _trains_own(line: Ranked) -> bool:
    """Whether the server of this defence trains an update of its own."""
    return "root" in Aggregation.model_validate(line.row.entry.options["aggregation"]).pipeline().anchors
