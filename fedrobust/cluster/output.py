"""The output of a job: what of it is shown, and what it tells about the job's progress. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fedrobust.job import MARK
from fedrobust.texts import visible

LAST = 20
"""Number of finished items from which the remaining time is estimated."""


@dataclass(frozen=True)
class JobProgress:
    """How far a job is, and where its results are."""

    done: int | None = None
    """Number of finished items; None if the job has not said so."""
    of: int | None = None
    what: str = ""
    """The items: `cells`, `trials` or `rounds`."""
    left: float | None = None
    """Estimate of the remaining seconds when the job last told its progress."""
    at: float = math.nan
    """When that was, in seconds since 1970."""
    folder: str = ""
    """The absolute path of the results on the job's node."""
    parent: str = ""
    """The id in MLflow of the study to which they belong; empty for a single run."""

    def shown(self, now: float) -> str:
        """Return a text such as `31/60 cells, 4 min left`; an empty one if nothing is known.

        now: the current time, in seconds since 1970.
        """
        if self.done is None:
            return ""
        counted = f"{self.done}/{self.of} {self.what}" if self.of is not None else f"{self.done} {self.what}"
        if self.left is None or self.done == self.of:
            return counted
        minutes = math.ceil(max(0.0, self.left - max(0.0, now - self.at)) / 60)
        if minutes == 0:
            return f"{counted}, soon done"
        return f"{counted}, {f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{minutes} min'} left"


def progress(output: str) -> JobProgress:
    """Return what a job has told in its whole `output`; lines that cannot be read do not count."""
    done: int | None = None
    of: int | None = None
    what, folder, parent = "", "", ""
    steps = list[tuple[int, float]]()
    for line in output.splitlines():
        told = _told(line)
        if isinstance(told.get("folder"), str):
            folder, parent = visible(told["folder"]), visible(told.get("parent", ""))
        count, at = _count(told.get("done")), told.get("at")
        if count is None or not isinstance(at, int | float) or not math.isfinite(at):
            continue
        if steps and count < steps[-1][0]:  # the next of several searches
            steps.clear()
        done, of, what = count, _count(told.get("of")), visible(told.get("what", ""))
        steps.append((count, float(at)))
    return JobProgress(done, of, what, _left(steps, of), steps[-1][1] if steps else math.nan, folder, parent)


def shown(pieces: Iterable[str], hidden: str) -> Iterator[str]:
    """Yield the pieces of a job's output as users see them: without the lines that tell its progress, and without
    `hidden`, Ray's line with the job's shell script. Whatever may be the beginning of either waits for the next
    piece."""
    kept, found = "", False
    for piece in pieces:
        kept += piece
        if not found and hidden in kept:
            before, _, after = kept.partition(hidden)
            kept, found = before + after, True
        waiting = "" if found else _end(kept, hidden)
        ready, kept = kept[: len(kept) - len(waiting)], waiting
        *lines, last = ready.splitlines(keepends=True) or [""]
        if not last.endswith("\n") and (MARK.startswith(last) or last.startswith(MARK)):
            kept = last + kept
        else:
            lines.append(last)
        if text := "".join(line for line in lines if not line.startswith(MARK)):
            yield text
    if kept and not kept.startswith(MARK):
        yield kept


def _end(text: str, hidden: str) -> str:
    """Return the longest end of `text` with which `hidden` begins."""
    for length in range(min(len(text), len(hidden)), 0, -1):
        if hidden.startswith(text[-length:]):
            return text[-length:]
    return ""


def _told(line: str) -> dict[str, object]:
    if not line.startswith(MARK):
        return {}
    try:
        found = json.loads(line.removeprefix(MARK))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _left(steps: list[tuple[int, float]], of: int | None) -> float | None:
    """Return the remaining seconds at the speed of the last finished items; None if there is no estimate yet."""
    if of is None or len(steps) < 2:
        return None
    (first, began), (last, ended) = steps[-LAST - 1 :][0], steps[-1]
    return None if last <= first else (ended - began) / (last - first) * max(0, of - last)
