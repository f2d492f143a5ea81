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

import fedrobust.duel.results as results
import fedrobust.duel.running as running


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

    @contextmanager
    def parent(*_: Any) -> Iterator[Played]:
        lines.clear()
        yield Own()

    monkeypatch.setattr(running, "parent_run", parent)
    monkeypatch.setattr(results, "curve_figure", lambda *_: Figure((1, 1)))  # takes half a second
    return lines
