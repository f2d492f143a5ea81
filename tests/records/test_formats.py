"""Runs of other versions: those of before there were formats are read; those of later ones are told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from vouched import KEY, append, ended, exchange, restate

from fedrobust.audit.seals import sign_state
from fedrobust.audit.signing import AuditError, canonical
from fedrobust.audit.verification import verify, verify_all
from fedrobust.errors import FedRobustError
from fedrobust.federation.journal import Journal
from fedrobust.records import read_checkpoint, read_run, written
from fedrobust.report import write_comparison, write_report

(RECORDED,) = (Path(__file__).parent.parent / "recorded" / "runs").iterdir()
"""A run of the version of November 2026: journal and checkpoint name no format, the audit log has format 1."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(RECORDED, tmp_path / "runs" / RECORDED.name)


def test_a_run_from_before_formats_reads_as_it_was_written(old: Path) -> None:
    run, lines = read_run(old), (old / "journal.jsonl").read_bytes().splitlines(keepends=True)
    assert (run.start.format, read_checkpoint(old).format) == (0, 0)
    assert [record.line() for record in run.records] == lines
    assert [record.round for record in run.rounds] == [each.round for each in run.evaluations] == [1, 2, 3, 4, 5]
    assert set(run.attackers.values()) == {"patch_backdoor", "sign_flip"} and run.end is not None
    assert run.start.options.defence == "clip → nnm → geometric_median"


def test_a_run_from_before_formats_verifies_is_reported_and_compared(old: Path) -> None:
    found = verify_all(old, run=old.name)
    assert (found.broken, found.rounds, found.ended) == ("", 5, True)
    assert "audit log unbroken: 12 lines" in write_report(old).read_text()
    assert read_run(old).final["test/balanced_accuracy"] == 1.0
    other = shutil.copytree(old, old.with_name("f" * 32))
    start, *rest = (other / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (other / "checkpoint.npz").unlink()
    fields = json.loads(start)
    fields["experiment"]["seed"] = 6
    (other / "journal.jsonl").write_bytes(written(fields) + b"".join(rest))
    comparison, page = write_comparison(["plain"], old.parent, old.parent.parent / "compare")
    assert [len(candidate.runs) for _, candidate in comparison.candidates] == [2] and page.exists()


def test_a_run_from_before_formats_is_gone_on_with(tmp_path: Path) -> None:
    """Its checkpoint has no format, and is signed without one."""
    folder = ended(tmp_path / "r1", steps=3)
    with np.load(folder / "checkpoint.npz") as saved:
        facts = json.loads(saved["facts"].tobytes())
    assert facts.pop("format") == 1
    facts["signature"] = sign_state(KEY, {name: value for name, value in facts.items() if name != "signature"})
    exchange(folder, facts=np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8))
    assert verify(folder).broken == ""
    journal = Journal(folder, KEY)
    assert journal.checkpoint is not None and journal.checkpoint.format == 0
    journal.close()


def relabelled(path: Path, **fields: object) -> None:
    """Put fields into the first line of a journal."""
    start, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(written(json.loads(start) | fields) + b"".join(rest))


def later_journal(folder: Path) -> None:
    relabelled(folder / "journal.jsonl", format=2, versions={"fedrobust": "0.9.0"})


def later_checkpoint(folder: Path) -> None:
    relabelled(folder / "journal.jsonl", versions={"fedrobust": "0.9.0"})
    restate(folder, format=2)


def later_log(folder: Path) -> None:
    path = folder / "audit.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    line = json.loads(first)
    line["entry"] |= {"format": 2, "versions": {"fedrobust": "0.9.0"}}
    path.write_bytes(canonical(line) + b"\n" + b"".join(rest))
    (folder / "checkpoint.npz").unlink()


TOLD = "written by FedRobust 0.9.0; this is "


@pytest.mark.parametrize(
    ("later", "read"),
    [
        *((later_journal, read) for read in (read_run, write_report, verify_all)),
        *((later_checkpoint, read) for read in (read_run, write_report, verify_all, Journal)),
        (later_log, verify_all),
    ],
)
def test_a_run_of_a_later_version_names_that_version(
    old: Path, later: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    later(old)
    before = {path: path.read_bytes() for path in old.iterdir()}
    try:
        said = getattr(read(old), "broken", "")
    except FedRobustError as error:
        said = str(error)
        assert isinstance(error, AuditError) or error.exit_code == 2
    assert TOLD in said and "has format 2" in said and len(said.splitlines()) == 1, said
    assert {path: path.read_bytes() for path in old.iterdir()} == before


@pytest.mark.parametrize("format", [-1, 1.5, "1", None, [1], 10**30, "\x1b[2J"])
def test_a_format_that_is_none_is_refused(old: Path, format: object) -> None:
    relabelled(old / "journal.jsonl", format=format)
    with pytest.raises(FedRobustError, match=r"journal\.jsonl:1: has format ") as raised:
        read_run(old)
    assert len(str(raised.value)) < 400 and str(raised.value).isprintable()


def test_lines_of_a_kind_that_is_not_known_are_damage(old: Path) -> None:
    (old / "checkpoint.npz").unlink()
    append(old / "journal.jsonl", b'{"kind":"pause","round":5}\n')
    with pytest.raises(FedRobustError, match=r"journal\.jsonl:13: damaged: .*'pause'"):
        read_run(old)
