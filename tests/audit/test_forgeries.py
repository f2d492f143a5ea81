"""Who can write to a run's folder, and has read the code, but has not the coordinator's key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vouched import (
    CHANGED,
    EXPERIMENT,
    KEY,
    ROUNDS,
    append,
    commits,
    digest,
    edit,
    ended,
    exchange,
    lines,
    restate,
    seconds,
    weights,
)

from fedrobust.audit.seals import arrays_digest
from fedrobust.audit.signing import public_hex
from fedrobust.audit.verification import refuse_changed, seal_files, verify, verify_all
from fedrobust.errors import ExperimentError
from fedrobust.federation.journal import Journal
from fedrobust.records import read_checkpoint

NEXT = 2 * ROUNDS + 3
"""The number of the line behind the end."""
BEHIND = "it stands behind the end of the run"
TAIL = {
    "a line": b'{"kind":"round","round":9}\n',
    "half a line": b'{"kind":"rou',
    "an empty line": b"\n",
    "spaces": b" ",
    "no text": b"\xff\xfe",
}


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


def test_the_model_is_that_of_the_log(folder: Path) -> None:
    """The fixture's own arithmetic, on which the tests above stand."""
    assert json.loads(lines(folder)[-4])["entry"]["model"]["after"] == digest(weights(ROUNDS))
    assert json.loads(lines(folder)[0])["entry"]["configuration"] == EXPERIMENT.digest()
