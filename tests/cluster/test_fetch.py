"""The results of a job are brought here: whole, checked, without keys, and over no file of the user's."""

from __future__ import annotations

import base64
import io
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest
from jobs_server import Server
from refused import refused
from submitted import called

import fedrobust.cluster.ray_jobs as jobs_room
from fedrobust.cluster import ClusterError, fetch, find_cluster, written
from fedrobust.cluster.collect import END, MARK
from fedrobust.cluster.unpacking import MANIFEST, JobFiles, parsed
from fedrobust.job import MARK as TOLD

JOB = "matrix-mine-aaaaaa"
HERE = Path("mlruns/jobs") / JOB
PAGES = {"table.md": b"# mine\n", "cells.csv": b"a,b\n", "heatmap_here.png": b"\x89PNG\x00", "part/trials.csv": b"1\n"}
STAY = {
    "checkpoint.npz": b"weights",
    "model/conda.yaml": b"a: 1",
    "auth_token.txt": b"s3cr3t",
    ".hidden.md": b"s3cr3t",
    "keys/coordinator.txt": b"s3cr3t",
    "signing-key.json": b"s3cr3t",
    "notes.txt": b"-----BEGIN PRIVATE KEY-----\ns3cr3t",
}


def filled(folder: Path, files: Mapping[str, bytes]) -> Path:
    """A folder with these files."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def there(server: Server, workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a running job, on its node."""
    folder = filled(tmp_path_factory.mktemp("head") / "mlruns" / "matrix" / "mine", PAGES | STAY)
    (folder / "parent.txt").write_text("abc\n")
    (folder / "elsewhere.csv").symlink_to("/etc/hostname")
    server.runs = True
    server.add(JOB)
    server.logs[JOB] = f"a line\n{TOLD}{json.dumps({'folder': str(folder), 'parent': 'abc'})}\n"
    return folder


def here(folder: Path = HERE) -> dict[str, bytes]:
    """The files that were fetched."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


def test_tables_and_pages_come_and_secrets_stay(
    there: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called("fetch", "mine") == 0
    out = capsys.readouterr().out
    assert here() == PAGES | {"parent.txt": b"abc\n"}
    assert out.startswith(f"{HERE}/table.md\n")
    assert f"5 files are in {HERE}\n" in out
    assert "checkpoint.npz" in out and "s3cr3t" not in out
    assert f"job {JOB} is running: this is what there is so far" in out
    assert all(not path.stat().st_mode & 0o077 for path in (HERE, *HERE.rglob("*")))
    assert list(server.jobs) == [JOB], "the job that packed them is not in the list"
    assert not any(b"s3cr3t" in package for package in server.packages.values())
    assert called("fetch", "mine", "--all", "--to", "all") == 0
    assert here(Path("all")).keys() == PAGES.keys() | {"parent.txt", "checkpoint.npz", "model/conda.yaml"}
    assert b"s3cr3t" not in b"".join(here(Path("all")).values())


def test_fetched_again_the_files_are_those_of_now(there: Path) -> None:
    assert called("fetch", JOB) == 0
    (HERE / "mine.txt").write_text("my notes")
    (there / "table.md").write_bytes(b"# later\n")
    (there / "heatmap_here.png").unlink()
    assert called("fetch", JOB) == 0
    later = {name: content for name, content in PAGES.items() if not name.endswith(".png")}
    assert here() == later | {"table.md": b"# later\n", "parent.txt": b"abc\n", "mine.txt": b"my notes"}
    there.rename(there.with_name("mine.1"))
    filled(there, {"table.md": b"# of another matrix\n", "parent.txt": b"def\n"})
    assert called("fetch", JOB) == 0
    assert here()["table.md"] == b"# later\n", "results that were put aside are still those of the job"


def test_a_job_without_results_is_one_line(there: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (there / "parent.txt").write_text("def\n")
    assert called("fetch", JOB) == 2
    assert capsys.readouterr().err.endswith("mine: the results of this job are not there any more\n")
    server.logs[JOB] = "a line\n"
    assert called("fetch", JOB) == 2
    assert "has not told where its results are" in capsys.readouterr().err
    assert not HERE.exists()
    assert list(server.jobs) == [JOB]


def test_too_much_is_refused_by_size(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_room, "MOST", 20)
    with refused(ClusterError, says="the biggest: notes.txt"):
        fetch(find_cluster(), JOB)


def printed(content: bytes, **about: object) -> str:
    """The output of the job that packs results."""
    said = {"bytes": len(content), "sha256": sha256(content).hexdigest(), "left": []} | about
    return f"a line\n{MARK}{json.dumps(said)}\n{base64.b64encode(content).decode()}\n{MARK}{END}\nanother"


def archive(*files: tuple[str, bytes], mode: int = 0) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in files:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            made.writestr(entry, content)
    return packed.getvalue()


def test_what_was_sent_is_what_arrives() -> None:
    assert parsed(printed(archive(("a/b.md", b"x")), left=["c\x1b"]), 100) == JobFiles({"a/b.md": b"x"}, ("c\\x1b",))


WHOLE = printed(archive(("a.md", b"x" * 50)))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (printed(archive(("../a.md", b"x"))), "outside"),
        (printed(archive(("/a.md", b"x"))), "outside"),
        (printed(archive(("a/../../b.md", b"x"))), "outside"),
        (printed(archive(("..\\a.md", b"x"))), "outside"),
        (printed(archive(("C:/a.md", b"x"))), "outside"),
        (printed(archive(("./a.md", b"x"))), "outside"),
        (printed(archive((".bashrc", b"x"))), "no result has"),
        (printed(archive(("a\nb.md", b"x"))), "no result has"),
        (printed(archive((MANIFEST, b"{}"))), "no result has"),
        (printed(archive(("a.md", b"/etc/passwd"), mode=stat.S_IFLNK | 0o777)), "no plain file"),
        (printed(archive(("a/", b""))), "outside"),
        (printed(archive(("a.md", b"x"), ("a.md", b"y"))), "twice"),
        (printed(archive(("a", b"x"), ("a/b.md", b"y"))), "a file and a folder"),
        (printed(archive(("a.md", bytes(1000)))), "or 0.0001 MB"),
        (printed(b"no zip"), "no proper zip"),
        (printed(archive(("a.md", b"x")), sha256="0" * 64), "digest"),
        (printed(archive(("a.md", b"x")), error="it is\x1b gone"), "it is\\x1b gone"),
        (WHOLE.replace("UEs", "UEt", 1), "digest"),
        (WHOLE.replace("UEs", "U!s", 1), "damaged"),
        (WHOLE.partition(f"{MARK}{END}")[0], "as a whole"),
        (f"{MARK}[]\n{MARK}{END}", "damaged"),
        ("", "as a whole"),
    ],
)
def test_damaged_and_hostile_results_are_refused(output: str, says: str) -> None:
    with refused(ClusterError, says=says):
        parsed(output, 100)


def test_no_file_of_the_users_is_overwritten(workplace: Path) -> None:
    folder = filled(Path("mine"), {"table.md": b"my own", "other.md": b"mine"})
    new = JobFiles({"a.md": b"1", "table.md": b"2"})
    with refused(ClusterError, file=folder, says="were not fetched, or were changed since: table.md"):
        written(new, folder, "j")
    assert here(folder) == {"table.md": b"my own", "other.md": b"mine"}
    (folder / "table.md").write_bytes(b"2")
    assert written(new, folder, "j") == [folder / "a.md", folder / "table.md"]
    (folder / "a.md").write_bytes(b"changed by me")
    with refused(ClusterError, says="changed since: a.md"):
        written(JobFiles({"a.md": b"3", "table.md": b"3"}), folder, "j")
    assert here(folder)["table.md"] == b"2", "all or nothing"
    written(JobFiles({"table.md": b"3"}), folder, "j")
    assert here(folder) == {"table.md": b"3", "a.md": b"changed by me", "other.md": b"mine"}
    with refused(ClusterError, file=folder, says="results of the job j"):
        written(new, folder, "another")
    (folder / MANIFEST).write_text('{"job": "j", "files": {"../mine/other.md": []}}')
    with refused(ClusterError, file=folder / MANIFEST, says="cannot be read"):
        written(new, folder, "j")


def test_nothing_is_written_through_links(workplace: Path) -> None:
    folder, outside = Path("mine"), filled(Path("outside"), {"table.md": b"1"})
    folder.mkdir()
    for link in ("part", "table.md"):
        (folder / link).symlink_to(outside.absolute() if link == "part" else (outside / link).absolute())
    for name in ("part/table.md", "table.md"):
        with refused(ClusterError, says=name):
            written(JobFiles({name: b"1"}), folder, "j")
    with refused(ClusterError, says="is no folder"):
        written(JobFiles({"a": b"1"}), outside / "table.md", "j")


def test_a_fetch_that_was_interrupted_is_completed(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("mine")
    written(JobFiles({"a.md": b"1", "b.md": b"1"}), folder, "j")
    replace, calls = os.replace, list[str]()

    def failing(self: Path, target: Path) -> None:
        calls.append(target.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", failing)
        written(JobFiles({"a.md": b"2", "b.md": b"2"}), folder, "j")
    assert here(folder) == {"a.md": b"2", "b.md": b"1"}, "each file is whole, and nothing else is left"
    written(JobFiles({"a.md": b"3", "b.md": b"3"}), folder, "j")
    assert here(folder) == {"a.md": b"3", "b.md": b"3"}
