"""Whole runs whose timeline is recorded: the same bits, a trace of every process, and resumed with and without."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny import ended_again, journal_without_seconds, run
from traced import checked
from typer.testing import CliRunner

import fedrobust
from fedrobust import runner
from fedrobust.audit.verification import verify_all
from fedrobust.cli import app
from fedrobust.federation.pool import Pool
from fedrobust.figures.timeline import COLOURS
from fedrobust.records import Record
from fedrobust.records.trace import TRACE

pytestmark = [pytest.mark.usefixtures("in_place"), pytest.mark.slow]
ROUNDS = "federation.rounds=4"
GUIDE = (Path(__file__).parent.parent / "docs" / "profile.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def plain(place: Path, pool: Pool) -> fedrobust.Result:
    """The run without a timeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        return run(ROUNDS, pool=pool)


def test_a_timeline_of_every_process_that_changes_no_bit(plain: fedrobust.Result, pool: Pool) -> None:
    found = run(ROUNDS, "tracking.profile=true", pool=pool)
    assert journal_without_seconds(found) == journal_without_seconds(plain)
    assert not (plain.folder / TRACE).exists() and not (plain.folder / "figures/timeline.png").exists()
    lanes = checked(found.folder / TRACE)
    assert list(lanes) == ["driver", "client actor 0", "client actor 1", "adversary", "coordinator", "MLflow"]
    assert [event["args"]["round"] for event in lanes["driver"] if event["name"] == "round"] == [1, 2, 3, 4]
    assert [event["args"]["round"] for event in lanes["coordinator"] if event["name"] == "round"] == [1, 2, 3, 4]
    assert [event["args"]["round"] for event in lanes["adversary"] if event["name"] == "craft"] == [3, 4]  # a sleeper
    for actor in (0, 1):
        names = [event["name"] for event in lanes[f"client actor {actor}"]]
        assert names.count("train") == 4 and names.count("hospital") == 16 and names.count("evaluate") == 4
    inside = {event["name"] for event in lanes["coordinator"]}
    assert {"receive", "Gram matrix", "scores", "weights", "aggregate", "server step"} <= inside
    assert TRACE in verify_all(found.folder).files and (found.folder / "figures/timeline.png").exists()
    assert not verify_all(found.folder).broken and 'id="timeline"' in (found.folder / "report.html").read_text()


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True)])
def test_a_run_is_resumed_with_and_without(plain: fedrobust.Result, pool: Pool, first: bool, then: bool) -> None:
    before = set(Path("mlruns/runs").iterdir())

    def stop(record: Record) -> None:
        if record.kind == "round" and record.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ROUNDS, f"tracking.profile={first}", hooks=[stop], pool=pool)
    (folder,) = set(Path("mlruns/runs").iterdir()) - before
    assert (folder / TRACE).exists() == first
    resumed = ended_again([ROUNDS, f"tracking.profile={then}"], before, pool)
    assert resumed.final["model_sha256"] == plain.final["model_sha256"] and (folder / TRACE).exists() == then
    assert not verify_all(folder).broken
    if then:
        lanes = checked(folder / TRACE)
        assert [event["args"]["round"] for event in lanes["driver"] if event["name"] == "round"] == [3, 4]
        (folder / "audit.seal").unlink()  # nobody can say whether it is the one that was written
        run(ROUNDS, resume=folder.name, pool=pool)
        assert not (folder / TRACE).exists() and not verify_all(folder).broken


def test_the_flag_sets_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[fedrobust.Experiment] = []

    def stands_in(experiment: fedrobust.Experiment, **_: object) -> fedrobust.Result:
        seen.append(experiment)
        raise fedrobust.ExperimentError("enough")

    monkeypatch.setattr("fedrobust.runner.run", stands_in)
    for words in ([], ["--profile"], ["--profile", "seed=6"]):
        CliRunner().invoke(app, ["run", "tiny.yaml", *words])
    assert [each.tracking.profile for each in seen] == [False, True, True] and seen[2].seed == 6


def test_the_guide_runs_as_written(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a smaller quickstart, and on the tests' actors."""
    (commands,) = re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    real = runner.run

    def smaller(experiment: fedrobust.Experiment, **options: Any) -> fedrobust.Result:
        small = {"federation.rounds": 3, "data.source.patients": 20, "tracking.model": False}
        return real(experiment.changed(small), pool=pool, **options)

    monkeypatch.setattr(runner, "run", smaller)
    shown = ""
    for line in commands.splitlines():
        command, *words = shlex.split(line)
        done = CliRunner().invoke(app, words)
        assert command == "fedrobust" and done.exit_code == 0, done.output
        shown += done.output
    assert "the median:" in shown and "wait for training" in shown and TRACE in shown
    exec(compile(code, "profile.md", "exec"), {})
    hospital, seconds, _ = capsys.readouterr().out.split()
    assert 0 <= int(hospital) < 10 and 0 < float(seconds) < 60


def test_the_guide_names_every_step() -> None:
    named = set(re.findall(r"`([^`]+)`", GUIDE.split("## Read the picture")[1].split("## Read the table")[0]))
    assert set(COLOURS) - {"start the next training"} <= named
