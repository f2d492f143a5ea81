"""Output decides over nothing: a run ends as it would, whatever becomes of what it shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import write_files

from fedrobust.cli import main
from fedrobust.screen import harmless

pytestmark = pytest.mark.slow

PLAYED = """
import os, sys, types
from pathlib import Path
from fedrobust.errors import Interrupted
from fedrobust.records import RoundRecord, Skips

def run(experiment, resume=None, hooks=(), say=print):
    try:
        say("training – 训练")
        if "STOP" in os.environ:
            os.kill(os.getpid(), int(os.environ["STOP"]))
    except KeyboardInterrupt as stop:
        raise Interrupted("abc") from stop
    reason = "reason – ×"
    for number in range(1, 401):
        record = RoundRecord(round=number, participants=(), skipped=reason)
        for hook in hooks:
            hook(record)
    Path("trained").write_text("all rounds")
    names = dict(run_id="abc", name="a – b × 训练", folder=Path("mlruns/runs/abc"))
    final = {"test/accuracy": 0.5}
    options = types.SimpleNamespace(privacy=types.SimpleNamespace(name="clear"))
    start = types.SimpleNamespace(options=options)
    recorded = types.SimpleNamespace(skips=Skips.of([reason] * 400), acts=False, start=start)
    return types.SimpleNamespace(**names, recorded=recorded, attackers={}, suspected=[], final=final)

sys.modules["fedrobust.runner"] = types.ModuleType("fedrobust.runner")
sys.modules["fedrobust.runner"].run = run
from fedrobust.cli import main
main()
"""
"""The command line with a federation that is only played."""


@pytest.fixture
def played(workplace: Path) -> list[str]:
    (workplace / "e.yaml").write_text("federation: {rounds: 400}\n")
    (workplace / "played.py").write_text(PLAYED)
    return [sys.executable, "-P", "played.py", "run", "e.yaml", "--json", "out.json"]


def trained_and_told() -> None:
    assert Path("trained").exists(), "the run was ended"
    assert json.loads(Path("out.json").read_text()) == {"run_id": "abc", "test/accuracy": 0.5}


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda variables: next(iter(variables.values())),
)
def test_a_terminal_that_lacks_a_letter_ends_nothing(variables: dict[str, str], played: list[str]) -> None:
    done = subprocess.run(played, env=os.environ | variables, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stdout + done.stderr and b"run abc" in done.stdout
    trained_and_told()


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{command} | head -1; exit ${{PIPESTATUS[0]}}", 0),
        ("{command} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}", 0),
        ("{command} >/dev/full", 0),
        ("{command} >&- 2>&- <&-", 0),
        ("{command} 2>/dev/full", 0),
    ],
)
def test_a_reader_that_goes_away_and_a_full_disk_end_nothing(shell: str, code: int, played: list[str]) -> None:
    line = shell.format(command=" ".join(played))
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr
    trained_and_told()
    if "2>" not in shell and ">&-" not in shell:
        assert "the output cannot be written" in done.stderr and "the command goes on" in done.stderr


def test_a_list_whose_reader_goes_away_ends_without_a_word() -> None:
    line = f"{sys.executable} -P -m fedrobust list | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


def test_figures_are_written_before_they_are_shown_and_shown_where_they_cannot_be_written(played: list[str]) -> None:
    done = subprocess.run([*played[:-1], "/dev/full"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "accuracy" in done.stdout and "run abc" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --json /dev/full: could not be written: No space left") and "journal.jsonl" in line


def ended(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error of a command in this process that is refused."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(sys, "argv", ["fedrobust", *words])
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1 and text.rstrip("\n").isprintable(), text
    return text


@pytest.mark.parametrize(
    "place", [".", "nowhere/out.json", "e.yaml", "./e.yaml", "shut/out.json", "shut.json", "e.yaml/x"]
)
def test_figures_that_cannot_be_written_are_refused_at_the_start(
    place: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("e.yaml").write_text("federation: {rounds: 400}\n")
    Path("shut").mkdir(mode=0o500)
    Path("shut.json").touch(mode=0o400)
    if os.geteuid() == 0:  # whom nothing is shut to
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK or "shut" not in str(path))
    told = ended(["run", "e.yaml", "--json", place], monkeypatch, capsys)
    assert told.startswith(f"error: --json {Path(place)}: ")
    assert sorted(path.name for path in workplace.iterdir()) == ["e.yaml", "shut", "shut.json"]
    assert Path("e.yaml").read_text() == "federation: {rounds: 400}\n"


def test_a_fault_of_what_is_shown_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def show(number: int) -> None:
        seen.append(number)
        if number == 2:
            raise KeyError("\x1b[2J")

    for number in range(5):
        harmless(show)(number)
    shown = harmless(show)
    for number in range(5):
        shown(number)
    assert seen == [*range(5), 0, 1, 2]
    assert (
        capsys.readouterr().err.splitlines() == ["this cannot be shown (KeyError: '\\x1b[2J'); the command goes on"] * 2
    )


@pytest.mark.parametrize("name", ["\x1b]52;c;YQ==\x07", "\x9b2J", "a\nb\rc\x08", "\u202egnp", "\udcff\udc9b"])
def test_no_name_reaches_the_terminal_raw(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file" in ended(["run", f"{name}.yaml"], monkeypatch, capsys)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_who_stops_a_run_is_told_its_id(number: int, played: list[str]) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup has a process ignore it, and what that process starts
    try:
        done = subprocess.run(
            [*played, "name=a b"],
            env=os.environ | {"STOP": str(int(number))},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        signal.signal(number, before)
    assert done.returncode == 130, done.stderr
    words = "fedrobust run e.yaml --json out.json 'name=a b' --resume abc"
    assert done.stderr.splitlines()[-1] == f"stopped; go on with: {words}"
    assert not Path("trained").exists()


@pytest.mark.long
def test_a_real_run_goes_on_when_its_reader_goes_away(workplace: Path) -> None:
    write_files(workplace)
    run = f"{sys.executable} -P -m fedrobust run tiny.yaml federation.rounds=2 --json out.json"
    line = f"PYTHONIOENCODING=latin-1 {run} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads((workplace / "out.json").read_text())
    assert 0 <= figures["test/balanced_accuracy"] <= 1
    assert "the command goes on" in done.stderr
