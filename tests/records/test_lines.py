"""A file of lines: what was appended is there after any crash, whole, and from one writer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedrobust.errors import ExperimentError
from fedrobust.failures import ends_all
from fedrobust.records import LineFile, lines


def held(path: Path) -> bytes:
    with LineFile(path) as file:
        return file.read()


@pytest.mark.parametrize(
    "before", [b"", b"one\n", b"one\ntwo\n", b"one\n" + b"x" * 200_000, b"cut", b"\n", b"y" * 70_000 + b"\n"]
)
def test_whole_lines_are_read_and_a_cut_one_goes_with_the_next_append(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "folder" / "lines.jsonl"
    path.parent.mkdir()
    path.write_bytes(before)
    whole = before[: before.rfind(b"\n") + 1]
    with LineFile(path) as file:
        assert (file.read(), file.length) == (whole, len(whole))
        assert path.read_bytes() == before  # only looked at
        file.append(b"next\n")
        file.append(b"last\nof all\n")
        assert file.read() == path.read_bytes() == whole + b"next\nlast\nof all\n"
    assert held(path) == whole + b"next\nlast\nof all\n"


def test_what_is_cut_goes_with_the_next_append(tmp_path: Path) -> None:
    with LineFile(tmp_path / "lines") as file:
        file.append(b"one\ntwo\n")
        file.cut(4)
        assert file.read() == b"one\n"
        assert (tmp_path / "lines").read_bytes() == b"one\ntwo\n"
        file.cut(100)  # there is no more of it
        file.append(b"three\n")
    assert held(tmp_path / "lines") == b"one\nthree\n"


@pytest.mark.parametrize("refusing", ["fsync", "write"])
def test_a_disk_that_refuses_leaves_the_lines_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    class Small:
        """A file on a disk with room for three bytes more."""

        def __init__(self, inner: object) -> None:
            self.inner, self.room = inner, 3

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def write(self, data: memoryview) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            written: int = self.inner.write(data[: self.room])  # type: ignore[attr-defined]
            self.room -= written
            return written

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = LineFile(tmp_path / "lines")
    file.append(b"one\n")
    with monkeypatch.context() as patch:
        if refusing == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(file, "_file", Small(file._file))
        with pytest.raises(OSError, match="No space left"):
            file.append(b"second\n")
    assert (tmp_path / "lines").read_bytes() == b"one\n"
    file.append(b"third\n")
    file.close()
    assert held(tmp_path / "lines") == b"one\nthird\n"


def test_a_second_writer_is_refused_and_one_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    script = (
        "import sys, time; from pathlib import Path; from fedrobust.records import LineFile\n"
        "file = LineFile(Path(sys.argv[1])); file.append(b'theirs\\n'); print('open', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        with pytest.raises(ExperimentError, match="another process"):
            LineFile(path)
        with pytest.raises(ExperimentError, match=r"^busy$"):
            LineFile(path, "busy")
        other.kill()
    assert held(path) == b"theirs\n"
    first = LineFile(path)
    with pytest.raises(ExperimentError):  # also within one process
        LineFile(path)
    first.close()
    LineFile(path).close()


def test_a_file_system_that_knows_no_locks_locks_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fedrobust.locks.fcntl.flock", unknown)
    with LineFile(tmp_path / "lines") as file:
        file.append(b"one\n")
    assert held(tmp_path / "lines") == b"one\n"


def test_what_cannot_be_opened_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "lines"):
        with pytest.raises(ExperimentError, match="written to: ") as raised:
            LineFile(path)
        assert len(str(raised.value).splitlines()) == 1 and not ends_all(raised.value)

    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lines, "try_lock", full)
    with pytest.raises(ExperimentError) as raised:
        LineFile(tmp_path / "lines")
    assert ends_all(raised.value)  # a full disk ends other runs, too
