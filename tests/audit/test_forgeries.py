"""Who can write to a run's folder, and has read the code, but has not the coordinator's key."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from vouched import (
    EXPERIMENT,
    KEY,
    MADE,
    MLMODEL,
    OTHER,
    ROUNDS,
    UPLOADED,
    append,
    commits,
    digest,
    edit,
    ended,
    exchange,
    lines,
    restate,
    swapped,
    weights,
)

from fedrobust.audit.seals import arrays_digest, seal
from fedrobust.audit.signing import AuditError, open_key, public_hex
from fedrobust.audit.verification import refuse_changed, seal_files, verify, verify_all
from fedrobust.errors import ExperimentError
from fedrobust.federation.journal import Journal
from fedrobust.records import read_checkpoint
from fedrobust.report import write_again

NEXT = 2 * ROUNDS + 3
"""The number of the line behind the end."""
BEHIND = "it stands behind the end of the run"
CHANGED = "was changed after the run ended"
ADDED = "was not there when the run ended"
NOT_WRITTEN = "these are not the bytes that were written"
TAIL = {
    "a line": b'{"kind":"round","round":9}\n',
    "half a line": b'{"kind":"rou',
    "an empty line": b"\n",
    "spaces": b" ",
    "no text": b"\xff\xfe",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return ended(tmp_path / "r1")


def no_checkpoint(folder: Path) -> None:
    (folder / "checkpoint.npz").unlink()


@pytest.mark.parametrize("with_checkpoint", [True, False])
@pytest.mark.parametrize("tail", TAIL)
@pytest.mark.parametrize("name", ["journal.jsonl", "audit.jsonl"])
def test_nothing_stands_behind_the_end(folder: Path, name: str, tail: str, with_checkpoint: bool) -> None:
    if not with_checkpoint:
        no_checkpoint(folder)
    append(folder / name, TAIL[tail])
    for found in (verify(folder, public_hex(KEY), "r1"), verify_all(folder, public_hex(KEY), "r1")):
        assert found.broken.startswith(name)
        assert not with_checkpoint or found.broken.endswith(f"line {NEXT}: {BEHIND}")


@pytest.mark.parametrize("tail", TAIL)
@pytest.mark.parametrize("name", ["journal.jsonl", "audit.jsonl"])
def test_behind_the_last_commit_of_a_run_that_goes_on_anything_may_stand(tmp_path: Path, name: str, tail: str) -> None:
    stopped = ended(tmp_path / "r1", steps=3)
    append(stopped / name, TAIL[tail])
    refuse_changed(stopped, KEY)
    assert "there is no end" in verify_all(stopped).broken


JOURNAL: dict[str, tuple[bytes, bytes]] = {
    "a key twice": (b'"weights":{"0":0.5', b'"weights":{"0":0.9},"weights":{"0":0.5'),
    "a key twice, deep": (b'"weights":{"0":0.5', b'"weights":{"0":0.9,"0":0.5'),
    "a key twice, spelt otherwise": (b'"round":2,', b'"\\u0072ound":9,"round":2,'),
    "a space": (b'"round":2,', b'"round": 2,'),
    "a carriage return": (b'"metrics":{"test/accuracy":0.5}}\n', b'"metrics":{"test/accuracy":0.5}}\r\n'),
    "an empty line": (b'{"kind":"evaluation"', b'\n{"kind":"evaluation"'),
    "a number with more digits": (b'accuracy":0.5', b'accuracy":0.50'),
    "a number with an exponent": (b'accuracy":0.5', b'accuracy":5e-1'),
    "a whole number as another type": (b'"round":2,', b'"round":2.0,'),
    "an escape": (b'"test/accuracy":0.5', b'"test\\/accuracy":0.5'),
    "NaN": (b"null", b"NaN"),
    "infinity": (b"null", b"1e999"),
    "a number of 5,000 digits": (b'"round":2,', b'"round":' + b"2" * 5000 + b","),
    "deep nesting": (b'"round":2,', b'"round":' + b"[" * 100_000 + b"]" * 100_000 + b","),
    "nesting that can just be read": (b'"round":2,', b'"round":' + b"[" * 900 + b"]" * 900 + b","),
}


@pytest.mark.parametrize("steps", [4, ROUNDS + 2])
@pytest.mark.parametrize("forgery", JOURNAL)
def test_a_journal_is_read_in_one_way_only(tmp_path: Path, forgery: str, steps: int) -> None:
    folder = ended(tmp_path / "r1", steps=steps)
    old, new = JOURNAL[forgery]
    edit(folder / "journal.jsonl", old, new)
    restate(folder, offset=(folder / "journal.jsonl").stat().st_size)
    broken = verify_all(folder, public_hex(KEY), "r1").broken
    assert broken and "there is no end" not in broken
    with pytest.raises(ExperimentError, match="cannot be resumed"):
        refuse_changed(folder, KEY)


def test_a_zero_has_one_sign(tmp_path: Path) -> None:
    folder = ended(tmp_path / "r1")
    edit(folder / "journal.jsonl", b'"1":0.1', b'"1":-0.0')
    restate(folder, offset=(folder / "journal.jsonl").stat().st_size)
    assert "line 2: the journal says otherwise (anomaly)" in verify_all(folder).broken


def seconds(folder: Path) -> None:
    edit(folder / "journal.jsonl", b'"seconds":{"round":1.0}', b'"seconds":{"round":2.0}')


def test_how_long_a_round_took_is_vouched_for(folder: Path, tmp_path: Path) -> None:
    stopped = ended(tmp_path / "stopped" / "r1", steps=3)
    for each in (folder, stopped):
        seconds(each)
        assert "journal.jsonl: was changed after the last commit" in verify(each).broken
    no_checkpoint(folder)
    assert verify_all(folder).broken == f"journal.jsonl: {CHANGED}"


STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a reputation": (
        lambda folder: exchange(folder, **{"trust/reputation": np.full(2, 0.9)}),
        "checkpoint.npz: its arrays are not those of the last commit",
    ),
    "an array more": (
        lambda folder: exchange(folder, **{"client/1": np.ones(3)}),
        "checkpoint.npz: its arrays are not those of the last commit",
    ),
    "an array more, and its digest": (
        lambda folder: (
            exchange(folder, more=np.ones(3)),
            restate(folder, state=arrays_digest(read_checkpoint(folder).arrays)),
        ),
        "checkpoint.npz: it was not written by the coordinator: the signature is wrong",
    ),
    "another round": (lambda folder: restate(folder, round=1), "checkpoint.npz: it was not written by the coordinator"),
    "nothing pending": (
        lambda folder: restate(folder, pending=None),
        "checkpoint.npz: it was not written by the coordinator",
    ),
    "no signature": (lambda folder: restate(folder, signature=""), "checkpoint.npz: is not signed"),
    "another run's": (
        lambda folder: shutil.copy(
            ended(folder.parent / "r2", steps=3, run="r2") / "checkpoint.npz", folder / "checkpoint.npz"
        ),
        "the checkpoint names a later last line",
    ),
    "no round": (lambda folder: restate(folder, round="1"), "checkpoint.npz: damaged checkpoint"),
    "a negative length": (lambda folder: restate(folder, offset=-3), "checkpoint.npz: damaged checkpoint"),
    "no length": (lambda folder: restate(folder, offset=None), "checkpoint.npz: damaged checkpoint"),
    "a fact more": (lambda folder: restate(folder, arrays={}), "checkpoint.npz: damaged checkpoint"),
    "texts": (lambda folder: exchange(folder, seen=np.array(["x"])), "checkpoint.npz: damaged checkpoint"),
}


@pytest.mark.parametrize("forgery", STATES)
def test_the_state_of_a_run_that_stopped_is_the_coordinator_s(tmp_path: Path, forgery: str) -> None:
    stopped = ended(tmp_path / "r1", steps=3)
    strike, reason = STATES[forgery]
    strike(stopped)
    assert reason in verify(stopped, public_hex(KEY), "r1").broken
    with pytest.raises(ExperimentError, match="cannot be resumed"):
        refuse_changed(stopped, KEY)


def link(folder: Path, name: str) -> None:
    """The same bytes, but not here."""
    (folder / name).rename(folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")


def made(name: str, data: bytes = b"forged") -> Callable[[Path], object]:
    def strike(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return strike


def packed_anew(folder: Path) -> None:
    with np.load(folder / "checkpoint.npz") as saved:
        np.savez_compressed(folder / "checkpoint.npz", **{name: saved[name] for name in saved.files})


def two_mlmodels(folder: Path) -> None:
    """The loader in a text that the lines of an upload are hidden in."""
    edit(folder / "model" / "MLmodel", b"[-1, 3,\n", b"[-1, 3,\nrun_id: r1\n")


FOLDER: dict[str, tuple[Callable[[Path], object], str]] = {
    "a figure of another run": (lambda f: swapped(f, "figures/curves.png"), f"figures/curves.png: {CHANGED}"),
    "another montage": (made("figures/misread.png"), f"figures/misread.png: {CHANGED}"),
    "another partition": (made("partition.png"), f"partition.png: {CHANGED}"),
    "two figures exchanged": (
        lambda f: (
            (f / "partition.png").rename(f / "x"),
            (f / "figures/curves.png").rename(f / "partition.png"),
            (f / "x").rename(f / "figures/curves.png"),
        ),
        f"figures/curves.png: {CHANGED}",
    ),
    "a figure more": (made("figures/best.png"), f"figures/best.png: {ADDED}"),
    "a file more": (made("notes.txt", b""), f"notes.txt: {ADDED}"),
    "code": (made("sitecustomize.py"), f"sitecustomize.py: {ADDED}"),
    "code of the model": (made("model/code/evil.py"), f"model/code/evil.py: {ADDED}"),
    "a path file": (made("model/data/x.pth"), f"model/data/x.pth: {ADDED}"),
    "a hidden file": (made(".hidden/.x"), f".hidden/.x: {ADDED}"),
    "an odd name": (made("a\nb\x1b[31m\udcff"), f"'a\\nb\\x1b[31m\\udcff': {ADDED}"),
    "other requirements": (made("model/conda.yaml"), f"model/conda.yaml: {CHANGED}"),
    "a link to the same report": (lambda f: link(f, "report.html"), "report.html: is a link; a run leaves none"),
    "a link to the same log": (lambda f: link(f, "audit.jsonl"), "audit.jsonl: is a link; a run leaves none"),
    "a link to the same folder": (lambda f: link(f, "model"), "model: is a link; a run leaves none"),
    "a link to nothing": (lambda f: (f / "x").symlink_to("nowhere"), "x: is a link; a run leaves none"),
    "a pipe for a journal": (
        lambda f: ((f / "journal.jsonl").unlink(), os.mkfifo(f / "journal.jsonl")),
        "journal.jsonl: is neither a file nor a folder",
    ),
    "a folder for a journal": (
        lambda f: ((f / "journal.jsonl").unlink(), (f / "journal.jsonl").mkdir()),
        "journal.jsonl: no such file",
    ),
    "a loader": (
        lambda f: edit(f / "model/MLmodel", b"mlflow.pytorch\n", b"evil\n"),
        f"model/MLmodel: {CHANGED}",
    ),
    "a loader, after the upload": (
        made("model/MLmodel", UPLOADED.replace("mlflow.pytorch\n", "evil\n").encode()),
        f"model/MLmodel: {CHANGED}",
    ),
    "a second description": (
        lambda f: append(f / "model/MLmodel", MLMODEL.replace("mlflow.pytorch\n", "evil\n").encode()),
        f"model/MLmodel: {CHANGED}",
    ),
    "a loader in the line of an upload": (
        lambda f: append(f / "model/MLmodel", b"run_id: {x: y}\n"),
        f"model/MLmodel: {CHANGED}",
    ),
    "a line of an upload inside a text": (two_mlmodels, f"model/MLmodel: {CHANGED}"),
    "a text that goes on": (
        lambda f: edit(f / "model/MLmodel", b"model_id: null\n", b"model_id: 'x\n"),
        f"model/MLmodel: {CHANGED}",
    ),
    "another run's model": (
        made("model/MLmodel", UPLOADED.replace("run_id: r1", "run_id: r2").encode()),
        "model/MLmodel: names another run",
    ),
    "an array more in the checkpoint": (
        lambda f: exchange(f, more=np.ones(2)),
        "checkpoint.npz: its arrays are not those of the last commit",
    ),
    "the checkpoint packed anew": (packed_anew, f"checkpoint.npz: {CHANGED}"),
    "the checkpoint of the round before": (
        lambda f: shutil.copy(ended(f.parent / "before" / "r1", steps=ROUNDS + 1) / "checkpoint.npz", f),
        f"audit.jsonl: line {2 * ROUNDS + 1}: there is no end",
    ),
    "another seed": (
        lambda f: edit(f / "experiment.yaml", b"seed: 1", b"seed: 2"),
        "experiment.yaml: is not what the run began with: seed differs",
    ),
    "other workers": (
        lambda f: edit(f / "experiment.yaml", b"threads: 1", b"threads: 2"),
        "experiment.yaml: is not what the run began with: workers.threads differs",
    ),
    "an option more": (
        lambda f: append(f / "experiment.yaml", b"more: 1\n"),
        "experiment.yaml: is not what the run began with: more differs",
    ),
    "a comment": (lambda f: append(f / "experiment.yaml", b"# seed 2\n"), f"experiment.yaml: {CHANGED}"),
    "a date": (
        lambda f: edit(f / "experiment.yaml", b"seed: 1", b"seed: 2026-01-01"),
        "experiment.yaml: is not what the run began with: seed differs",
    ),
    "no options": (made("experiment.yaml", b"- 1\n"), "experiment.yaml: expected a mapping"),
    "no YAML": (made("experiment.yaml", b"a: [\n"), "not valid YAML"),
    "a bomb": (
        made(
            "experiment.yaml",
            b"a: &a [1, 1]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in range(98, 123)),
        ),
        "more than 100,000 values",
    ),
    "an anchor": (made("experiment.yaml", b"a: &a [1, 1]\nb: *a\n"), "has an anchor"),
    "no seal": (lambda f: (f / "audit.seal").unlink(), "audit.seal: no such file"),
    "an older seal": (
        made("audit.seal", b'{"files":{},"head":"","run":"r1","signature":""}\n'),
        "audit.seal: the seal is of an older format",
    ),
    "a key twice in the seal": (
        lambda f: edit(f / "audit.seal", b'"files":{', b'"files":{"notes.txt":"","notes.txt":"",'),
        f"audit.seal: the seal is damaged: {NOT_WRITTEN}",
    ),
    "a seal of one's own": (
        lambda f: (f / "audit.seal").write_bytes(seal(OTHER, "r1", json.loads(lines(f)[-1])["hash"], {})),
        "audit.seal: the seal was changed: the signature is wrong",
    ),
    "another run's seal": (
        lambda f: (ended(f.parent / "r2", run="r2") / "audit.seal").replace(f / "audit.seal"),
        "audit.seal: the seal belongs to another log",
    ),
}


@pytest.mark.parametrize("forgery", FOLDER)
def test_everything_in_the_folder_of_an_ended_run_is_covered(folder: Path, forgery: str) -> None:
    assert not verify_all(folder, public_hex(KEY), "r1").broken
    strike, reason = FOLDER[forgery]
    strike(folder)
    broken = verify_all(folder, public_hex(KEY), "r1").broken
    assert reason in broken and broken.isprintable()


@pytest.mark.parametrize("name", ["report.html", "journal.jsonl", "audit.seal", "model/MLmodel"])
def test_a_file_that_cannot_be_read_is_not_vouched_for(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Path.open

    def kept(self: Path, *how: Any, **more: Any) -> Any:
        if self == folder / name:
            raise PermissionError(13, "Permission denied", str(self))
        return there(self, *how, **more)

    monkeypatch.setattr(Path, "open", kept)
    assert f"{name}: cannot be read: Permission denied" in verify_all(folder).broken


def test_a_folder_that_cannot_be_read_is_not_vouched_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = os.scandir

    def kept(path: Any) -> Any:
        if Path(path) == folder / "figures":
            raise PermissionError(13, "Permission denied", str(path))
        return there(path)

    monkeypatch.setattr(os, "scandir", kept)
    assert verify_all(folder).broken == "figures: cannot be read: Permission denied"


@pytest.mark.parametrize("name", sorted({"experiment.yaml", "checkpoint.npz", "audit.pub", *MADE}))
def test_what_was_taken_away_is_told(folder: Path, name: str) -> None:
    (folder / name).unlink()
    found = verify_all(folder)
    assert not found.broken and found.missing == (name,) and name not in found.files


def without_log(folder: Path) -> None:
    (folder / "audit.jsonl").unlink()
    restate(folder, audit_offset=0, audit_head="", signature="", journal="", state="")


@pytest.mark.parametrize("also", [(), ("audit.pub",)])
def test_a_run_whose_log_was_taken_away_does_not_go_on_without_one(tmp_path: Path, also: tuple[str, ...]) -> None:
    stopped = ended(tmp_path / "r1", steps=3)
    without_log(stopped)
    for name in also:
        (stopped / name).unlink()
    with pytest.raises(ExperimentError, match=r"r1.* audit log"):
        refuse_changed(stopped, KEY)
    with pytest.raises(ExperimentError, match="audit log"):
        Journal(stopped, KEY)
    (stopped / "audit.jsonl").write_bytes(b"")
    with pytest.raises(ExperimentError, match="empty"):
        refuse_changed(stopped, KEY)


def test_without_a_key_a_run_with_a_log_does_not_go_on(tmp_path: Path) -> None:
    stopped = ended(tmp_path / "r1", steps=3)
    without_log(stopped)
    with pytest.raises(ExperimentError, match="key"):
        Journal(stopped)


def test_a_public_key_that_was_taken_away_is_written_again(tmp_path: Path) -> None:
    stopped = ended(tmp_path / "r1", steps=3)
    (stopped / "audit.pub").unlink()
    refuse_changed(stopped, KEY)
    journal = Journal(stopped, KEY)
    for records, checkpoint in commits("r1")[3:]:
        journal.commit(records, checkpoint)
    journal.close()
    seal_files(stopped, KEY)
    assert not verify_all(stopped, public_hex(KEY), "r1").missing


def test_a_seal_holds_what_its_maker_made_and_nothing_else(tmp_path: Path) -> None:
    folder = ended(tmp_path / "r1", sealed=False)
    made("evil.py")(folder)
    made("report.html")(folder)
    seal_files(folder, KEY, ["report.html"])
    assert verify_all(folder).broken == f"evil.py: {ADDED}"
    (folder / "evil.py").unlink()
    assert verify_all(folder).files == tuple(
        sorted(["audit.jsonl", "audit.pub", "checkpoint.npz", "experiment.yaml", "journal.jsonl", "report.html"])
    )
    with pytest.raises(AuditError, match="sealed"):
        seal_files(ended(tmp_path / "stopped" / "r1", steps=3), KEY)


REPORTS = {
    "the montage": (made("figures/misread.png"), f"figures/misread.png: {CHANGED}"),
    "code": (made("z.py"), f"z.py: {ADDED}"),
    "the model": (made("model/data/model.pt2"), f"model/data/model.pt2: {CHANGED}"),
    "the seconds": (seconds, "journal.jsonl: was changed"),
    "the options and no seal": (
        lambda f: (edit(f / "experiment.yaml", b"seed: 1", b"seed: 2"), (f / "audit.seal").unlink()),
        "experiment.yaml: is not what the run began with",
    ),
    "no seal": (lambda f: (f / "audit.seal").unlink(), "audit.seal: no such file"),
}


@pytest.mark.parametrize("forgery", REPORTS)
def test_a_report_is_not_written_and_sealed_of_what_was_forged(folder: Path, forgery: str) -> None:
    pem = folder.parent / "coordinator.pem"
    pem.write_bytes(KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    pem.chmod(0o600)
    assert public_hex(open_key(pem)) == public_hex(KEY)
    strike, reason = REPORTS[forgery]
    strike(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(AuditError, match=reason):
        write_again(folder, pem)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_options_are_compared_without_importing_what_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ended(tmp_path / "r1")
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    made("experiment.yaml", b'aggregation: {rule: "evil:Rule"}\n')(folder)
    assert "aggregation" in verify_all(folder).broken


def test_the_model_is_that_of_the_log(folder: Path) -> None:
    """The fixture's own arithmetic, on which the tests above stand."""
    assert json.loads(lines(folder)[-4])["entry"]["model"]["after"] == digest(weights(ROUNDS))
    assert json.loads(lines(folder)[0])["entry"]["configuration"] == EXPERIMENT.digest()
