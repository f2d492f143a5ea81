"""Files of an ended run's folder that were changed, added or taken away by somebody without the coordinator's key."""

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
    CHANGED,
    KEY,
    MADE,
    MLMODEL,
    OTHER,
    ROUNDS,
    UPLOADED,
    append,
    edit,
    ended,
    exchange,
    lines,
    seconds,
    swapped,
)

from fedrobust.audit.seals import seal
from fedrobust.audit.signing import AuditError, open_key, public_hex
from fedrobust.audit.verification import seal_files, verify_all
from fedrobust.report import write_again

ADDED = "was not there when the run ended"
NOT_WRITTEN = "these are not the bytes that were written"


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
