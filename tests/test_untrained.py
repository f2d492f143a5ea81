"""Runs in which rounds are skipped: some of them, or all, so that nothing was learnt."""

from __future__ import annotations

import json
import math
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from refused import refused
from tiny import run

import fedrobust
from fedrobust import cli
from fedrobust.audit.verification import verify_all
from fedrobust.errors import FederationError, UntrainedError
from fedrobust.federation.hosts import TrainedUpdates
from fedrobust.federation.pool import Pool
from fedrobust.federation.rounds import explained
from fedrobust.records import read_run
from fedrobust.runner import run as run_experiment

pytestmark = pytest.mark.usefixtures("in_place")

DIVERGED = ["learning.local.optimizer.lr=1.0e+30", "attacks=[]", "federation.rounds=3"]
TOO_FEW = [
    "federation={clients: 4, rounds: 2}",
    "attacks=[]",
    "aggregation={stages: [], rule: geometric_median}",
    "privacy={name: shares, min_support: 4}",
]
"""The weights of a geometric median of four lie on fewer than four updates, which the servers do not open."""


def untrained(*options: str, pool: Pool) -> tuple[Path, str]:
    """A run in which no round is made: its folder, and what is said of it."""
    before = set(Path("mlruns/runs").glob("*"))
    with pytest.raises(UntrainedError) as error:
        run(*options, pool=pool)
    (folder,) = set(Path("mlruns/runs").iterdir()) - before
    return folder, str(error.value)


@pytest.mark.slow
def test_a_run_whose_updates_are_all_rejected_fails_and_says_why(pool: Pool) -> None:
    import mlflow

    folder, told = untrained(*DIVERGED, "tracking={model: true, register: initial}", pool=pool)
    reason = "0 of 8 updates were usable, below the quorum of 0.5 (not finite: 8)"
    assert f"no round changed the model; rounds skipped: 3 of 3: in 3 rounds: {reason}" in told
    assert "Lower learning.local.optimizer.lr" in told and "\n" not in told and "--resume" not in told
    recorded = read_run(folder)
    assert [record.suspected for record in recorded.rounds] == [(), (), ()]
    assert len({record.model for record in (recorded.start, *recorded.rounds)}) == 1
    assert recorded.end is not None and recorded.end.final["rounds_skipped"] == 3

    verdict = verify_all(folder)
    assert (verdict.broken, verdict.rounds, verdict.skipped) == ("", 3, 3)
    page = (folder / "report.html").read_text()
    assert "No round changed the model" in page and reason in page and "nobody was judged" in page
    assert "suspected, wrongly" not in page and "balanced accuracy</span>" not in page

    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    assert client.get_run(folder.name).info.status == "FAILED"
    for name, value in (("round/skipped", 1.0), ("round/rejected", 8.0)):
        history = client.get_metric_history(folder.name, name)
        assert [(point.step, point.value) for point in history] == [(1, value), (2, value), (3, value)]
    assert not client.search_registered_models()  # the initial model is no later version of anything

    with pytest.raises(UntrainedError, match="no round"):
        run(*DIVERGED, resume=folder.name, pool=pool)
    assert read_run(folder).records == recorded.records
    assert client.get_run(folder.name).info.status == "FAILED"


def test_a_run_whose_protocol_refuses_every_round_fails_and_says_why(pool: Pool) -> None:
    folder, told = untrained(*TOO_FEW, pool=pool)
    assert "rounds skipped: 2 of 2: in " in told and "at least 4 are needed" in told
    assert "It was foreseen (privacy: with 4 updates the weights of geometric_median lie on" in told
    assert "use aggregation.rule=multi_krum" in told and "the user was warned" not in told
    page = (folder / "report.html").read_text()
    assert "The user was warned before the run: privacy: with 4 updates" in page
    assert "No hospital has a weight, because every round was skipped." in page


def test_where_training_diverges_behind_a_protocol_the_reason_says_so(pool: Pool) -> None:
    _, told = untrained(*DIVERGED, "privacy=shares", pool=pool)
    assert "its shares did not reach every server: 8" in told and "training loss not finite: 8" in told
    assert "Lower learning.local.optimizer.lr" in told


def test_the_command_ends_with_an_error_of_one_line(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("sys.argv", ["fedrobust", "run", "tiny.yaml", "tracking.model=false", *DIVERGED])
    monkeypatch.setattr("fedrobust.runner.run", partial(run_experiment, pool=pool))
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 1
    told = capfd.readouterr()
    (error,) = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert "3 of 3" in error and "not finite: 8" in error
    assert "balanced accuracy" not in told.out and "suspected" not in told.out


def test_a_run_that_lost_some_rounds_has_a_result_that_says_so(pool: Pool) -> None:
    """Three hospitals of eight stay away in every second round: the f = 3 that is declared cannot be kept there."""
    schedule = "{name: on_off, on: 1, off: 1}"
    found: fedrobust.Result = run(
        f"attacks=[{{name: absent, count: 3, schedule: {schedule}}}]",
        "aggregation={rule: trimmed_mean, f: 3}",
        "federation.rounds=4",
        pool=pool,
    )
    reason = "trimmed_mean needs n ≥ 2f + 1: n = 5, f = 3; largest f here: 2"
    assert [record.get("skipped") for record in found.rounds] == [reason, None, reason, None]
    assert [record.get("f") for record in found.rounds] == [None, 3, None, 3]
    assert found.final["rounds_skipped"] == 2
    assert f"Rounds skipped: 2 of 4: in 2 rounds: {reason}" in (found.folder / "report.html").read_text()
    assert json.loads(json.dumps(found.final)) == found.final


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["aggregation={rule: trimmed_mean, f: 3}"], {"path": "aggregation.f", "found": "3", "says": "n = 5"}),
        (["federation.quorum=0.7"], {"path": "federation.quorum", "found": "0.7", "says": "5 of 8"}),
    ],
)
def test_hospitals_that_never_come_are_told_before_anything_starts(options: list[str], problem: dict[str, Any]) -> None:
    with refused(**problem):
        fedrobust.load("tiny.yaml", ["attacks=[{name: absent, count: 3}]", *options])


def test_where_all_that_were_drawn_are_absent_the_reason_is_not_the_deadline(pool: Pool) -> None:
    with pytest.raises(FederationError, match="absent"):
        run(
            "attacks=[{name: absent, count: 7}]",
            "aggregation={rule: mean, f: 0}",
            "federation={clients: 8, rounds: 8, participation: 0.1}",
            pool=pool,
        )


def test_a_reason_names_who_was_late_and_whose_training_diverged() -> None:
    updates = TrainedUpdates(losses={0: 0.5, 1: math.nan, 2: math.inf}, late=[3])
    assert explained("below the quorum", updates) == ", late: 1, training loss not finite: 2"
    assert explained("below the quorum (not finite: 2)", updates) == ", late: 1"
    assert explained("krum needs more", TrainedUpdates(losses={0: 0.5})) == ""
