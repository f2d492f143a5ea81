"""The stage on which sweeps are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from played import BASE, SWEEP, Played

import fedrobust.parallel as parallel
import fedrobust.tuning.running as running
from fedrobust.tuning.files import write_trials
from fedrobust.tuning.study import SweepStudy
from fedrobust.tuning.sweep import Plan
from fedrobust.tuning.views import View


@pytest.fixture
def played(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Played:
    """No Ray, no MLflow, no data; `sweep.yaml` and `base.yaml` lie in the working folder."""
    Path("base.yaml").write_text(BASE)
    Path("sweep.yaml").write_text(SWEEP)
    stage = Played()

    @contextmanager
    def parent(folder: Path, *_: Any) -> Iterator[Played]:
        journal = _[-1]
        stage.told += journal[len(stage.told) :]
        yield stage

    def table(folder: Path, plan: Plan, study: SweepStudy) -> None:
        write_trials(folder / "trials.csv", View.of(plan, study))

    monkeypatch.setattr(running, "write_study", table)  # pictures take a second
    monkeypatch.setattr(parallel, "run", stage.run)
    monkeypatch.setattr(parallel, "hospitals_of", lambda experiment: None)
    monkeypatch.setattr(running, "parent_run", parent)
    return stage
