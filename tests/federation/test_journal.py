"""The journal: what a crash at any point leaves behind can be gone on from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import reported

from fedrobust.errors import ExperimentError, FederationError
from fedrobust.federation.journal import Journal
from fedrobust.records import Checkpoint, RoundRecord, RunStart, read_checkpoint, read_run


def checkpoint(round: int) -> Checkpoint:
    arrays = {"weights": np.arange(3, dtype=np.float32) + round, "client/7": np.full(2, round, dtype=np.float32)}
    return Checkpoint(round, arrays, pending=round)


def committed(folder: Path, rounds: int) -> Journal:
    journal = Journal(folder)
    journal.commit([RunStart.of(reported.journal()[0])], checkpoint(0))
    for round in range(1, rounds + 1):
        journal.commit([made(round)], checkpoint(round))
    return journal


def made(round: int) -> RoundRecord:
    return RoundRecord.of({"round": round, "participants": [0, 1]})


def rounds_in(folder: Path) -> list[int]:
    return [record.round for record in read_run(folder).rounds]


def test_a_commit_reads_back(tmp_path: Path) -> None:
    committed(tmp_path, 2).close()
    found = read_checkpoint(tmp_path)
    assert (found.round, found.pending) == (2, 2)
    np.testing.assert_array_equal(found.arrays["weights"], np.array([2, 3, 4], dtype=np.float32))
    assert found.arrays["weights"].dtype == np.float32
    np.testing.assert_array_equal(found.below("client")["7"], [2, 2])
    assert rounds_in(tmp_path) == [1, 2]


@pytest.mark.parametrize("tail", [b'{"kind":"round","round":3}\n', b'{"kind":"rou', b"\xff\xfe"])
def test_lines_after_the_last_commit_are_cut_off(tmp_path: Path, tail: bytes) -> None:
    committed(tmp_path, 2).close()
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(tail)
    (tmp_path / "checkpoint.partial").write_bytes(b"half a checkpoint")
    journal = Journal(tmp_path)
    assert journal.checkpoint is not None and journal.checkpoint.round == 2
    journal.commit([made(3)], checkpoint(3))
    assert rounds_in(tmp_path) == [1, 2, 3]


def test_a_crash_before_the_rename_commits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = committed(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("crash")))
        with pytest.raises(FederationError, match=r"round 2 .*crash"):
            journal.commit([made(2)], checkpoint(2))
    journal.close()
    again = Journal(tmp_path).checkpoint
    assert again is not None and again.round == 1
    assert rounds_in(tmp_path) == [1]


def test_only_committed_records_are_read(tmp_path: Path) -> None:
    committed(tmp_path, 2).close()
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind":"end","round":2}\n')
    assert rounds_in(tmp_path) == [1, 2]


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    with pytest.raises(ExperimentError, match="another process"):
        Journal(tmp_path)
    first.close()
    Journal(tmp_path).close()


def test_what_is_not_finite_becomes_null(tmp_path: Path) -> None:
    journal = committed(tmp_path, 0)
    figures = {0: math.nan, 1: np.float32(np.inf), 4: np.float64(0.5), 5: None}
    fields = {"round": 1, "participants": [np.int64(3)], "train_loss": figures, "aggregate_norm": -math.inf}
    journal.commit([RoundRecord.of(fields)], checkpoint(1))
    (found,) = read_run(tmp_path).rounds
    assert found.fields() == {
        "kind": "round",
        "round": 1,
        "participants": [3],
        "aggregate_norm": None,
        "train_loss": {"0": None, "1": None, "4": 0.5, "5": None},
    }


def test_damage_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="no such file"):
        read_checkpoint(tmp_path)
    committed(tmp_path, 1).close()
    (tmp_path / "journal.jsonl").write_bytes(b"")
    with pytest.raises(ExperimentError, match="shorter"):
        Journal(tmp_path)
    (tmp_path / "checkpoint.npz").write_bytes(b"no archive")
    with pytest.raises(ExperimentError, match="damaged"):
        Journal(tmp_path)
