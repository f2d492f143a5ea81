"""Studies of one name with other options: their results are kept apart.

A run of a study has a name; two runs of one name with other options belong to two editions of the study. The folder of
a study holds the current edition; the folders of earlier ones stand beside it, with a number at the end. No name of a
study has a dot in it.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrobust.errors import ExperimentError, Problem
from fedrobust.studies.finished import FinishedRun, FinishedRuns
from fedrobust.studies.planned import PlannedRun
from fedrobust.texts import visible
from fedrobust.tracking import flatten

logger = logging.getLogger(__name__)

MOST = 3
"""How many changed options a message names."""
ADDED = ("only", "fresh", "screening", "worst", "backdoors", "control", "quick")
"""Options of a matrix that say which of its runs are made: with other values it is the same edition."""
NAMED = ("settings", "attacks", "defences")
"""Options whose entries have names: one more or one less changes no run of the others."""


def open_edition(
    folder: Path, file: str, settings: Path, options: Mapping[str, Any], planned: Sequence[PlannedRun], aside: bool
) -> FinishedRuns:
    """Open the finished runs in a study's folder; if they are those of another edition, put that one aside.

    folder: the study's folder.
    file: the name of the file of finished runs in it.
    settings: the file of the study's options in it, as an earlier execution wrote it.
    options: the options now, resolved.
    planned: runs that the study will make, as far as they are known before the first one.
    aside: whether the folder may get another name. Then an earlier edition with these options, if there is one, comes
        back; and finished runs of the edition that is put aside are taken over if their options are the same.

    Raises `ExperimentError` as `FinishedRuns` does, if the folder cannot be renamed, and if it has another edition and
    `aside` is False; then nothing has been changed.
    """
    finished = FinishedRuns(folder / file)
    changed = other_runs(finished.by_digest.values(), planned)
    if not changed:
        return finished
    what = _difference(folder / settings, options)
    if not aside:
        finished.close()
        reason = f"has results with other options ({what})"
        hint = "change them back, or give this one another name or folder"
        raise ExperimentError(Problem(reason, hint=hint).at(folder))
    try:
        earlier = sorted(folder.parent.glob(f"{folder.name}.*"), key=_number)
        back = next((each for each in earlier if _fits(each / file, planned)), None)
        kept = folder.with_name(f"{folder.name}.{max(map(_number, earlier), default=0) + 1}")
        folder.rename(kept)
        if back is not None:
            back.rename(folder)
    except OSError as error:
        reason = f"cannot be put aside: {error.strerror or error}"
        raise ExperimentError(Problem(reason).at(folder)) from None
    finally:
        finished.close()
    logger.warning("other options than before (%s): the earlier results are now in %s", what, visible(kept))
    if back is not None:
        logger.warning("the results with these options, which were in %s, are gone on with", visible(back))
        return FinishedRuns(folder / file)
    new = FinishedRuns(folder / file)
    names = {run.label for run in changed}
    for run in finished.by_digest.values():
        if not run.failed and run.label not in names:
            new.add(run)
    return new


def other_runs(finished: Iterable[FinishedRun], planned: Iterable[PlannedRun]) -> list[FinishedRun]:
    """Return the finished runs that have the name of a planned one, and other options; failed ones do not count."""
    made = defaultdict[str, dict[str, FinishedRun]](dict)
    for run in finished:
        if not run.failed:
            made[run.label][run.digest] = run
    names = {each.label: each.digest for each in planned if each.label in made}
    return [run for label, digest in names.items() if digest not in made[label] for run in made[label].values()]


def _fits(file: Path, planned: Sequence[PlannedRun]) -> bool:
    """Return whether an earlier edition has runs of these, and none with other options."""
    if not file.is_file():
        return False
    try:
        finished = FinishedRuns(file)
    except ExperimentError:  # damaged, or another process is at work
        return False
    finished.close()
    made = finished.by_digest
    return any(each.digest in made for each in planned) and not other_runs(made.values(), planned)


def _number(folder: Path) -> int:
    end = folder.name.rpartition(".")[2]
    return int(end) if end.isascii() and end.isdecimal() else 0


def _difference(settings: Path, options: Mapping[str, Any]) -> str:
    """Name the options that have changed since an earlier execution."""
    try:
        before = flatten(json.loads(settings.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError, AttributeError):
        before = {}
    now = flatten(dict(options))
    changed = [key for key in sorted(before.keys() | now) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key.partition(".")[0] not in ADDED]
    changed = [key for key in changed if {before.get(key), now.get(key)} != {"{}", None}]  # its parts are named
    names = [{_entry(key) for key in each} for each in (before, now)]
    changed = [key for key in changed if key.partition(".")[0] not in NAMED or _entry(key) in names[0] & names[1]]
    if not before or not changed:
        return "those of its experiment file"
    named = ", ".join(f"{key}: {before.get(key, '–')} → {now.get(key, '–')}" for key in changed[:MOST])
    return visible(named + (f", {len(changed) - MOST} more" if len(changed) > MOST else ""))


def _entry(key: str) -> tuple[str, ...]:
    return tuple(key.split(".")[:2])
