"""The stage on which duels are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dueled import DUEL, strength
from matplotlib.figure import Figure
from played import BASE, Played, staged

import fedrobust.duels.results as results
import fedrobust.studies.study as study_room


@pytest.fixture
def played(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """No Ray, no MLflow, no data; `duel.yaml` and `base.yaml` lie in the working folder. Remembers what was run."""
    Path("base.yaml").write_text(BASE)
    Path("duel.yaml").write_text(DUEL)
    stage = staged(monkeypatch)
    stage.accuracy = strength
    return stage


@pytest.fixture
def told(played: Played, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the duel's own MLflow run, whose id is `duel`, is told."""
    lines: list[dict[str, Any]] = []

    class Own(Played):
        run_id = "duel"

        def log(self, record: dict[str, Any]) -> None:
            lines.append(record)

    of_sweeps = study_room.parent_run

    @contextmanager
    def parent(*given: Any) -> Iterator[Any]:
        if "duel" not in given[3]:  # its tags
            with of_sweeps(*given) as opened:
                yield opened
            return
        lines.clear()
        yield Own()

    monkeypatch.setattr(study_room, "parent_run", parent)
    monkeypatch.setattr(results, "curve_figure", lambda *_: Figure((1, 1)))  # takes half a second
    return lines
