"""Runs that are part of a study: when they have a team of actors, and when the next one gets it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import run

import fedrobust.runner as runner
from fedrobust.errors import Stop
from fedrobust.federation.pool import Pool
from fedrobust.naming import Part

pytestmark = pytest.mark.usefixtures("in_place")


def test_a_part_gives_its_team_back_when_the_last_evaluation_is_there(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next run trains while this one is sealed. A run that is no longer wanted is not begun."""
    free, sealed, parent = list[int](), runner.seal_files, run("federation.rounds=1", pool=pool).run_id

    def sealing(*arguments: Any) -> None:
        free.append(pool._free.qsize())
        sealed(*arguments)

    def unwanted() -> None:
        raise Stop("no longer wanted")

    monkeypatch.setattr(runner, "seal_files", sealing)
    assert run("federation.rounds=1", pool=pool, part=Part(parent, {})).stopped is None
    assert free == [pool.teams]
    before, part = set(Path("mlruns/runs").iterdir()), Part(parent, {}, go_on=unwanted)
    with pytest.raises(Stop, match="no longer"):
        run(pool=pool, part=part)
    assert part.opened == [] and set(Path("mlruns/runs").iterdir()) == before
    assert pool._free.qsize() == pool.teams
