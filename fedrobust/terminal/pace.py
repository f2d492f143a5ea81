"""How long the rest of many runs will take, from those that have finished. Pure: times in, a time out."""

from __future__ import annotations

from statistics import median

FEW = 3
"""An estimate needs so many runs besides the first of each team."""


class Pace:
    """The runs that have finished in this execution, each with its duration.

    The first run of each team is not counted: it also starts actors, imports torch and reads the data.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def add(self, took: float, now: float) -> None:
        """A run has finished.

        took: its duration in seconds.
        now: the time, in seconds of any clock.
        """
        self._spans.append((now - took, now))

    def left(self, runs: int) -> float | None:
        """Return the seconds that `runs` more runs will take: the median duration, with as many teams at work as until
        now. None until a few have finished."""
        teams = self._at_once()
        counted = [end - start for start, end in self._spans[teams:]]
        if len(counted) < FEW:
            return None
        return median(counted) * max(1.0, runs / teams) if runs > 0 else 0.0

    def _at_once(self) -> int:
        """Return how many of the runs went on at the same time, at most."""
        middles = [(start + end) / 2 for start, end in self._spans]
        return max((sum(start <= now <= end for start, end in self._spans) for now in middles), default=1)


def about(seconds: float) -> str:
    """Return a duration in words, e.g. "about 2 h 05 min"."""
    minutes = max(1, round(seconds / 60))
    return f"about {minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"about {minutes} min"
