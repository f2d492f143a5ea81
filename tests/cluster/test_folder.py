"""What of a working folder leaves it: text that a job needs; no keys, no data, nothing from outside of the folder."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path, PurePosixPath

import pytest
from folders import BEGIN, CODE, DATA, END, EXPERIMENT, PEM, SECRETS, git, shipped, write
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs_server import TOKEN, Server
from nasty import NAMES
from refused import refused

from fedrobust.cluster import ClusterError, find_cluster, submit
from fedrobust.cluster import folder as shipped_from
from fedrobust.cluster.folder import key_in, select, sort_out
from fedrobust.cluster.shipping import prepare
from fedrobust.texts import visible

pytestmark = pytest.mark.usefixtures("nobody")


@pytest.mark.parametrize("how", ["plain", "repository", "tracked"])
@pytest.mark.parametrize("below", ["", "sub/deeper"])
def test_secrets_and_data_stay_at_every_depth(workplace: Path, below: str, how: str) -> None:
    write(workplace / below, *SECRETS, *DATA, *CODE)
    if how != "plain":
        git(workplace, "init", "--quiet")
    if how == "tracked":
        git(workplace, "add", "--all", "--force")
    found = select(workplace)
    assert sorted(found.files) == sorted(str(PurePosixPath(below, name)) for name in CODE)
    for name in (*SECRETS, *DATA):
        assert found.why_not(str(PurePosixPath(below, name))), name
    summary = "\n".join(found.summary())
    assert f"sends {len(CODE)} files" in summary
    assert "keys or credentials" in summary
    assert "server.key" in "\n".join(found.listing())


@pytest.mark.parametrize("repository", [True, False])
def test_no_link_leads_out_of_the_folder(
    workplace: Path, repository: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "private.txt", "folder/inner.txt", content="of somebody else")
    write(workplace, "a.py", "real/b.py", "moved/c.py", "data/table.txt")
    if repository:
        git(workplace, "init", "--quiet")
        git(workplace, "add", "--all", "--force")
    shutil.rmtree(workplace / "moved")
    write(outside, "moved/c.py", content="of somebody else")
    (workplace / "moved").symlink_to(outside / "moved")
    for name, target in {
        "absolute.txt": outside / "private.txt",
        "relative.txt": os.path.relpath(outside / "private.txt", workplace),
        "folder": outside / "folder",
        "chain.txt": "absolute.txt",
        "self.txt": "self.txt",
        "dead.txt": "nowhere.txt",
        "table.txt": "data/table.txt",
        "inside.py": "real/b.py",
        "real/up.py": "../a.py",
    }.items():
        (workplace / name).symlink_to(target)
    found = select(workplace)
    assert sorted(found.files) == ["a.py", "inside.py", "real/b.py", "real/up.py"]
    assert found.files["inside.py"] == b"x = 1\n"
    assert {"absolute.txt", "chain.txt", "relative.txt", "self.txt"} <= set(found.left[shipped_from.LINK])


def test_special_files_are_not_waited_for(workplace: Path) -> None:
    write(workplace, "a.py")
    os.mkfifo(workplace / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("talk.py")
        assert shipped(workplace) == ["a.py"]
        with refused(ClusterError, file="pipe.yaml"):
            os.mkfifo("pipe.yaml")
            prepare(["run", "pipe.yaml"])


@pytest.mark.parametrize("swap", ["fifo", "link", "folder", "gone", "link above"])
def test_a_file_that_is_replaced_while_it_is_read(
    workplace: Path, swap: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    write(outside, "a.py", content="of somebody else")
    write(workplace, "sub/a.py")
    read = shipped_from._read

    def swapped(folder: Path, name: str, most: int) -> bytes:
        path = folder / name
        if swap == "link above":
            path.parent.rename(folder / "before")
            path.parent.symlink_to(outside)
            return read(folder, name, most)
        path.unlink()
        if swap == "fifo":
            os.mkfifo(path)
        elif swap == "link":
            path.symlink_to(outside / "a.py")
        elif swap == "folder":
            path.mkdir()
        return read(folder, name, most)

    monkeypatch.setattr(shipped_from, "_read", swapped)
    with refused(ClusterError, file="sub/a.py"):
        select(workplace)


def test_a_file_that_grows_ends_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "a.py")
    read = shipped_from._read
    monkeypatch.setattr(
        shipped_from,
        "_read",
        lambda folder, name, most: (write(folder, name, content="y" * 99), read(folder, name, 9))[1],
    )
    with refused(ClusterError, file="a.py", says="grows"):
        select(workplace)


FORMS = {
    "PKCS8": PEM,
    "RSA": PEM.replace(" PRIVATE", " RSA PRIVATE"),
    "OpenSSH": PEM.replace(" PRIVATE", " OPENSSH PRIVATE"),
    "encrypted": PEM.replace(" PRIVATE", " ENCRYPTED PRIVATE"),
    "PGP": PEM.replace("KEY-", "KEY BLOCK-").replace(" PRIVATE", " PGP PRIVATE"),
    "Windows": PEM.replace("\n", "\r\n"),
    "YAML": "tls:\n  key: |\n    " + PEM.replace("\n", "\n    "),
    "JSON": '{"type": "account", "private_key": "' + PEM.replace("\n", "\\n") + '"}',
    "Python": f'"""A module."""\nKEY = """{PEM}"""\n',
    "behind much": "#" * 200_000 + "\n" + PEM,
    "PuTTY": "PuTTY-User-Key-File" + "-3: ssh-ed25519\n",
    "age": "AGE-SECRET-KEY-" + "1" + "Q" * 58,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_private_key_under_any_name_is_refused(workplace: Path, form: str) -> None:
    name = {"Python": "mine.py", "YAML": "config.yaml", "JSON": "a.json"}.get(form, "sub/notes.txt")
    write(workplace, "small.yaml", content=EXPERIMENT)
    write(workplace, name, content=FORMS[form])
    with refused(ClusterError, file=name, says="private key") as caught:
        prepare(["run", "small.yaml"])
    assert caught.value.problems[0].line
    (workplace / name).write_text(FORMS[form], encoding="utf-16")
    with refused(ClusterError, file=name, says="private key"):
        prepare(["run", "small.yaml"])
    write(workplace, ".gitignore", content=f"/{name}\n")
    assert shipped(workplace) == ["small.yaml"]


def test_what_only_speaks_of_keys_is_none() -> None:
    assert not key_in(f"find `{BEGIN} PRIVATE KEY{END}` in files".encode())
    assert not key_in(PEM.replace("PRIVATE", "PUBLIC").encode())
    assert not key_in(f'assert text == "{BEGIN} PRIVATE KEY{END}\\nAAAA"'.encode())
    assert key_in(f"\n\n{PEM}".encode()) == 3


def test_the_project_itself_can_be_shipped() -> None:
    found = select(Path(shipped_from.__file__).parent.parent.parent)
    assert {"fedrobust/cli/__init__.py", "fedrobust/data/__init__.py", "fedrobust/py.typed", "pyproject.toml"} <= set(
        found.files
    )
    assert "experiments/quickstart.yaml" in found.files
    assert not found.left[shipped_from.SECRET]


@pytest.mark.parametrize("which", ["home", "above", "root", "link"])
def test_a_home_is_not_shipped(nobody: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(nobody, "small.yaml", content=EXPERIMENT)
    linked = nobody.parent / "linked"
    linked.symlink_to(nobody)
    place = {"home": nobody, "above": nobody.parent, "root": Path("/"), "link": linked}[which]
    monkeypatch.chdir(place)
    monkeypatch.setattr(shipped_from, "_listed", lambda folder: pytest.fail("it has been listed"))
    with refused(ClusterError, file=place.resolve(), says="home"):
        prepare(["run", str(nobody / "small.yaml")])
    linked.unlink()


def test_a_big_folder_is_refused_with_its_biggest_files(workplace: Path) -> None:
    write(workplace, "small.txt")
    (workplace / "weights.json").write_bytes(bytes(3_000_000))
    (workplace / "more.json").write_bytes(bytes(2_000_000))
    with (workplace / "sparse.txt").open("wb") as file:
        file.truncate(50_000)
    assert len(select(workplace, most=6_000_000).files) == 4
    with refused(ClusterError, file=workplace, says="5.1 MB") as caught:
        select(workplace, most=4_000_000)
    assert "weights.json (3.0 MB), more.json (2.0 MB), " in caught.value.problems[0].message


def test_nothing_is_submitted_where_the_folder_is_too_big(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace, "small.yaml", content=EXPERIMENT)
    with (workplace / "sparse.txt").open("wb") as file:
        file.truncate(10**12)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with Server() as server, refused(ClusterError, file=workplace, says="1000000.0 MB"):
        submit(["run", "small.yaml"], find_cluster(server.address))
    assert not server.packages


def test_odd_names_reach_neither_terminal_nor_package(workplace: Path) -> None:
    for number, name in enumerate(NAMES):
        with suppress(OSError, ValueError):  # what is no name of a file
            write(workplace, f"{number} {name.replace('/', '_')}.txt")
    write(workplace, "small.yaml", content=EXPERIMENT)
    found = prepare(["run", "small.yaml"]).selection
    assert len(found.files) > 10 and len(found.left[shipped_from.ODD]) > 4
    for line in (*found.summary(), *found.listing(), *found.files):
        assert visible(line) == line
        line.encode()


def test_names_that_are_no_text_stay(workplace: Path) -> None:
    write(workplace, "small.yaml", content=EXPERIMENT)
    for name in (b"line\nbreak.py", b"latin-\xe9.py", b"\x1b[31mred.py"):
        (workplace / os.fsdecode(name)).touch()
    found = prepare(["run", "small.yaml"]).selection
    assert list(found.files) == ["small.yaml"]
    assert len(found.left[shipped_from.ODD]) == 3
    (workplace / "small.yaml").rename(os.fsdecode(b"latin-\xe9.yaml"))
    with refused(ClusterError, file=os.fsdecode(b"latin-\xe9.yaml")):
        prepare(["run", os.fsdecode(b"latin-\xe9.yaml")])


PARTS = st.sampled_from(
    ["a", "data", "mlruns", ".b", "c.py", "d.yaml", "id_rsa", "e.png", "__init__.py", "e/pyvenv.cfg", "é\n.py"]
)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), max_size=12))
def test_every_file_is_sent_or_stays_for_a_reason(names: list[str]) -> None:
    kept, left = sort_out(names)
    assert sorted([*kept, *(name for each in left.values() for name in each)]) == sorted(set(names))
    for name in kept:
        assert name.endswith((".py", ".yaml"))
        assert "mlruns" not in name.split("/") and not any(part.startswith(".") for part in name.split("/"))
