"""The finished runs of a study are on disk, whole, whatever the disk does."""

from __future__ import annotations

import errno
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fedrobust.records.lines as lines
from fedrobust.errors import ExperimentError, FedRobustError
from fedrobust.studies.finished import FinishedRun, FinishedRuns
from fedrobust.studies.study import Study


def given(digest: str, **figures: float) -> FinishedRun:
    return FinishedRun(digest, f"run {digest}", figures=figures, seconds=1.0)


def test_a_disk_that_is_full_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FinishedRuns(tmp_path / "runs.jsonl")
    store.add(given("a", test=0.25))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lines.os, "fsync", full)
        with pytest.raises(FedRobustError, match=r"runs\.jsonl: b .*No space left"):
            store.add(given("b"))
    assert store.get("b") is None
    store.add(given("c"))
    store.close()
    again = FinishedRuns(tmp_path / "runs.jsonl")
    assert again.by_digest == {"a": given("a", test=0.25), "c": given("c")}
    again.close()


def test_a_disk_that_takes_half_a_line(tmp_path: Path) -> None:
    store = FinishedRuns(tmp_path / "runs.jsonl")
    file, room = store._file._file, [200]

    class Small:
        """A file on a disk with so much room."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, data: bytes) -> int:
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            written = file.write(data[: min(room[0], 75)])
            room[0] -= written
            return written

    store._file._file = Small()  # type: ignore[assignment]
    store.add(given("a"))
    with pytest.raises(FedRobustError, match="No space left"):
        store.add(given("b"))
    store.close()
    assert [json.loads(line)["digest"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == ["a"]


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ExperimentError, match=r"file/here/runs\.jsonl: .*Not a directory$"):
        FinishedRuns(tmp_path / "file" / "here" / "runs.jsonl")


@pytest.mark.parametrize("line", ["nonsense", '{"digest": "a", "other": 1}', "[]", '{"digest"', "7", "[" * 99999])
def test_a_line_that_is_no_finished_run_is_refused_with_its_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "runs.jsonl").write_text(f'{{"digest": "a", "label": "a"}}\n{line}\n{{"digest": "b", "label": "b"}}\n')
    for _ in range(2):
        with pytest.raises(ExperimentError, match=r"runs\.jsonl: line 2 "):
            FinishedRuns(tmp_path / "runs.jsonl")


def test_a_line_of_another_format_is_refused_as_that(tmp_path: Path) -> None:
    (tmp_path / "runs.jsonl").write_text('{"digest": "a", "label": "a"}\n{"format": 2, "digest": "b", "curves": []}\n')
    with pytest.raises(ExperimentError, match=r"runs\.jsonl: line 2 has format 2, .* 1$"):
        FinishedRuns(tmp_path / "runs.jsonl")


@pytest.mark.parametrize(
    "line",
    [
        '{"digest": "a", "label": "one", "run_id": "r", "figures": {"auroc": 0.5}, "seconds": 1.5, "failed": ""}',
        '{"digest": "a", "label": "one", "run_id": "r", "rounds": {"3": {"auroc": 0.5}}, "seconds": 1.5, "failed": ""}',
    ],
)
def test_lines_from_before_there_was_a_format_are_read(tmp_path: Path, line: str) -> None:
    """Those of a matrix, and those of a sweep."""
    (tmp_path / "runs.jsonl").write_text(f"{line}\n")
    store = FinishedRuns(tmp_path / "runs.jsonl")
    (run,) = store.by_digest.values()
    assert (run.label, run.run_id, run.seconds) == ("one", "r", 1.5)
    assert {**run.figures, **run.curves.get(3, {})} == {"auroc": 0.5}
    store.close()


def test_runs_that_end_at_the_same_time_are_all_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines.os, "fsync", lambda descriptor: time.sleep(0.01))  # a slow disk
    study = Study(tmp_path, FinishedRuns(tmp_path / "runs.jsonl"), Any, Any)  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: study.keep(given(f"{number % 10}", test=float(number % 10))), range(40)))
    study.finished.close()
    assert len((tmp_path / "runs.jsonl").read_bytes().splitlines()) == 10
    again = FinishedRuns(tmp_path / "runs.jsonl")
    assert again.by_digest == {f"{number}": given(f"{number}", test=float(number)) for number in range(10)}
    again.close()
