"""A run's folder against its audit log: whatever is exchanged, cut off or edited in it is found."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner
from vouched import KEY, MADE, OTHER, ROUNDS, UPLOADED, append, commits, edit, ended, exchange, lines, restate, weights

from fedrobust.audit.signing import AuditError, public_hex, public_pem
from fedrobust.audit.verification import CORE, refuse_changed, seal_files, verify, verify_all
from fedrobust.cli import app
from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.federation.journal import Journal
from fedrobust.records import read_checkpoint


def test_a_run_that_nobody_touched_holds(folder: Path) -> None:
    found = verify_all(folder, public_hex(KEY), "r1")
    assert (found.broken, found.lines, found.rounds, found.ended) == ("", 1 + 2 * ROUNDS + 1, ROUNDS, True)
    assert found.head == json.loads(lines(folder)[-1])["hash"] == read_checkpoint(folder).audit_head
    assert found.files == tuple(sorted([*CORE, *MADE]))
    assert (found.missing, found.uncovered) == ((), ("model/MLmodel: model_id, artifact_path",))
    (folder / "model" / "MLmodel").write_text(UPLOADED)
    assert not verify_all(folder).broken


def test_what_was_exported_is_checked_without_checkpoint_and_model(folder: Path, tmp_path: Path) -> None:
    exported = tmp_path / "downloaded"
    exported.mkdir()
    for name in ("audit.jsonl", "audit.pub", "audit.seal", "journal.jsonl", "report.html", "experiment.yaml"):
        shutil.copy(folder / name, exported)
    found = verify_all(exported, public_hex(KEY))
    assert (found.broken, found.run) == ("", "r1")
    assert found.missing == tuple(sorted(["checkpoint.npz", *(set(MADE) - {"report.html"})]))


def cut_everywhere(folder: Path) -> None:
    """Audit log, journal and checkpoint as they were two rounds earlier, as an attacker with a copy can have them."""
    name = folder.name
    shutil.rmtree(folder)
    ended(folder, steps=3, run=name)


def cut_and_restated(folder: Path) -> None:
    left = lines(folder)[:-2]
    (folder / "audit.jsonl").write_bytes(b"".join(left))
    restate(folder, audit_offset=len(b"".join(left)), audit_head=json.loads(left[-1])["hash"])


def swapped_key(folder: Path) -> None:
    shutil.rmtree(folder)
    ended(folder, OTHER)


def another_run(folder: Path) -> None:
    shutil.rmtree(folder)
    ended(folder.parent / "r22", run="r22").rename(folder)


def another_log(folder: Path) -> None:
    shutil.copy(ended(folder.parent / "r22", run="r22") / "audit.jsonl", folder)
    restate(
        folder,
        audit_offset=(folder / "audit.jsonl").stat().st_size,
        audit_head=json.loads(lines(folder)[-1])["hash"],
    )


def reordered(folder: Path) -> None:
    found = lines(folder)
    (folder / "audit.jsonl").write_bytes(b"".join([*found[:2], found[3], found[2], *found[4:]]))


def journal_line_dropped(folder: Path) -> None:
    path = folder / "journal.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:2] + kept[3:]))
    restate(folder, offset=path.stat().st_size)


ATTACKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "lines reordered": (reordered, "audit.jsonl: line 3: this is line 4: lines are missing, added or in another order"),
    "a line dropped": (
        lambda folder: (folder / "audit.jsonl").write_bytes(b"".join(lines(folder)[:4] + lines(folder)[5:])),
        "audit.jsonl: line 5: this is line 6",
    ),
    "the last line dropped": (
        lambda folder: (folder / "audit.jsonl").write_bytes(b"".join(lines(folder)[:-1])),
        f"audit.jsonl: line {2 * ROUNDS + 2}: it is missing: the checkpoint names a later last line",
    ),
    "half of the last line dropped": (
        lambda folder: (folder / "audit.jsonl").write_bytes((folder / "audit.jsonl").read_bytes()[:-50]),
        f"audit.jsonl: line {2 * ROUNDS + 2}: this is not JSON: the line is damaged, or was cut off",
    ),
    "dropped, and the checkpoint adapted": (
        cut_and_restated,
        f"audit.jsonl: line {2 * ROUNDS + 1}: the journal goes on, the log does not: its end was cut off",
    ),
    "all of it dropped": (
        lambda folder: (folder / "audit.jsonl").write_bytes(b""),
        "audit.jsonl: line 1: the log is empty",
    ),
    "log, journal and checkpoint put back": (cut_everywhere, "audit.jsonl: line 5: there is no end"),
    "another key": (swapped_key, "audit.jsonl: line 1: the log was signed with another key"),
    "another run": (another_run, "audit.jsonl: line 1: the log belongs to the run r22, not to r1"),
    "another run's log": (another_log, "audit.jsonl: line 1: the log belongs to the run r22, not to r1"),
    "another public key beside it": (
        lambda folder: (folder / "audit.pub").write_bytes(public_pem(OTHER)),
        "audit.pub: is not the key that the log is signed with",
    ),
    "no key beside it": (lambda folder: (folder / "audit.pub").write_text("x"), "must be an Ed25519 public key"),
    "a weight in the journal": (
        lambda folder: edit(folder / "journal.jsonl", b'"weights":{"0":0.5', b'"weights":{"0":0.6'),
        "audit.jsonl: line 2: the journal says otherwise (weights)",
    ),
    "a figure in the journal": (
        lambda folder: edit(folder / "journal.jsonl", b"0.75", b"0.95"),
        f"audit.jsonl: line {2 * ROUNDS + 1}: the journal says otherwise (metrics)",
    ),
    "a line of the journal dropped": (journal_line_dropped, "audit.jsonl: line 3: the journal says otherwise (kind)"),
    "no JSON in the journal": (
        lambda folder: edit(folder / "journal.jsonl", b'{"kind":"end"', b'{"kind",'),
        "damaged, this is no JSON object",
    ),
    "a number in the journal": (
        lambda folder: (folder / "journal.jsonl").write_bytes(b"7\n"),
        "journal.jsonl: line 1: these are not the bytes that were written",
    ),
    "a NaN in the journal": (
        lambda folder: edit(folder / "journal.jsonl", b"0.75", b"NaN "),
        "damaged, this is no JSON object",
    ),
    "no journal": (lambda folder: (folder / "journal.jsonl").unlink(), "journal.jsonl: no such file"),
    "another model": (
        lambda folder: exchange(folder, weights=weights(9)),
        "checkpoint.npz: its model is not the one that the last round left",
    ),
    "the model's bytes as other numbers": (
        lambda folder: exchange(folder, weights=weights(ROUNDS).view(np.int32)),
        "checkpoint.npz: its model is not the one that the last round left",
    ),
    "a damaged checkpoint": (
        lambda folder: (folder / "checkpoint.npz").write_bytes(b"no archive"),
        "checkpoint.npz: damaged checkpoint",
    ),
    "another model file": (
        lambda folder: (folder / "model" / "data" / "model.pt2").write_bytes(b"another model"),
        "model/data/model.pt2: was changed after the run ended",
    ),
    "a model file more": (
        lambda folder: (folder / "model" / "data" / "model.pth").write_bytes(b"a second model"),
        "model/data/model.pth: was not there when the run ended",
    ),
    "another report": (
        lambda folder: edit(folder / "report.html", b"a report", b"a better report"),
        "report.html: was changed after the run ended",
    ),
    "another experiment file": (
        lambda folder: edit(folder / "experiment.yaml", b"tiny", b"large"),
        "experiment.yaml: is not what the run began with: name differs",
    ),
    "no seal": (lambda folder: (folder / "audit.seal").unlink(), "audit.seal: no such file"),
    "a changed seal": (
        lambda folder: edit(folder / "audit.seal", b"report.html", b"reports.htm"),
        "audit.seal: the seal was changed",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_on_the_folder_is_found_and_named(folder: Path, attack: str) -> None:
    strike, reason = ATTACKS[attack]
    strike(folder)
    assert reason in verify_all(folder, public_hex(KEY), "r1").broken


def test_without_a_key_from_elsewhere_a_log_signed_anew_passes(folder: Path) -> None:
    swapped_key(folder)
    assert not verify_all(folder, None, "r1").broken


def test_a_run_without_a_log_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"audit\.jsonl"):
        verify(tmp_path)


@pytest.mark.parametrize("stage", ["before the log", "before the rename", "after the rename"])
@pytest.mark.parametrize("at", [1, 3, ROUNDS + 1])
def test_a_crash_changes_no_byte_of_the_log(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, at: int
) -> None:
    again = tmp_path / "again"
    again.mkdir()
    steps = commits("r1", seconds=5.0)
    journal = Journal(again, KEY)
    for records, checkpoint in steps[:at]:
        journal.commit(records, checkpoint)
    with monkeypatch.context() as patch:
        if stage == "before the log":  # the journal's lines are there, of the log's a part
            append(again / "journal.jsonl", b'{"kind":"round"}\n')
            append(again / "audit.jsonl", lines(folder)[1][:-9])
        elif stage == "before the rename":
            patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("crash")))
            with pytest.raises(FedRobustError, match="crash"):
                journal.commit(*steps[at])
        else:
            journal.commit(*steps[at])
    journal.close()
    done = at + (stage == "after the rename")
    refuse = verify(again, public_hex(KEY), "r1")
    assert (refuse.broken, refuse.rounds) == ("", min(ROUNDS, max(0, done - 1)))
    resumed = Journal(again, KEY)
    for records, checkpoint in steps[done:]:
        resumed.commit(records, checkpoint)
    resumed.close()
    assert (again / "audit.jsonl").read_bytes() == (folder / "audit.jsonl").read_bytes()


def test_a_run_that_was_changed_is_not_resumed_or_sealed(tmp_path: Path) -> None:
    stopped = ended(tmp_path / "r1", steps=4)
    refuse_changed(stopped, KEY)
    with pytest.raises(ExperimentError, match=r"r1.* another key"):
        refuse_changed(stopped, OTHER)
    edit(stopped / "journal.jsonl", b'"weights":{"0":0.5', b'"weights":{"0":0.6')
    with pytest.raises(ExperimentError, match=r"r1.* line 2: the journal"):
        refuse_changed(stopped, KEY)
    with pytest.raises(AuditError, match=r"run r1: .*line 2"):
        seal_files(stopped, KEY)
    assert not (stopped / "audit.seal").exists()


def test_a_journal_is_reopened_with_its_key_and_its_whole_log(tmp_path: Path) -> None:
    stopped = ended(tmp_path / "r1", steps=4)
    with pytest.raises(ExperimentError, match="key"):
        Journal(stopped)
    (stopped / "audit.jsonl").write_bytes(b"".join(lines(stopped)[:-1]))
    with pytest.raises(ExperimentError, match=r"audit\.jsonl: shorter"):
        Journal(stopped, KEY)


def test_the_command_says_what_holds_and_what_does_not(folder: Path, workplace: Path) -> None:
    Path("mine.pub").write_bytes(public_pem(KEY))
    told = CliRunner().invoke(app, ["audit", str(folder), "--key", "mine.pub"])
    assert told.exit_code == 0, told.output
    shown = told.output
    for word in ("unbroken: 10 lines, 4 rounds and the end", "r1", public_hex(KEY), "mine.pub", "model/data/model.pt2"):
        assert word in shown
    assert "give --key PUB" in CliRunner().invoke(app, ["audit", str(folder)]).output
    edit(folder / "journal.jsonl", b"0.75", b"0.95")
    broken = CliRunner().invoke(app, ["audit", str(folder)])
    assert isinstance(broken.exception, AuditError)
    assert broken.exception.exit_code == 1
    assert "line 9: the journal says otherwise (metrics)" in str(broken.exception)
    assert str(broken.exception).endswith("; 8 lines hold")


def test_the_check_of_the_guide_runs_as_written(folder: Path, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    script = tmp_path / "check.py"
    script.write_text(guide.partition("```python\n")[2].partition("```")[0], encoding="utf-8")
    command = [sys.executable, str(script), str(folder / "audit.jsonl"), str(folder / "audit.pub")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "10 lines hold; the last one is of kind end\n", done.stderr
    edit(folder / "audit.jsonl", b'"weights":{"0":0.5', b'"weights":{"0":0.6')
    assert "AssertionError: line 2" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
