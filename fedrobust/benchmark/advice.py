"""Which lines of a benchmark's table answer for an experiment: those whose defence could run in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedrobust.aggregation import Aggregation
from fedrobust.benchmark.entry import classes_in, sha256_of
from fedrobust.benchmark.ranking import Ranked
from fedrobust.errors import ExperimentError
from fedrobust.experiment import Experiment
from fedrobust.trust import Trust
from fedrobust.users_code import loaded

ASIDE = 0.05
"""The share of the training patches with which is tried whether a defence could run, where none are set aside."""


@dataclass(frozen=True)
class Advice:
    """The lines that answer, each list from the most to the least robust."""

    own: Ranked | None
    """Of the experiment's own defence, if that has been measured."""
    why: str
    """Why there is none; empty if there is one."""
    possible: list[Ranked]
    """Of the defences that could run in the experiment as it is."""
    with_patches: list[Ranked]
    """Of those that could if patches were set aside for the coordinator."""


def advised(experiment: Experiment, lines: Iterable[Ranked]) -> Advice:
    """Return the lines that answer for an experiment.

    lines: as `ranked` returns them; those without a rank answer nothing, nor do those of code that is not here.
    """
    privacy = experiment.privacy
    if "rows" in privacy.reveals and not privacy.single:
        return Advice(None, f"no row was measured with the means of groups, as {privacy.name} shows them", [], [])
    here = [line for line in lines if _same_code(line)]
    known = [line for line in here if line.rank is not None]
    own, why = _own(experiment, here)
    aside = experiment.data.root.set_aside > 0
    possible = [line for line in known if _answers(experiment, line, {})]
    if aside:
        return Advice(own, why, possible, [])
    root = {"data.root": {**experiment.data.root.model_dump(), "set_aside": ASIDE}}
    # What a rule is worth whose server trains on patches of the hospitals was not measured: in all rows they are set
    # aside.
    possible = [line for line in possible if not _trains_own(line)]
    rest = [line for line in known if line not in possible]
    return Advice(own, why, possible, [line for line in rest if _answers(experiment, line, root)])


def _own(experiment: Experiment, lines: Iterable[Ranked]) -> tuple[Ranked | None, str]:
    """Return the line of the experiment's own defence, or None and why."""
    resolved = experiment.resolved()
    defence = _decisive(resolved["aggregation"], resolved["trust"])
    own = next((line for line in lines if _defence_of(line) == defence), None)
    if own is None:
        return None, "this experiment's defence has no row: fedrobust benchmark makes one (docs/benchmark.md)"
    if own.rank is None:
        lacks = next(each.lacks for each in own.settings.values() if each.lacks)
        return None, f"this experiment's defence has a row without a rank, {own.row.name}: {lacks}"
    if experiment.data.root.set_aside == 0 and _trains_own(own):
        why = "was measured with patches that no hospital has, and here its server would train on the hospitals' own"
        return None, f"this experiment's defence {why}: data.root.set_aside"
    if _in_turn(experiment):
        why = "was measured with all hypotheses of the referee in each round, and here one is opened"
        return None, f"this experiment's defence {why}"
    return own, ""


def _decisive(aggregation: Any, trust: Any) -> tuple[Any, Any]:
    """Return the options that decide which model comes out; scores that are only recorded do not."""
    decides = trust["acts"] or any(trust[name] is not None for name in ("referee", "jury", "repair"))
    return aggregation, trust if decides else None


def _defence_of(line: Ranked) -> tuple[Any, Any] | None:
    """Return the decisive options of a row, with the defaults of this version where it has none; None if they are no
    longer possible."""
    options = line.row.entry.options
    try:
        aggregation, trust = Aggregation.model_validate(options["aggregation"]), Trust.model_validate(options["trust"])
    except ValidationError:
        return None
    resolved = (each.model_dump(mode="json", serialize_as_any=True) for each in (aggregation, trust))
    return _decisive(*resolved)


def _same_code(line: Ranked) -> bool:
    """Whether the classes of the entry are those that were imported here; another class may have the same name."""
    files, code = loaded(), line.row.entry.code
    return all(
        name in files and code.get(name) == sha256_of(Path(files[name]))
        for name in {*code, *classes_in(line.row.entry.options)}
    )


def _answers(experiment: Experiment, line: Ranked, changes: Mapping[str, Any]) -> bool:
    """Whether the row's defence could run in the experiment, and would do there what was measured."""
    try:
        changed = experiment.changed({**changes, **line.row.entry.options})
    except ExperimentError:
        return False
    return not _in_turn(changed)


def _in_turn(experiment: Experiment) -> bool:
    """Whether a referee opens one hypothesis in a round because of the protocol: rows have them together."""
    referee = experiment.trust.referee
    return referee is not None and referee.openings is None and referee.in_turn(experiment.privacy.reveals)


def _trains_own(line: Ranked) -> bool:
    """Whether the server of this defence trains an update of its own."""
    return "root" in Aggregation.model_validate(line.row.entry.options["aggregation"]).pipeline().anchors
