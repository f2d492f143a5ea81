"""What the command line shows."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nasty import NAMES
from reported import compared, journal, recorded
from rich.console import Console

from fedrobust import cli
from fedrobust.audit.verification import Verdict
from fedrobust.cluster import Job
from fedrobust.duels.results import Turn
from fedrobust.duels.running import DuelResult
from fedrobust.experiment import Experiment
from fedrobust.intervals import Estimate
from fedrobust.matrices.results import DefenceSummary
from fedrobust.matrices.running import MatrixResult
from fedrobust.records import EvaluationRecord, RecordedRun, RoundRecord
from fedrobust.report import compare
from fedrobust.result import Result
from fedrobust.studies.finished import FinishedRun
from fedrobust.terminal import (
    DuelProgress,
    MatrixProgress,
    Progress,
    SweepProgress,
    families,
    lists,
    show_comparison,
    show_duel,
    show_jobs,
    show_machine,
    show_matrix,
    show_options,
    show_result,
    show_sweep,
    show_verdict,
)
from fedrobust.texts import visible
from fedrobust.tuning import Objective
from fedrobust.tuning.again import Fresh
from fedrobust.tuning.running import SweepResult
from fedrobust.tuning.study import Completed, Failed, Trial


@pytest.fixture
def out() -> Console:
    return Console(record=True, width=120, highlight=False)


def test_list_names_every_option_with_a_line_about_it(out: Console) -> None:
    show_options(out)
    shown = out.export_text()
    found = families()
    assert {"npz", "idc", "folder", "medmnist", "pcam", "camelyon17", "histology"} <= set(found["data.source"])
    assert {"iid", "dirichlet", "shards", "quantity", "by_group", "by_centre"} <= set(found["data.partition"])
    for family, options in found.items():
        assert family in shown
        for name, option in options.items():
            assert f" {name} " in shown
            assert (option.__doc__ or "").split()[0] in shown, f"{name} has no docstring"


def test_doctor_says_what_is_here(out: Console, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (workplace / "mlruns").mkdir()
    monkeypatch.setenv("FEDROBUST_DATA", str(workplace / "nowhere"))
    show_machine(out)
    shown = out.export_text()
    for word in (
        "cores",
        "memory",
        "GPUs",
        "Python",
        "ray",
        "MLflow store",
        "made by the first run",
        "data: npz",
        "not found",
    ):
        assert word in shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:secret@127.0.0.1:5001")
    show_machine(out)
    assert "http://127.0.0.1:5001" in (shown := out.export_text()) and "secret" not in shown


def test_doctor_says_what_limits_this_process(out: Console, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "core_limits", lambda: {"machine": 64.0, "affinity": 8.0, "cgroup": 1.5})
    monkeypatch.setattr(lists, "usable_cores", lambda: 1)
    monkeypatch.setattr(lists, "memory_limits", lambda: {"machine": 2**37, "cgroup": 2**32})
    show_machine(out)
    shown = out.export_text()
    assert "1 of 64 (cgroup: 1.5)" in shown
    assert "4 GiB of 128 (cgroup: 4)" in shown


@pytest.mark.parametrize(
    ("suspected", "told"),
    [
        ([3], "rightly hospital 3; not suspected: hospital 5"),
        ([3, 4, 5], "rightly hospital 3, hospital 5; wrongly hospital 4"),
        ([], "not suspected: hospital 3, hospital 5"),
    ],
)
def test_the_table_tells_who_was_suspected_and_rightly_so(out: Console, suspected: list[int], told: str) -> None:
    final = {"test/accuracy": 0.5, "test/balanced_accuracy": 0.25, "attack/success_rate": 0.125}
    attackers = {3: "sign_flip", 5: "ipm"}
    show_result(out, Result("abc", "a[/b] name", Path("mlruns/runs/abc"), skipping(), final, attackers, suspected))
    shown = out.export_text()
    assert "a[/b] name" in shown
    for word in (told, "0.250", "0.125", "3 (sign_flip), 5 (ipm)", "abc", "fedrobust ui"):
        assert word in shown, shown


@pytest.mark.parametrize("acts", [True, False])
def test_suspicion_that_does_not_act_is_recorded_only_and_the_protocol_is_named(out: Console, acts: bool) -> None:
    records = journal()
    records[0]["experiment"] |= {"trust": {"acts": acts}, "privacy": {"name": "masked"}}
    show_result(out, Result("abc", "name", Path("mlruns/runs/abc"), recorded(records), {}, {}, []))
    shown = re.sub(r"[\s│]+", " ", out.export_text())
    assert ("suspected (recorded only)" in shown) != acts and "protocol masked" in shown


def skipping(*reasons: str | None) -> RecordedRun:
    """A run with a round for each reason, skipped for it; None: not skipped."""
    rounds = [{"kind": "round", "round": number, "participants": []} for number in range(1, len(reasons) + 1)]
    told = [own if why is None else own | {"skipped": why} for own, why in zip(rounds, reasons, strict=True)]
    return recorded([journal()[0], *told])


def test_the_table_tells_how_many_rounds_were_skipped_and_why(out: Console) -> None:
    reasons = ["a[/b]", "other", "a[/b]", None, None]
    show_result(out, Result("abc", "name", Path("mlruns/runs/abc"), skipping(*reasons), {}, {}, []))
    assert "3 of 5: in 2 rounds: a[/b]; in 1 round: other" in out.export_text()
    show_result(out, Result("abc", "name", Path("mlruns/runs/abc"), skipping(None, None), {}, {}, []))
    assert "none of 2" in out.export_text()


@pytest.mark.parametrize(
    ("privacy", "told"),
    [
        ({"name": "clear"}, None),
        ({"name": "masked"}, None),
        ({"name": "shares"}, "shares, real secrets"),
        (
            {"name": "replicated", "randomness": "seed"},
            "replicated, not secret: all secrets come from the experiment's",
        ),
    ],
)
def test_the_table_tells_whether_secrets_are_any(out: Console, privacy: dict[str, str], told: str | None) -> None:
    experiment = Experiment.model_validate({"privacy": privacy, "federation": {"clients": 10}})
    show_result(out, Result("abc", "name", Path("mlruns/runs/abc"), skipping(), {}, {}, []), experiment)
    shown = re.sub(r"[\s│]+", " ", out.export_text())
    assert "protocol" in shown and ("secret" in shown) == (told is not None) and (told or "") in shown


def test_the_bar_tells_of_skipped_rounds_and_not_of_the_initial_models_figures() -> None:
    out = Console(file=io.StringIO(), width=120, force_terminal=False)
    metrics = {"test/balanced_accuracy": 0.5}
    with Progress(out, Experiment.model_validate({"federation": {"rounds": 3}})) as progress:
        for number, more in ((1, {"skipped": "not [finite]"}), (2, {"skipped": "late"}), (3, {})):
            progress.on_record(RoundRecord.of({"round": number, "participants": []} | more))
            if number > 1:
                progress.on_record(EvaluationRecord.of({"round": number - 1, "metrics": metrics}))
        assert "2 skipped" in str(progress._bar.tasks[0].description)
        progress.on_record(EvaluationRecord.of({"round": 3, "metrics": metrics}))
    assert isinstance(out.file, io.StringIO)
    assert [line for line in out.file.getvalue().splitlines() if line.startswith("round")] == [
        "round 1/3 skipped: not [finite]",
        "round 2/3 skipped: late",
        "round 1/3: no round made yet",
        "round 2/3: no round made yet",
        "round 3/3: balanced accuracy 0.500",
    ]


@pytest.mark.parametrize(("skipped", "told"), [(0, "0 of 4"), (1, "1 of 4"), (4, "4 of 4; no round changed the model")])
def test_an_audit_tells_how_many_rounds_were_skipped(out: Console, skipped: int, told: str) -> None:
    show_verdict(out, Verdict("r1", 10, "head", "key", 4, True, skipped), None)
    (line,) = [line for line in out.export_text().splitlines() if "rounds skipped" in line]
    assert line.strip(" │").endswith(told)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_ends_without_a_traceback(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("fedrobust.terminal.show_machine", lambda out: os.kill(os.getpid(), number))
    monkeypatch.setattr("sys.argv", ["fedrobust", "doctor"])
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [45, 250])
def test_a_comparison_is_two_tables_and_what_they_mean(width: int) -> None:
    out = Console(record=True, width=width, highlight=False)
    journals = [compared(rule, seed, 0.5) for rule in ("krum", "median") for seed in (1, 2)]
    show_comparison(out, compare([recorded(journal) for journal in journals]), Path("mlruns/compare/a[b]/compare.html"))
    shown = out.export_text()
    assert shown.count("┏") == 2  # what decides, and all other figures
    assert "5.0 MB" in shown and "median" in shown
    assert "nnm + krum and nnm + median have the same balanced accuracy in each of 2 seeds" in shown.replace("\n", " ")
    assert "mlruns/compare/a[b]/compare.html" in shown.replace("\n", "")


def screen() -> Console:
    return Console(file=io.StringIO(), width=4000, force_terminal=False, highlight=False)


def result(out: Console, name: str) -> None:
    show_result(out, Result(name, name, Path("x") / visible(name), skipping(name), {}, {3: name}, []))


def verdict(out: Console, name: str) -> None:
    show_verdict(
        out, Verdict(name, 10, name, name, 4, True, files=(name,), missing=(name,), uncovered=(name,)), Path("k")
    )


def comparison(out: Console, name: str) -> None:
    journals = [compared(rule, seed, 0.5) for rule in (f"a{name}", f"b{name}") for seed in (1, 2)]
    journals.append(compared("krum")[:2])
    journals[-1][0]["run"] = name[:8]
    show_comparison(out, compare([recorded(journal) for journal in journals]), Path("x") / visible(name))


def findings(out: Console, name: str) -> None:
    estimates = [Estimate(0.5, 0.4, 0.6)] * 4
    judged = DefenceSummary(name, name, name, *estimates, name, *estimates[:2], 1.0, 0)
    table = pd.DataFrame({"state": ["done", "failed"]})
    show_matrix(out, MatrixResult(Path("x") / visible(name), table, [judged]))
    cell = SimpleNamespace(label=name)
    with MatrixProgress(out) as progress:
        for outcome in (FinishedRun("d", name), FinishedRun("d", name, failed=name)):
            progress.done((cast(Any, cell), outcome))
            assert progress._bar.tasks[0].description == visible(name)


def sweep(out: Console, name: str) -> None:
    done, failed = (Trial(1, {name: name}, end, {}) for end in (Completed((0.5,)), Failed(name)))
    plan: Any = SimpleNamespace(sweep=SimpleNamespace(name=name, objectives=[Objective(metric=name)]))
    again = Fresh(done, (0.5,), {7: None}, {7: name})
    show_sweep(
        out, SweepResult(Path("x") / visible(name), plan, [done, failed], [done], optuna.create_study(), [again])
    )
    with SweepProgress(out) as progress:
        progress.done((failed, [done]))


def duel(out: Console, name: str) -> None:
    turns = [
        Turn(name, "attacker", 1, {name: 0.5}, {}, {}),
        Turn(name, "defender", 1, {}, {}, {}, failed=f"why {name}"),
    ]
    match: Any = SimpleNamespace(duel=SimpleNamespace(objective=Objective(metric=name), defences=[name]))
    show_duel(out, DuelResult(Path("x") / visible(name), match, turns))
    with DuelProgress(out) as progress:
        for turn in turns:
            progress.done(turn)


def jobs(out: Console, name: str) -> None:
    show_jobs(out, [Job(name, name, name, None, None, None, name)])


def skipped(out: Console, name: str) -> None:
    with Progress(out, Experiment()) as progress:
        progress.say(name)
        assert progress._bar.tasks[0].description == visible(name)
        progress.on_record(RoundRecord.of({"round": 1, "participants": [], "skipped": name}))


SHOWN = (result, verdict, comparison, findings, sweep, duel, jobs, skipped)


def told_as_written(show: Callable[[Console, str], None], name: str) -> None:
    out = screen()
    show(out, name)
    assert isinstance(out.file, io.StringIO)
    text = out.file.getvalue()
    text.encode()
    assert visible(text, keep="\n") == text
    words = "".join(visible(name).split())
    shown = re.sub(r"[\s│┃]", "", text)
    assert words in shown or "".join(visible(name, keep="\n").split()) in shown


@pytest.mark.parametrize("show", SHOWN)
@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are_written_and_control_nothing(
    show: Callable[[Console, str], None], name: str
) -> None:
    told_as_written(show, name)


@settings(max_examples=15, deadline=None)
@given(st.text(st.characters(), max_size=20))
def test_any_name_is_shown_as_it_is_written(name: str) -> None:
    for show in SHOWN:
        told_as_written(show, name)


def test_the_shell_completes_commands() -> None:
    fedrobust = Path(sys.executable).with_name("fedrobust")
    asked = {"_FEDROBUST_COMPLETE": "complete_bash", "COMP_WORDS": "fedrobust m", "COMP_CWORD": "1"}
    done = subprocess.run([fedrobust], env=os.environ | asked, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["matrix"], "")
